"""The contribution map: signed shares of the class score, complete.

With features x_i at M positions, centred where the pool is blind to their mean, and the class score s = F(x) + b,

    c_i = x̃_i · ∂s/∂x_i    and    Σ_i c_i = s - b    for F(t x̃) = t F(x̃),

which holds for every square root of a covariance, also after a fixed number of Newton-Schulz steps. Without the
centring the sum is the same, but a constant added to the features would change the map completely. For a pool that
is not homogeneous, the gradient is averaged along the path t x̃, 0 <= t <= 1 (integrated gradients; Sundararajan,
Taly & Yan, ICML 2017), and the sum is F(x̃) - F(0). A vector normalised in length does not change with the scale at
all: its entries' factors, 1 / (‖z‖ √|z_j|), are held at their values, and the score is a sum over the entries z_j
before that step. Everything is computed in float64, from the features on. A class token that the classifier takes
beside the pooled vector has a share of its own.

Roots by an eigen-decomposition have a closed form. With P = X̃ X̃ᵀ / M = U Λ Uᵀ, y_i = Uᵀ x̃_i, the class's symmetric
weights W and W̃ = Uᵀ W U, the score ⟨W, P^½⟩ has the shares

    c_ik = (2 / M) y_ik Σ_l y_il W̃_kl / (√λ_k + √λ_l),    Σ_k c_ik = x̃_i · ∂s/∂x_i,    Σ_i c_ik = σ_k = √λ_k W̃_kk,

and Σ σ_k is the score. Another gradient of the root puts its own K_kl in place of 1 / (√λ_k + √λ_l), and for any root
with a gradient g the shares are (Uᵀ x̃_i)_k (Uᵀ g_i)_k.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..checks import check_integer
from ..errors import NotApplicableError
from ..linalg import EigenMethod, Exact, Method
from ..linalg.covariance import center
from ..linalg.feature_functions import Rule, decompose_features
from ..pooling import CovariancePool, MatrixPower, MatrixRoot, Pool, Weighting
from .backprop import gauss_points
from .explanation import Explanation
from .methods import EXPLANATIONS, ExplanationMethod
from .model_view import ForwardPass, ModelView

GAUSS_POINTS = 64
PATH_POINTS = 48
SAME = 1e-6
COMPLETE = 1e-4
ROUNDING = 1e-14
MODEL_AGREEMENT = 1e-2
MORE_THAN_LINEAR = "the model has more than a linear layer behind its pool: its score has no contribution map"

Represent = Callable[[Tensor], Tensor]


class LinearHead(NamedTuple):
    """A pool with nothing but a linear layer behind it, for one input and one class, in float64.

    Args:
        pool: in float64.
        X: features (1, C, M).
        grid: rows and columns of the M positions.
        weight: the class's weights (D,) of the pooled vector.
        score: what the model gives, without the bias and the class token's share.
        tolerance: how far a score in float64 may be from it.
        token: the class token's share of the score, where the classifier takes one.
    """

    pool: Pool
    X: Tensor
    grid: tuple[int, int]
    weight: Tensor
    score: float
    tolerance: float
    token: Tensor | None

    @classmethod
    def of(cls, view: ModelView, passed: ForwardPass, target: int) -> LinearHead:
        """The head of a model.

        Raises:
            NotApplicableError: for a model without a pool that we know, or with more than a linear layer behind it.
        """
        (X, grid), pool, classifier = view.features(passed), view.float64_pool, view.known_classifier()
        weight, token = classifier.weight[target].double(), passed.token
        if not _is_linear(passed, pool.out_features, weight.numel()):
            raise NotApplicableError(MORE_THAN_LINEAR)
        if grid == (1, 1):
            raise NotApplicableError("the pool sees one position only: the whole score is its share")
        weight, token_weight = weight[: pool.out_features], weight[pool.out_features :]
        token_share = None if token is None else token[0].double() @ token_weight
        bias = 0.0 if classifier.bias is None else classifier.bias[target].item()
        score = passed.logits[0, target].item() - bias - (0.0 if token_share is None else token_share.item())
        tolerance = MODEL_AGREEMENT * passed.logits.abs().max().clamp_min(1e-3).item()
        return cls(pool, X.double(), grid, weight, score, tolerance, token_share)

    def explanation(
        self, shares: Tensor, score: float, base: float = 0.0, extras: Mapping[str, Tensor] | None = None
    ) -> Explanation:
        """Shares (M,) as a map, or (C, C) as a matrix, with the class token's share beside them.

        Args:
            shares: they sum to ``score - base``.
            score: of the features, by the head in float64.
            base: the score of zero features.
            extras: of the explanation.

        Raises:
            NotApplicableError: if the score is not the model's, or if the shares miss it.
        """
        if not abs(score - self.score) <= self.tolerance:
            raise NotApplicableError(MORE_THAN_LINEAR)
        whole = score - base
        gap = abs(shares.sum().item() - whole)
        # Against the shares' size: a score may be next to nothing because they cancel.
        if not gap <= COMPLETE * max(abs(whole), shares.abs().sum().item()):
            raise NotApplicableError(
                f"with pool {self.pool.pool_type!r} the shares miss the score of {whole:.3g} by {gap:.3g}; "
                "explain it with another method"
            )
        every = dict(extras or {})
        if self.token is not None:
            every["class_token"] = self.token
            whole += self.token.item()
        if shares.ndim == 1:
            return Explanation(shares.reshape(self.grid), signed=True, completeness_target=whole, extras=every)
        return Explanation(shares, signed=True, completeness_target=whole, extras=every, space="matrix")


def contribution(view: ModelView, passed: ForwardPass, target: int) -> Explanation:
    """Shares of the score over the positions of the pooled map, (H, W) in float64.

    Where the classifier takes the class token too, its share is ``extras["class_token"]``. Refused for a score that is
    no sum of shares, of a pool that does not change with the scale of the features.
    """
    head = LinearHead.of(view, passed, target)
    if isinstance(root_method(head.pool), EigenMethod):
        root = root_shares(head.pool, head.X, head.weight)
        return head.explanation(root.shares.sum(0), root.score)
    return head.explanation(*contributions(by_entries(head.pool, head.X), head.X, head.weight))


def integrated_head(view: ModelView, passed: ForwardPass, target: int, *, points: int = PATH_POINTS) -> Explanation:
    """x̃_i · ∫ ∂s/∂x_i(t x̃) dt over 0 <= t <= 1, by Gauss-Legendre quadrature: shares of the score, (H, W) in float64.

    The path scales the pooled features, not the picture, so that one forward pass of the network is enough. For a
    square root it is the contribution map; for a logarithm, a power or a learned pool it is complete too. The factors
    of an element-wise last step (signed roots, length one) are held at their values, as in the contribution map.

    Args:
        points: of the quadrature, each a forward and backward pass through the pool.

    Source: Sundararajan, Taly & Yan, "Axiomatic Attribution for Deep Networks", ICML 2017.
    """
    head = LinearHead.of(view, passed, target)
    return head.explanation(*contributions(by_entries(head.pool, head.X), head.X, head.weight, points))


def by_entries(pool: Pool, X: Tensor) -> Represent:
    """The pool's ``represent``, with the factors of an element-wise last step held at their values at X.

    Entries that are rounding errors, those of a channel that is zero everywhere, count as zero: the root of such an
    entry and its factor are far larger than it is.
    """
    with torch.no_grad():
        before, after = pool.entries(X), pool.represent(X)
        if torch.equal(before, after):
            return pool.represent
        factor = torch.where(before.abs() <= ROUNDING * before.abs().max(), 0.0, after / before)
    return lambda features: pool.entries(features) * factor


def contributions(
    represent: Represent, X: Tensor, weight: Tensor, points: int | None = None
) -> tuple[Tensor, float, float]:
    """Shares (M,) of ⟨weight, represent(X)⟩ for features X (1, C, M); the score, and the score of zero features.

    Args:
        represent: features to vectors (1, D).
        X: the features.
        weight: (D,).
        points: of the average along the path; by default one for a homogeneous ``represent``, otherwise 64.
    """
    centred, gradient, score, base = mean_gradient(represent, X, weight, points)
    return (centred * gradient).sum(dim=1)[0], score, base


def mean_gradient(
    represent: Represent, X: Tensor, weight: Tensor, points: int | None = None
) -> tuple[Tensor, Tensor, float, float]:
    """The features (1, C, M) that count, and the gradient averaged along their scale; then as :func:`contributions`."""
    with torch.no_grad():
        vector = represent(X)
        # A constant per channel, of the size of the features.
        shift = X.square().mean().sqrt() * torch.linspace(0.5, 1.5, X.shape[1]).to(X).unsqueeze(-1)
        if _same(vector, represent(X + shift)):
            X = X - X.mean(dim=-1, keepdim=True)
        homogeneous = points is None and _same(0.5 * vector, represent(0.5 * X))
        base = (represent(torch.zeros_like(X)) @ weight).item()
    gradient = torch.zeros_like(X)
    # Denser towards zero, where a logarithm is steep.
    path = [(s**2, 2 * s * share) for s, share in zip(*gauss_points(points or GAUSS_POINTS), strict=True)]
    for point, share in [(1.0, 1.0)] if homogeneous else path:
        with torch.enable_grad():
            scaled = (point * X).requires_grad_(True)
            gradient += share * torch.autograd.grad((represent(scaled) @ weight).sum(), scaled)[0]
    return X, gradient, (vector @ weight).item(), base


def _is_linear(passed: ForwardPass, width: int, weights: int) -> bool:
    """Whether the classifier takes the pool's vector, with or without the class token, and gives the class scores."""
    if passed.pooled is None or passed.vector is None or passed.scores is None:
        return False
    token_width = 0 if passed.token is None else passed.token.shape[1]
    if weights != width + token_width or passed.scores.shape != passed.logits.shape:
        return False
    return _agree(passed.vector[:, :width], passed.pooled) and _agree(passed.scores, passed.logits)


def _agree(ours: Tensor, theirs: Tensor) -> bool:
    """Whether the numbers that are explained are those that the model gives."""
    return bool((ours - theirs).abs().max() <= MODEL_AGREEMENT * theirs.abs().max().clamp_min(1e-3))


def _same(first: Tensor, second: Tensor) -> bool:
    return bool((first - second).norm() <= SAME * first.norm())


class Eigenbasis(NamedTuple):
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


class RootShares(NamedTuple):
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
    if not all(type(part) in (Weighting, nn.Identity) for part in (pool.weighting, pool.elementwise)):
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


EXPLANATIONS.add("contribution", ExplanationMethod(contribution))
EXPLANATIONS.add("integrated_head", ExplanationMethod(integrated_head, points=check_integer))
