"""What each eigenvalue and each pair of channels of a covariance adds to the score, and where."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from ..checks import check_integer
from ..errors import NotApplicableError
from ..linalg import EigenMethod
from ..pooling import (
    CompactBilinearPool,
    CovariancePool,
    CrossCovariancePool,
    DemocraticWeighting,
    LowRankBilinearPool,
    Pool,
)
from .contribution import Eigenbasis, LinearHead, RootShares, mean_gradient, root_method, root_shares
from .explanation import Explanation
from .methods import EXPLANATIONS, ExplanationMethod
from .model_view import ForwardPass, ModelView

BANDS = 4


def eigen(view: ModelView, passed: ForwardPass, target: int, *, bands: int = BANDS) -> Explanation:
    """Shares of the score by position and by band of eigenvalues; their sum over the bands is the contribution map.

    A band is as many successive eigenvalues as the next one, the largest first: bands of equal energy would put nearly
    all eigenvalues into the last. The extras are

    * ``eigenvalues`` (n,) of the covariance, largest first, and ``normalized`` (n,), those of its root;
    * ``sigma`` (n,), the share of each, √λ_k W̃_kk for an exact root; they sum to score minus bias;
    * ``bands`` (b, H, W), their maps, ``band_edges`` (b + 1,), where in the eigenvalues they begin and end, and
      ``band_shares`` (b,), what they add to the score.

    Args:
        bands: how many; fewer where there are fewer eigenvalues.

    Source: the view of Song, Sebe & Wang, "On the Eigenvalues of Global Covariance Pooling for Fine-grained Visual
    Recognition", T-PAMI 2022, that small eigenvalues carry the details, made visible.
    """
    head = LinearHead.of(view, passed, target)
    root = shares_of_root(head)
    maps, edges = in_bands(root.shares.reshape(-1, *head.grid), bands)
    extras = {
        "eigenvalues": root.eigenvalues,
        "normalized": root.normalized,
        "sigma": root.shares.sum(1),
        "bands": maps,
        "band_edges": edges,
        "band_shares": maps.sum((1, 2)),
    }
    return head.explanation(root.shares.sum(0), root.score, extras=extras)


def energy(view: ModelView, passed: ForwardPass, target: int, *, bands: int = BANDS) -> Explanation:
    """Where the eigenvalues of the covariance come from: e_k(i) = y_ik² / M, which sums to λ_k over the positions.

    The map is Σ_k e_k(i), the energy of each position; it does not depend on the class. The extras are ``eigenvalues``
    (n,), largest first, and, in bands as of :func:`eigen`, ``bands`` (b, H, W) and ``band_edges`` (b + 1,).

    Args:
        bands: how many; fewer where there are fewer eigenvalues.
    """
    features, grid = view.features(passed)
    basis = covariance_basis(view.float64_pool, features.double())
    maps, edges = in_bands((basis.coordinates.square() / features.shape[-1]).reshape(-1, *grid), bands)
    extras = {"eigenvalues": basis.values, "bands": maps, "band_edges": edges}
    return Explanation(maps.sum(0), signed=False, extras=extras)


def channel_pairs(view: ModelView, passed: ForwardPass, target: int, *, strongest: int = 10) -> Explanation:
    """Shares of the score by pair of channels, W ∘ Q (C, C), for the matrix Q that the pool makes.

    They sum to score minus bias. The extras are the ``strongest`` pairs by magnitude: ``pairs`` (n, 2), for a symmetric
    Q with a <= b, and ``pair_shares`` (n,), where the two entries of a pair are added.

    Args:
        strongest: how many pairs are listed, at most.
    """
    head = LinearHead.of(view, passed, target)
    with torch.no_grad():
        products = head.pool.represent(head.X)[0] * head.weight
    shares, symmetric = _as_matrix(head.pool, products)
    pairs = (shares + shares.mT).triu() - shares.diag().diag() if symmetric else shares
    order = pairs.flatten().abs().topk(min(strongest, pairs.numel())).indices
    where = torch.stack([order // pairs.shape[1], order % pairs.shape[1]], dim=1)
    extras = {"pairs": where, "pair_shares": pairs.flatten()[order]}
    return head.explanation(shares, products.sum().item(), extras=extras)


def democratic_weights(view: ModelView, passed: ForwardPass, target: int) -> Explanation:
    """How much each position counts in democratic pooling: the weights α of Σ α_i x_i x_iᵀ / M, (H, W).

    They do not depend on the class. Bursty positions, which repeat what others show, have small ones. For γ = 1, sum
    pooling, all are one.

    Source: Lin, Maji & Koniusz, "Second-order Democratic Aggregation", ECCV 2018.
    """
    pool = view.known_pool()
    if not isinstance(pool, CovariancePool) or not isinstance(pool.weighting, DemocraticWeighting):
        raise _not_applicable(pool, "it gives every position the same weight")
    features, grid = view.features(passed)
    with torch.no_grad():
        alpha = pool.weighting.weights(features.double())
    return Explanation(alpha[0].reshape(grid), signed=False)


def shares_of_root(head: LinearHead) -> RootShares:
    """The score of a head by eigenvalue and position: in closed form, or for other roots by their gradient.

    Raises:
        NotApplicableError: for a pool that is no root of a covariance.
    """
    pool, method = head.pool, root_method(head.pool)
    if method is None:
        reason = "its vector is not the square root of a covariance, so that its score is no sum over eigenvalues"
        raise _not_applicable(pool, reason)
    if isinstance(method, EigenMethod):
        return root_shares(pool, head.X, head.weight)
    assert isinstance(pool, CovariancePool)
    _, gradient, score, _ = mean_gradient(pool.represent, head.X, head.weight)
    basis = Eigenbasis.of(head.X, pool.centered)
    with torch.no_grad():
        root = pool.matrix(pool.represent(head.X)[0])
    normalized = (basis.vectors * (root @ basis.vectors)).sum(0)
    return RootShares(basis.values, normalized, basis.coordinates * (basis.vectors.mT @ gradient[0]), score)


def covariance_basis(pool: Pool, X: Tensor) -> Eigenbasis:
    """The eigenbasis of the covariance or second moment that a pool takes of features (1, C, M), all in float64.

    Raises:
        NotApplicableError: for a pool that takes none.
    """
    if isinstance(pool, CovariancePool):
        with torch.no_grad():
            return Eigenbasis.of(pool.weighting(X), pool.centered)
    if isinstance(pool, (CompactBilinearPool, LowRankBilinearPool)):
        return Eigenbasis.of(X, centered=False)
    raise _not_applicable(pool, "it takes no covariance of its features with themselves")


def in_bands(maps: Tensor, bands: int) -> tuple[Tensor, Tensor]:
    """Sums (b, H, W) of maps (n, H, W) over bands of equally many, and the b + 1 edges of the bands."""
    count = max(1, min(bands, len(maps)))
    edges = torch.linspace(0, len(maps), count + 1).round().long()
    return torch.stack([maps[first:last].sum(0) for first, last in pairwise(edges.tolist())]), edges


def _as_matrix(pool: Pool, entries: Tensor) -> tuple[Tensor, bool]:
    """The vector of a pool as a matrix with the same sum, and whether the matrix is symmetric."""
    if isinstance(pool, CrossCovariancePool):
        rows, columns = (channels // pool.heads for channels in pool.both_channels)
        return torch.block_diag(*entries.view(pool.heads, rows, columns)), False
    if isinstance(pool, CovariancePool):
        return pool.weight_matrix(entries), True
    raise _not_applicable(pool, "its vector is not a matrix of channels by channels")


def _not_applicable(pool: Pool, reason: str) -> NotApplicableError:
    return NotApplicableError(f"not applicable to pool {pool.pool_type!r}: {reason}")


EXPLANATIONS.add("eigen", ExplanationMethod(eigen, bands=check_integer))
EXPLANATIONS.add("energy", ExplanationMethod(energy, bands=check_integer))
EXPLANATIONS.add("channel_pairs", ExplanationMethod(channel_pairs, strongest=check_integer))
EXPLANATIONS.add("democratic_weights", ExplanationMethod(democratic_weights))
