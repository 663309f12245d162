"""Numbers about explanations agree with what they are defined by."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from support.explanations import FAMILIES, heads, random_states
from torch import Tensor, nn

from covpool_plugins.errors import OptionError, ShapeError
from covpool_plugins.explain import ModelView, explain
from covpool_plugins.explain.metrics import (
    CONDITIONING,
    DeletionInsertion,
    blur,
    conditioning,
    deletion_insertion,
    entropy,
    metrics,
)
from covpool_plugins.linalg import covariance
from covpool_plugins.pooling import CovariancePool, create_pool, list_pools

WITH_COVARIANCE = [n for n in list_pools() if n in ("cbp", "lrbp") or isinstance(create_pool(n, 4), CovariancePool)]
SMALL = dict(steps=4, orders=2)


class Corner(nn.Module):
    """A network that sees the upper left quarter of the picture: the contrast in it speaks for class 1."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.head, self.pretrained_cfg, self.stem = net.head, net.pretrained_cfg, net.stem
        self.first = nn.Conv2d(3, 12, 1)

    def forward(self, x: Tensor) -> Tensor:
        self.head(self.first(x))
        contrast = x[:, :, :16, :16].square().mean((1, 2, 3))
        return torch.stack([torch.zeros_like(contrast), 4 * contrast - 2], dim=1)


@pytest.fixture
def corner(small_net) -> ModelView:
    return ModelView.of(Corner(small_net("gap")).eval())


