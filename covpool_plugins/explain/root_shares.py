"""Shares of the class score by position and eigenvalue, for pools that are the square root of a covariance.

With P = X̃ X̃ᵀ / M = U Λ Uᵀ, y_i = Uᵀ x̃_i, the class's symmetric weights W and W̃ = Uᵀ W U, the score ⟨W, P^½⟩ has the
shares

    c_ik = (2 / M) y_ik Σ_l y_il W̃_kl / (√λ_k + √λ_l),    Σ_k c_ik = x̃_i · ∂s/∂x_i,    Σ_i c_ik = σ_k = √λ_k W̃_kk,

and Σ σ_k is the score. Another gradient of the root puts its own K_kl in place of 1 / (√λ_k + √λ_l), and for any root
with a gradient g the shares are (Uᵀ x̃_i)_k (Uᵀ g_i)_k.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..linalg import EigenMethod, Exact, Method
from ..linalg.covariance import center
from ..linalg.feature_functions import Rule, decompose_features
from ..pooling import CovariancePool, MatrixPower, MatrixRoot, Pool, Weighting


@dataclass(frozen=True, eq=False)
class Eigenbasis:
    """Of the covariance of features (C, M), without the eigenvalues that cannot be told from zero; largest first.

    Args:
        values: eigenvalues λ (n,).
        vectors: U (C, n).
        coordinates: y = Uᵀ X̃ (n, M).
    """

    values: Tensor
    vectors: Tensor
    coordinates: Tensor

    @classmethod
    def of(cls, X: Tensor, centered: bool) -> Eigenbasis:
        """Of features (1, C, M) in float64."""
        with torch.no_grad():
            values, U, _ = decompose_features(X, Rule(Exact(), centered, True, True))
            order = values[0].nonzero().squeeze(-1).flip(-1)  # ascending before
            vectors = U[0][:, order]
            return cls(values[0][order], vectors, vectors.mT @ center(X, centered)[0][0])


@dataclass(frozen=True, eq=False)
class RootShares:
    """What a score is made of.

    Args:
        eigenvalues: λ (n,) of the covariance, largest first.
        normalized: (n,), of the root.
        shares: c (n, M).
        score: their sum.
    """

    eigenvalues: Tensor
    normalized: Tensor
    shares: Tensor
    score: float


def root_method(pool: Pool) -> Method | None:
    """How a pool takes the square root of a covariance, if its vector is that root and nothing else."""
    if not isinstance(pool, CovariancePool):
        return None
    if not all(type(part) in (Weighting, torch.nn.Identity) for part in (pool.weighting, pool.elementwise)):
        return None
    normalization = pool.normalization
    if isinstance(normalization, MatrixPower):
        return Exact() if float(normalization.p) == 0.5 else None
    return normalization.method if isinstance(normalization, MatrixRoot) else None


def root_shares(pool: Pool, X: Tensor, weight: Tensor) -> RootShares:
    """The closed form, for a root by eigen-decomposition.

    Where the method leaves eigenvalues out, they and the features' parts along them have no share.

    Args:
        pool: one with an :class:`~covpool_plugins.linalg.EigenMethod` as its :func:`root_method`, in float64.
        X: features (1, C, M) in float64.
        weight: (C(C+1)/2,) or (C²,) in float64.
    """
    method = root_method(pool)
    assert isinstance(pool, CovariancePool) and isinstance(method, EigenMethod)
    basis = Eigenbasis.of(X, pool.centered)
    ascending = torch.cat([X.new_zeros(min(X.shape[1:]) - len(basis.values)), basis.values.flip(0)])
    kept = method.truncate(ascending).flip(0)[: len(basis.values)]
    s = kept.sqrt()
    W = basis.vectors.mT @ pool.weight_matrix(weight) @ basis.vectors
    y = basis.coordinates * (s > 0).unsqueeze(-1)
    shares = 2 / X.shape[-1] * y * ((W * method.coefficients(kept, kept)) @ y)
    return RootShares(basis.values, s, shares, (W.diagonal() * s).sum().item())
