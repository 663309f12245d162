"""Integrated gradients through the head are complete for every pool, and the contribution map where that is exact."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from covpool_plugins.errors import OptionError
from covpool_plugins.explain import explain
from covpool_plugins.pooling import list_pools

# Degree two or more in the features and no root or logarithm: a polynomial, which few points integrate exactly.
POLYNOMIALS = ["gap", "dropcov", "lrbp"]


@pytest.mark.parametrize("name", list_pools())
def test_shares_sum_to_the_score_in_float64(name: str, small_net, image: Tensor) -> None:
    net, image = small_net(name).double(), image.double()
    found = explain(net, image, "integrated_head", target=3)
    with torch.no_grad():
        vector = net.head.global_pool(net.forward_features(image))
        zero = net.head.global_pool.represent(
            torch.zeros_like(net.head.global_pool.features(net.forward_features(image)))
        )
        expected = (net.head.fc(vector) - net.head.fc(zero))[0, 3].item()
    assert found.map.shape == (8, 8) and found.signed
    assert found.completeness_target == pytest.approx(expected, rel=1e-8)
    assert abs(found.map.sum() - expected) < 1e-5 * np.abs(found.map).sum()


@pytest.mark.parametrize("name", list_pools())
def test_it_is_the_contribution_map(name: str, small_net, image: Tensor) -> None:
    """Of homogeneous pools the gradient is the same along the path; of others both are integrals."""
    net, image = small_net(name).double(), image.double()
    found, expected = (explain(net, image, method, 1).map for method in ("integrated_head", "contribution"))
    tolerance = 1e-4 if name in ("svpn", "crosscov") else 1e-5  # their eps makes them not quite homogeneous
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("name", POLYNOMIALS)
def test_two_points_are_enough_for_a_polynomial_of_low_degree(name: str, small_net, image: Tensor) -> None:
    net, image = small_net(name).double(), image.double()
    few, many = (explain(net, image, "integrated_head", 1, points=points).map for points in (2, 24))
    np.testing.assert_allclose(few, many, rtol=1e-9, atol=1e-12 * np.abs(many).max())


def test_too_few_points_are_noticed(small_net, image: Tensor) -> None:
    net = small_net("logcov", reduce_channels=None)
    with pytest.raises(OptionError, match=r"^integrated_head: with pool 'logcov' the shares miss the score"):
        explain(net, image, "integrated_head", 0, points=1)
    gaps = [explain(net, image, "integrated_head", 0, points=points).completeness_gap for points in (12, 48)]
    assert gaps[1] < 1e-6 and gaps[1] < 0.1 * gaps[0]


@pytest.mark.parametrize("points", [0, -1, 1.5, True])
def test_bad_points(points: object, small_net, image: Tensor) -> None:
    with pytest.raises(OptionError, match=f"integrated_head: points must be a positive integer, got {points!r}"):
        explain(small_net(), image, "integrated_head", 0, points=points)
