"""Weights made random from the classifier down: which, how, and what is said of the maps."""

from __future__ import annotations

import random
import sys

import numpy as np
import pytest
import timm
import torch
from scipy.stats import spearmanr
from support.explanations import CHEAP, random_states
from torch import Tensor, nn

import covpool_plugins
from covpool_plugins.errors import OptionError, ShapeError, UnknownNameError
from covpool_plugins.explain import EXPLANATIONS, Explanation, ExplanationMethod, ModelView, explain
from covpool_plugins.explain.methods import check_seed
from covpool_plugins.explain.model_view import ForwardPass
from covpool_plugins.explain.sanity import (
    Randomization,
    cascading_randomization,
    depends_on_weights,
    randomized_views,
    rank_correlation,
)


@pytest.mark.parametrize("levels", [3, 1000])
def test_rank_correlation_is_spearmans(levels: int) -> None:
    a, b = np.random.default_rng(0).integers(0, levels, (2, 7, 9)) / 10
    expected = spearmanr(a.flatten(), b.flatten()).statistic
    assert rank_correlation(a, b) == pytest.approx(expected, abs=1e-12)
    assert rank_correlation(a, a**3) == pytest.approx(1) and rank_correlation(a, -a) == pytest.approx(-1)
    constant = np.ones_like(a)
    assert rank_correlation(a, constant) is None and rank_correlation(constant, a) is None
    with pytest.raises(ShapeError, match=r"the same size, got \(7, 9\) and \(9, 7\)"):
        rank_correlation(a, a.T)


def changed(one: nn.Module, other: nn.Module) -> set[str]:
    pairs = zip(one.named_parameters(), other.parameters(), strict=True)
    return {name for (name, a), b in pairs if not torch.equal(a, b)}


def test_layers_from_the_classifier_down(small_net, image: Tensor) -> None:
    net = small_net(reduce_channels=6)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):  # gains that are all one would stay
            nn.init.uniform_(module.weight, 0.5, 1.5), nn.init.normal_(module.bias)
    view = ModelView.of(net)
    cascade = list(randomized_views(view, image, steps=100))
    layers = cascade[-1][0]
    assert layers[:2] == ("head.fc", "head.global_pool") and layers[-1].startswith("stem")
    assert [name for name in layers if name.startswith("stage")] == ["stage2.1", "stage2.0", "stage1.1", "stage1.0"]
    names = [name for name, _ in view.model.named_parameters()]
    layer_of = {name: max((at for at in layers if name.startswith(f"{at}.")), key=len) for name in names}
    for (random_layers, random_view), previous in zip(cascade, [view, *(other for _, other in cascade)], strict=False):
        assert random_layers == layers[: len(random_layers)]
        now = changed(view.model, random_view.model)
        assert now == {name for name in names if layer_of[name] in random_layers}
        new = changed(previous.model, random_view.model)
        assert new and {layer_of[name] for name in new} == {random_layers[-1]}


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_steps(steps: int, small_net, image: Tensor) -> None:
    view = ModelView.of(small_net())
    whole = list(randomized_views(view, image, steps=100))[-1][0]
    cascade = [layers for layers, _ in randomized_views(view, image, steps=steps)]
    assert len(cascade) == steps and cascade[-1] == whole
    assert steps == 1 or cascade[0] == ("head.fc",)
    sizes = np.diff([len(layers) for layers in cascade])
    assert (sizes > 0).all() and np.ptp(sizes if steps > 1 else [0]) <= 1


def test_random_weights_have_the_size_of_the_old_ones_and_tied_ones_stay_tied(small_net, image: Tensor) -> None:
    net = small_net()
    net.stage2[1].conv.weight = net.stage2[0].conv.weight
    with torch.no_grad():
        net.stage1[0].conv.weight.mul_(5)
        net.stage1[0].norm.weight.copy_(torch.linspace(2, 4, 12))
    view = ModelView.of(net)
    for _, other in randomized_views(view, image):
        assert other.model.stage2[1].conv.weight is other.model.stage2[0].conv.weight
    for name in ("stage1.0.conv.weight", "stage1.0.norm.weight"):
        old, new = (which.model.get_parameter(name) for which in (view, other))
        assert new.square().mean().sqrt() == pytest.approx(old.square().mean().sqrt().item(), rel=0.15)
        assert abs(rank_correlation(old, new)) < 0.6


def test_the_model_and_random_states_stay(small_net, image: Tensor) -> None:
    net = small_net()
    view = ModelView.of(net)
    before = {key: value.clone() for key, value in view.model.state_dict().items()}
    torch.manual_seed(7), np.random.seed(7), random.seed(7)
    states = random_states()
    rows = cascading_randomization(view, image, ["contribution"], 1, steps=2)
    assert random_states() == states
    after = view.model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert cascading_randomization(net, image, ["contribution"], 1, steps=2) == rows
    assert cascading_randomization(net, image, ["contribution"], 1, steps=2, seed=1) != rows


def test_similarities_are_those_of_the_maps(small_net, image: Tensor) -> None:
    """Of the class that the original model sees first, where none is named."""
    view, methods = ModelView.of(small_net()), ["contribution", "gradient"]
    top = int(view.logits(image).argmax())
    rows = cascading_randomization(view, image, methods, steps=3)
    assert [row.method for row in rows] == ["contribution"] * 3 + ["gradient"] * 3
    assert rows == cascading_randomization(view, image, methods, top, steps=3)
    others = list(randomized_views(view, image, steps=3))
    for row, (layers, other) in zip(rows, [*others, *others], strict=True):
        maps = [explain(which, image, row.method, top).map for which in (view, other)]
        assert row.layers == layers and row.note == ""
        assert row.similarity == pytest.approx(spearmanr(*(map.flatten() for map in maps)).statistic, abs=1e-12)