def quarter(row: int, column: int) -> np.ndarray:
    map = np.zeros((8, 8))
    map[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 1 + np.arange(16).reshape(4, 4) / 100
    return map


def checkerboard() -> Tensor:
    return (2 * ((torch.arange(32)[:, None] + torch.arange(32)) % 2) - 1).float().expand(1, 3, 32, 32)


def test_a_map_of_what_counts_deletes_fast_and_inserts_fast(corner: ModelView) -> None:
    right, wrong = (deletion_insertion(corner, checkerboard(), quarter(i, i), 1, steps=8, orders=4) for i in (0, 1))
    assert right.deletion < right.random_deletion - 0.1 < wrong.deletion - 0.1
    assert right.insertion > right.random_insertion + 0.1 > wrong.insertion + 0.1
    assert (right.random_deletion, right.random_insertion) == (wrong.random_deletion, wrong.random_insertion)


def test_areas_by_hand(corner: ModelView) -> None:
    """With two steps: the picture, the half with the corner or the rest replaced, the blurred picture."""
    x = checkerboard()
    smooth = blur(x)
    half = x.clone()
    half[..., :16, :] = smooth[..., :16, :]
    rest = smooth.clone()
    rest[..., :16, :] = x[..., :16, :]
    p = [corner.logits(at).double().softmax(-1)[0, 1].item() for at in (x, half, smooth, rest)]
    upper = np.zeros((2, 2))
    upper[0] = 1
    areas = deletion_insertion(corner, x, upper, 1, steps=2, orders=1)
    assert areas.deletion == pytest.approx((p[0] + 2 * p[1] + p[2]) / 4, rel=1e-6)
    assert areas.insertion == pytest.approx((p[2] + 2 * p[3] + p[0]) / 4, rel=1e-6)


def test_random_orders_have_a_seed_and_leave_random_states_alone(corner: ModelView) -> None:
    arguments = (corner, checkerboard(), quarter(0, 0), 1)
    first = deletion_insertion(*arguments, **SMALL)
    torch.manual_seed(7), np.random.seed(7), random.seed(7)
    states = random_states()
    assert deletion_insertion(*arguments, seed=0, **SMALL) == first and random_states() == states
    other = deletion_insertion(*arguments, seed=1, **SMALL)
    assert other[:2] == first[:2] and other[2:] != first[2:]


def test_fine_maps_are_averaged(corner: ModelView) -> None:
    """To 14 x 14 positions: what 28 x 28 say of each pair of pixels counts together."""
    coarse = torch.rand(14, 14, generator=torch.Generator().manual_seed(0))
    fine = torch.kron(coarse, torch.ones(2, 2)) + torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(14, 14)
    areas, expected = (deletion_insertion(corner, checkerboard(), map, 1, **SMALL) for map in (fine, coarse))
    assert areas == pytest.approx(expected, rel=1e-6)


def test_the_blur_keeps_the_mean_and_smooths() -> None:
    x = torch.randn(2, 3, 40, 60)
    smooth = blur(x)
    assert smooth.shape == x.shape and smooth.std() < 0.3 * x.std()
    torch.testing.assert_close(blur(torch.full((1, 3, 40, 60), 0.7)), torch.full((1, 3, 40, 60), 0.7))


@pytest.mark.parametrize(
    ("map", "expected"),
    [
        (np.ones((3, 4)), 1.0),
        (np.eye(1, 12), 0.0),
        (np.array([[1.0, -1.0], [0, 0]]), 0.5),
        (np.zeros((2, 2)), None),
        (np.ones((1, 1)), None),
    ],
)
def test_entropy(map: np.ndarray, expected: float | None) -> None:
    assert entropy(map) == (expected if expected is None else pytest.approx(expected))


def condition_number(values: Tensor) -> tuple[Tensor, float]:
    """What counts of eigenvalues or singular values, and its condition number."""
    values = values[values > 1e-12 * values.max()]
    return values, (values.max() / values.min()).item()


@heads(WITH_COVARIANCE, fast=[*FAMILIES, "exact"])
def test_conditioning_before_and_after(name: str, small_net, image: Tensor) -> None:
    view = ModelView.of(small_net(name).double())
    numbers, pool = conditioning(view, view.forward_pass(image.double())), view.pool
    with torch.no_grad():
        features = view.features(view.forward_pass(image.double()))[0]
        X = pool.weighting(features) if isinstance(pool, CovariancePool) else features
        values, before = condition_number(torch.linalg.eigvalsh(covariance(X, getattr(pool, "centered", False)))[0])
        after = None
        if isinstance(pool, CovariancePool):
            Q = pool.matrix(pool.represent(features))
            after = pytest.approx(condition_number(torch.linalg.svdvals(Q)[0])[1], rel=1e-6)
    shares = values / values.sum()
    assert numbers["normalized_condition_number"] == after
    assert numbers["condition_number"] == pytest.approx(before, rel=1e-6)
    assert numbers["effective_rank"] == pytest.approx((-shares * shares.log()).sum().exp().item(), rel=1e-6)
    assert name != "exact" or after == math.sqrt(before)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        *(("svdpade", method) for method in ("contribution", "eigen", "channel_pairs", "energy")),
        *((name, "contribution") for name in ("gap", "crosscov", "moment")),
    ],
)
def test_all_numbers_of_an_explanation(name: str, method: str, small_net, image: Tensor) -> None:
    view = ModelView.of(small_net(name))
    explanation = explain(view, image, method, 2)
    numbers = metrics(view, view.forward_pass(image), explanation, **SMALL)
    assert list(numbers) == [*DeletionInsertion._fields, "completeness_gap", *CONDITIONING, "entropy"]
    assert numbers["completeness_gap"] == explanation.completeness_gap
    assert numbers["entropy"] == entropy(explanation.map)
    assert (numbers["deletion"] is None) == (explanation.space == "matrix")
    expected = conditioning(view, view.forward_pass(image)) if name == "svdpade" else dict.fromkeys(CONDITIONING)
    assert {key: numbers[key] for key in CONDITIONING} == expected
    assert all(value is None or isinstance(value, float) for value in numbers.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(steps=0), "steps must be a positive integer, got 0"),
        (dict(orders=0), "orders must be a positive integer, got 0"),
        (dict(seed=-1), "seed must be an integer >= 0, got -1"),
        (dict(map=np.zeros((3, 2, 2))), r"a map must be a matrix \(H, W\), got shape \(3, 2, 2\)"),
    ],
)
def test_bad_input(options: dict, message: str, corner: ModelView) -> None:
    with pytest.raises((OptionError, ShapeError), match=message):
        deletion_insertion(corner, checkerboard(), **dict(map=quarter(0, 0), target=1) | options)
