"""Shares by eigenvalue, by position and by pair of channels add up to the score, and are what the formulas say."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from support.explanations import decaying_features, heads
from torch import Tensor, nn

from covpool_plugins.errors import NotApplicableError
from covpool_plugins.explain import ModelView, explain
from covpool_plugins.explain.contribution import (
    Eigenbasis,
    by_entries,
    contributions,
    mean_gradient,
    root_method,
    root_shares,
)
from covpool_plugins.explain.spectral_maps import in_bands
from covpool_plugins.linalg import EigenMethod, covariance, list_methods, sqrtm
from covpool_plugins.pooling import CovariancePool, CrossCovariancePool, create_pool, list_pools

POOLS = {name: create_pool(name, 4) for name in list_pools()}
ROOTS = [name for name, pool in POOLS.items() if root_method(pool) is not None]
EIGEN_ROOTS = [name for name in ROOTS if isinstance(root_method(POOLS[name]), EigenMethod)]
MATRICES = [name for name, pool in POOLS.items() if isinstance(pool, (CovariancePool, CrossCovariancePool))]
SECOND_MOMENTS = [n for n, pool in POOLS.items() if isinstance(pool, CovariancePool) or n in ("cbp", "lrbp")]
SIZES = pytest.mark.parametrize("positions", [9, 60], ids=["fewer positions", "more positions"])


def score(net: nn.Module, image: Tensor, target: int) -> float:
    with torch.no_grad():
        return (net(image)[0, target] - net.head.fc.bias[target]).item()


def weighted_features(view: ModelView, image: Tensor) -> Tensor:
    """What the pool takes the covariance of."""
    with torch.no_grad():
        X = view.features(view.forward_pass(image))[0]
        return view.pool.weighting(X) if isinstance(view.pool, CovariancePool) else X


@pytest.mark.parametrize("name", [name for name in POOLS if name != "gap"])
def test_roots_are_the_pools_whose_square_is_the_covariance(name: str) -> None:
    pool, X, is_root = create_pool(name, 6, reduce_channels=6).double().eval(), decaying_features(6, 60), False
    if isinstance(pool, CovariancePool):
        vector, A = pool.represent(X), covariance(X)
        Q = pool.matrix(vector) if pool.vectorize == "triu" else vector.view(1, 6, 6)
        # Not ``gaussian``, whose matrix is larger; 0.1 for the three steps of ``temporal``.
        is_root = Q.shape == A.shape and bool((Q @ Q - A).norm() < 0.1 * A.norm())
    assert (name in ROOTS) == is_root


@heads(ROOTS, fast=["svdpade", "isqrt", "svdtopn", "mpa"])
def test_eigen_sums(name: str, small_net, image: Tensor) -> None:
    net, image = small_net(name).double(), image.double()
    view = ModelView.of(net)
    explanation, map = explain(view, image, "eigen", 3), explain(view, image, "contribution", 3).map
    expected, extras = score(net, image, 3), explanation.extras
    assert explanation.signed and explanation.map.shape == (8, 8) and extras["bands"].shape == (4, 8, 8)
    size = np.abs(map).sum()
    np.testing.assert_allclose(explanation.map, map, rtol=0, atol=1e-8 * size)
    np.testing.assert_allclose(extras["bands"].sum(0), map, rtol=0, atol=1e-8 * size)
    for total in (
        explanation.map.sum(),
        extras["sigma"].sum(),
        extras["band_shares"].sum(),
        explanation.completeness_target,
    ):
        assert abs(total - expected) < 1e-8 * size
    edges = extras["band_edges"]
    in_each = [extras["sigma"][first:last].sum() for first, last in pairwise(edges)]
    np.testing.assert_allclose(extras["band_shares"], in_each, rtol=0, atol=1e-8 * size)
    assert explanation.completeness_gap < 1e-8 * size / abs(expected)
    single = explain(small_net(name), image.float(), "eigen", 3)
    assert abs(single.map.sum() - explanation.map.sum()) < 1e-3 * size
    np.testing.assert_allclose(single.extras["eigenvalues"][:5], extras["eigenvalues"][:5], rtol=1e-3)


@SIZES
@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("vectorize", ["triu", "full"])
@heads([n for n in EIGEN_ROOTS if n in list_methods("sqrtm") or n == "powcov"], fast=["svdpade", "svdtopn", "powcov"])
def test_closed_form_agrees_with_autograd(name: str, vectorize: str, centered: bool, positions: int) -> None:
    """With the gradient of each method, approximate ones too."""
    pool = create_pool(name, 16, vectorize=vectorize, centered=centered, reduce_channels=None).double()
    X, weight = decaying_features(16, positions), torch.randn(pool.out_features, dtype=torch.float64)
    if not centered:
        X = X - X.mean(-1, keepdim=True)  # the leading eigenvalue would leave the others to rounding
    root = root_shares(pool, X, weight)
    shares, expected, _ = contributions(by_entries(pool, X), X, weight)
    centred, gradient, _, _ = mean_gradient(pool.represent, X, weight)
    basis = Eigenbasis.of(X, centered)
    per_eigenvalue = (basis.vectors.mT @ centred[0]) * (basis.vectors.mT @ gradient[0])
    scale = shares.abs().max().item()
    assert root.score == pytest.approx(expected, rel=1e-10)
    torch.testing.assert_close(root.shares.sum(0), shares, rtol=1e-7, atol=1e-7 * scale)
    torch.testing.assert_close(root.shares, per_eigenvalue, rtol=1e-6, atol=1e-6 * scale)


REFUSALS = {
    "eigen": (ROOTS, ".* no sum over eigenvalues$"),
    "energy": (SECOND_MOMENTS, "it takes no covariance"),
    "channel_pairs": (MATRICES, "its vector is not"),
    "democratic_weights": (["democratic"], "it gives every"),
}


@heads()
def test_other_pools_are_refused(name: str, small_net, image: Tensor) -> None:
    view = ModelView.of(small_net(name))
    for method, (applicable, reason) in REFUSALS.items():
        if name not in applicable:
            with pytest.raises(NotApplicableError, match=f"^{method}: not applicable to pool '{name}': {reason}"):
                explain(view, image, method, 0)


@SIZES
def test_sigma_is_the_root_times_the_rotated_weights(positions: int) -> None:
    pool, X = CovariancePool(8, "exact", reduce_channels=None), decaying_features(8, positions)
    weight = torch.randn(pool.out_features, dtype=torch.float64)
    root = root_shares(pool, X, weight)
    A, W = covariance(X)[0], pool.weight_matrix(weight)
    values, U = torch.linalg.eigh(A)
    sigma = (values.clamp_min(0).sqrt() * (U.mT @ W @ U).diagonal()).flip(0)
    torch.testing.assert_close(root.shares.sum(1), sigma[: len(root.eigenvalues)], rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(root.normalized.square(), root.eigenvalues)
    torch.testing.assert_close(root.score, (W * sqrtm(A)).sum().item())


@SIZES
def test_what_a_method_leaves_out_has_no_share(positions: int) -> None:
    pool, X = create_pool("svdtopn", 12, n=3, reduce_channels=None).double(), decaying_features(12, positions)
    weight = torch.randn(pool.out_features, dtype=torch.float64)
    root = root_shares(pool, X, weight)
    assert len(root.eigenvalues) > 6 and not root.shares[3:].any() and not root.normalized[3:].any()
    assert root.score == pytest.approx((pool.represent(X)[0] @ weight).item(), rel=1e-10)
    assert root.shares.sum().item() == pytest.approx(root.score, rel=1e-10)


@heads(SECOND_MOMENTS)
def test_energy_sums_to_the_eigenvalues(name: str, small_net, image: Tensor) -> None:
    view = ModelView.of(small_net(name).double())
    explanation, X = explain(view, image.double(), "energy", 0), weighted_features(view, image.double())
    A = covariance(X, getattr(view.pool, "centered", False))[0]
    values = torch.linalg.eigvalsh(A).flip(0).numpy()[: len(explanation.extras["eigenvalues"])]
    np.testing.assert_allclose(explanation.extras["eigenvalues"], values, rtol=1e-8, atol=1e-10 * values[0])
    edges = explanation.extras["band_edges"]
    for band, (first, last) in zip(explanation.extras["bands"], pairwise(edges), strict=True):
        assert band.min() >= 0 and band.sum() == pytest.approx(values[first:last].sum(), rel=1e-8)
    assert explanation.map.sum() == pytest.approx(A.trace().item(), rel=1e-8) and not explanation.signed
    assert explanation.contributions is None


def test_heads_of_a_cross_covariance_are_blocks_of_channel_pairs(small_net, image: Tensor) -> None:
    net, image = small_net("crosscov", heads=2, reduce_channels=(8, 6)).double(), image.double()
    map = explain(net, image, "channel_pairs", 1).map
    assert map.shape == (8, 6) and not map[:4, 3:].any() and not map[4:, :3].any()
    assert abs(map.sum() - score(net, image, 1)) < 1e-8 * np.abs(map).sum()


@heads(MATRICES)
def test_channel_pairs_sum_to_the_score(name: str, small_net, image: Tensor) -> None:
    net, image = small_net(name).double(), image.double()
    map = explain(net, image, "channel_pairs", 1, strongest=7)
    expected, size = score(net, image, 1), np.abs(map.map).sum()
    assert map.space == "matrix" and map.signed and map.map.shape[0] > 1
    assert abs(map.map.sum() - expected) < 1e-8 * size
    pairs, shares = map.extras["pairs"], map.extras["pair_shares"]
    assert pairs.dtype == np.int64 and pairs.shape == (7, 2) and len(np.unique(pairs, axis=0)) == 7
    assert (np.diff(np.abs(shares)) <= 0).all()
    symmetric = name != "crosscov"
    for (a, b), share in zip(pairs, shares, strict=True):
        both = map.map[a, b] + (map.map[b, a] if symmetric and a != b else 0)
        assert share == pytest.approx(both, rel=1e-10) and (a <= b or not symmetric)
    every = explain(net, image, "channel_pairs", 1, strongest=10**6).extras["pair_shares"]
    assert every.sum() == pytest.approx(map.map.sum(), abs=1e-8 * size)


@pytest.mark.parametrize(("count", "bands"), [(12, 4), (13, 4), (3, 5), (1, 4), (0, 4), (49, 1)])
def test_bands_are_of_almost_equal_length(count: int, bands: int) -> None:
    maps = torch.randn(count, 2, 3, dtype=torch.float64)
    sums, edges = in_bands(maps, bands)
    lengths = edges.diff()
    assert len(sums) == max(1, min(bands, count)) == len(lengths) and edges[0] == 0 and edges[-1] == count
    assert lengths.max() - lengths.min() <= 1
    torch.testing.assert_close(sums.sum(0), maps.sum(0))


def test_a_picture_without_features_has_no_shares(small_net, image: Tensor) -> None:
    """Zero features: nothing to decompose, and a score that is the bias."""
    net = small_net("exact", reduce_channels=None)
    nn.init.zeros_(net.stage2[1].norm.weight), nn.init.constant_(net.stage2[1].norm.bias, -1e6)
    map = explain(net, image, "eigen", 0)
    assert len(map.extras["sigma"]) == 0 and (map.map == 0).all() and map.completeness_gap == 0


@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_democratic_weights_equalise_what_positions_contribute(gamma: float, small_net, image: Tensor) -> None:
    """α_i Σ_j K_ij α_j = (Σ_j K_ij)^γ, in the place of each position."""
    net = small_net("democratic", gamma=gamma, iterations=200).double()
    explanation = explain(net, image.double(), "democratic_weights", 0)
    with torch.no_grad():
        X = net.forward_features(image.double()).flatten(2)[0]
    K, alpha = (X.T @ X).square(), torch.from_numpy(explanation.map).flatten()
    torch.testing.assert_close(alpha * (K @ alpha), K.sum(1) ** gamma, rtol=1e-6, atol=0)
    assert explanation.map.shape == (8, 8) and not explanation.signed
    assert explanation.map.std() > 0.01 * explanation.map.mean()


def test_sum_pooling_has_weights_of_one_for_every_class(small_net, image: Tensor) -> None:
    view = ModelView.of(small_net("democratic", gamma=1.0))
    for target in (0, 3):
        np.testing.assert_allclose(explain(view, image, "democratic_weights", target).map, 1, 1e-6)