def test_a_method_keeps_its_layer(image: Tensor) -> None:
    """Grad-CAM goes to an earlier layer where the last one is degenerate; the maps compared are of one layer."""
    net = covpool_plugins.create_model("resnet10t", "svdpade", channels=(8, 8, 8, 16), num_classes=3, reduce_channels=8)
    rows = cascading_randomization(net.eval(), nn.functional.interpolate(image, (96, 96)), ["grad_cam"], 1, steps=3)
    assert len(rows) == 3 and all((row.similarity is None) == bool(row.note) for row in rows)


def noise(view: ModelView, passed: ForwardPass, target: int, *, seed: int = 0) -> Explanation:
    return Explanation(torch.rand(8, 8, generator=torch.Generator().manual_seed(seed)), signed=False)


def edges(view: ModelView, passed: ForwardPass, target: int) -> Explanation:
    return Explanation(passed.x[0].diff(dim=1).square().sum(0), signed=False)


def test_maps_are_not_alike_by_their_random_numbers_but_by_the_picture_alone(small_net, image, monkeypatch) -> None:
    monkeypatch.setitem(EXPLANATIONS._entries, "noise", ExplanationMethod(noise, seed=check_seed))
    monkeypatch.setitem(EXPLANATIONS._entries, "edges", ExplanationMethod(edges))
    for options in ({}, {"seed": 5}):
        rows = cascading_randomization(small_net(), image, {"noise": options, "edges": {}}, 0)
        of_noise, of_edges = ([row.similarity for row in rows if row.method == name] for name in ("noise", "edges"))
        assert all(abs(similarity) < 0.5 for similarity in of_noise) and len(set(of_noise)) == len(of_noise)
        assert of_edges == pytest.approx([1] * len(of_edges)) and depends_on_weights(rows)["edges"] is False


@pytest.mark.parametrize(
    ("method", "note"),
    [
        ("maximal_image", "maximal_image makes a picture, no map of the picture"),
        ("channel_pairs", "channel_pairs makes a matrix, no map of the picture"),
        ("democratic_weights", "democratic"),
        ("extremal_perturbation", "pip install 'covpool_plugins[explain]'"),
    ],
)
def test_what_has_no_map_is_said(method: str, note: str, small_net, image: Tensor, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torchray.attribution.extremal_perturbation", None)
    methods = {method: CHEAP.get(method, {}), "contribution": {}}
    row, other = cascading_randomization(small_net(), image, methods, 0, steps=1)
    assert row.layers == () and row.similarity is None and note in row.note and other.similarity is not None
    assert depends_on_weights([row]) == {method: None}


@pytest.mark.parametrize(("value", "note"), [(float("nan"), "not finite"), (3.0, "the same everywhere")])
def test_degenerate_maps_are_said(value: float, note: str, small_net, image: Tensor, monkeypatch) -> None:
    original: list[ModelView] = []

    def once(view: ModelView, passed: ForwardPass, target: int) -> Explanation:
        original.append(view)
        map = torch.rand(4, 4) if len(original) == 1 else torch.full((4, 4), value)
        return Explanation(map, signed=True)

    monkeypatch.setitem(EXPLANATIONS._entries, "once", ExplanationMethod(once))
    rows = cascading_randomization(small_net(), image, ["once"], 0, steps=2)
    assert [row.similarity for row in rows] == [None, None] and all(note in row.note for row in rows)
    assert depends_on_weights(rows) == {"once": None}


@pytest.mark.parametrize(("similarity", "passes"), [(0.49, True), (-0.49, True), (0.5, False), (-0.9, False)])
def test_the_verdict_is_about_the_last_step(similarity: float, passes: bool) -> None:
    rows = [Randomization("contribution", ("fc",), 0.99), Randomization("contribution", ("fc", "stem"), similarity)]
    assert depends_on_weights(rows) == {"contribution": passes}


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto", "mobilenetv3_small_050"])
@pytest.mark.slow
def test_other_backbones(name: str) -> None:
    kwargs = dict(img_size=64) if "vit" in name else {}
    view, x = ModelView.of(timm.create_model(name, num_classes=3, **kwargs).eval()), torch.randn(1, 3, 64, 64)
    *_, (_, other) = randomized_views(view, x)
    names = {n for n, p in view.model.named_parameters() if p.ndim > 1 and p.any()}
    assert names <= changed(view.model, other.model) and other.logits(x).isfinite().all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(seed=-1), OptionError, "seed must be an integer >= 0, got -1"),
        (dict(steps=0), OptionError, "steps must be a positive integer, got 0"),
        (dict(methods=["contributions"]), UnknownNameError, "unknown explanation method 'contributions'"),
        (dict(methods=[]), OptionError, r"methods must be a list of names, got \[\]"),
        (dict(methods="contribution"), OptionError, "methods must be a list of names, got 'contribution'"),
        (dict(methods={"contribution": {"mask": 1}}), OptionError, "has no option 'mask'"),
    ],
)
def test_bad_input(options: dict, error: type[Exception], message: str, small_net, image: Tensor) -> None:
    with pytest.raises(error, match=message):
        cascading_randomization(small_net(), image, **dict(methods=["contribution"]) | options)
