"""Pictures made by the model: they do what they are made for, from the seed alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.explanations import heads
from torch import Tensor, nn

from covpool_plugins.explain import ModelView, explain
from covpool_plugins.explain.perturbation import _descend, total_variation

FEW = dict(iterations=15, jitter=2)
BOTH = pytest.mark.parametrize(("method", "number"), [("maximal_image", "logit"), ("inverse_image", "distance")])


def as_input(view: ModelView, picture: np.ndarray) -> Tensor:
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (view.preprocessing.mean, view.preprocessing.std))
    return ((torch.from_numpy(picture) - mean) / std)[None].float()


@heads(fast=["svdpade", "isqrt", "gap"])
def test_a_maximal_image_has_a_high_score(name: str, small_net, image: Tensor) -> None:
    net = small_net(name)
    nn.init.normal_(net.head.fc.weight)
    view = ModelView.of(net)
    explanation = explain(view, image, "maximal_image", 2, iterations=40, smoothness=0.1)
    picture = explanation.extras["picture"]
    assert picture.shape == (3, 32, 32) and picture.min() >= 0 and picture.max() <= 1 and explanation.space == "picture"
    np.testing.assert_allclose(explanation.map, picture.mean(0))
    start = explain(view, image, "maximal_image", 2, iterations=1, smoothness=0.1)
    logit = view.logits(as_input(view, picture))[0, 2].item()
    assert explanation.extras["logit"] == pytest.approx(logit, rel=1e-3, abs=1e-4)
    assert explanation.extras["logit"] > start.extras["logit"] + 0.05 * abs(start.extras["logit"])


@heads(["gap", "exact", "isqrt", "bcnn", "logcov"], fast=["gap", "isqrt"])
def test_an_inverse_image_has_nearly_the_same_vector(name: str, small_net, image: Tensor) -> None:
    view = ModelView.of(small_net(name))
    explanation, start = (explain(view, image, "inverse_image", 0, iterations=n, smoothness=0) for n in (60, 1))
    vectors = [view.forward_pass(x).pooled for x in (as_input(view, explanation.extras["picture"]), image)]
    distance = ((vectors[0] - vectors[1]).norm() / vectors[1].norm()).item()
    assert explanation.extras["distance"] == pytest.approx(distance, rel=1e-2)
    assert distance < 0.7 * start.extras["distance"]


@BOTH
def test_it_is_drawn_as_a_picture_which_smoothness_makes_smooth(
    method: str, number: str, small_net, image: Tensor, tmp_path: Path
) -> None:
    explanation, smooth = (explain(small_net(), image, method, 1, smoothness=s, **FEW) for s in (0.0, 1000.0))
    picture = explanation.extras["picture"]
    variations = [total_variation(torch.from_numpy(made.extras["picture"])[None]) for made in (smooth, explanation)]
    assert variations[0] < 0.5 * variations[1]
    assert explanation.overlay().size == (32, 32)
    np.testing.assert_allclose(np.asarray(explanation.overlay()).transpose(2, 0, 1) / 255, picture, atol=0.003)
    png, npz = explanation.save(tmp_path, "made")
    assert Image.open(png).width == 320
    np.testing.assert_array_equal(np.load(npz)["picture"], picture)
    assert explanation.caption()[1] == f"{number} {float(explanation.extras[number]):.3g}"


def test_a_sum_of_pictures_of_several_sizes_takes_half_the_steps(small_net, image: Tensor) -> None:
    """It minimises what a picture of one size does, and gets further in half the steps."""
    view = ModelView.of(small_net("gap"))

    def reached(iterations: int, levels: int, step: float) -> float:
        def loss(made: Tensor) -> Tensor:
            return -view.model(made)[0, 2]

        pixels = _descend(view, image, loss, iterations, 0, 1000.0, 4, levels, step)
        return (loss(view.preprocessing.normalized(pixels)) + 1000 * total_variation(pixels)).item()

    assert reached(25, levels=5, step=0.02) < reached(50, levels=1, step=0.1)


def test_total_variation() -> None:
    ramp = 0.1 * torch.arange(5.0).expand(1, 3, 4, 5)
    torch.testing.assert_close(total_variation(ramp).item(), 0.01)
    torch.testing.assert_close(total_variation(ramp.mT), total_variation(ramp))


@pytest.mark.parametrize("method", ["maximal_image", "inverse_image"])
def test_blue_first(method: str, small_net, image: Tensor) -> None:
    """A network whose input is blue, green, red makes the picture of the plain one with the channels the other way."""
    plain, swapped_net = ModelView.of(small_net()), small_net()
    swapped_net.stem[0].weight.data = swapped_net.stem[0].weight.data.flip(1)
    other = ModelView.of(swapped_net)
    other = dataclasses.replace(other, preprocessing=dataclasses.replace(other.preprocessing, bgr=True))
    explanation, expected = (
        explain(view, x, method, 1, **FEW).extras["picture"] for view, x in ((other, image.flip(1)), (plain, image))
    )
    np.testing.assert_allclose(explanation, expected, atol=1e-3)
