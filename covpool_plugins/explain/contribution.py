"""The contribution map: signed shares of the class score, complete.

With features x_i at M positions, centred where the pool is blind to their mean, and the class score s = F(x) + b,

    c_i = x̃_i · ∂s/∂x_i    and    Σ_i c_i = s - b    for F(t x̃) = t F(x̃),

which holds for every square root of a covariance, also after a fixed number of Newton-Schulz steps. Without the
centring the sum is the same, but a constant added to the features would change the map completely. For a pool that
is not homogeneous, the gradient is averaged along the path t x̃, 0 <= t <= 1 (integrated gradients; Sundararajan,
Taly & Yan, ICML 2017), and the sum is F(x̃) - F(0). A vector normalised in length does not change with the scale at
all: its entries' factors, 1 / (‖z‖ √|z_j|), are held at their values, and the score is a sum over the entries z_j
before that step. Everything is computed in float64, from the features on.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..errors import OptionError
from ..pooling import Pool
from .methods import METHODS, Attribution
from .model_view import ModelView

GAUSS_POINTS = 64
SAME = 1e-6
COMPLETE = 1e-4
MODEL_AGREEMENT = 1e-2

Represent = Callable[[Tensor], Tensor]


@METHODS.register("contribution")
def contribution(view: ModelView, x: Tensor, target: int) -> Attribution:
    """Shares of the score of class ``target`` over the positions of the pooled map, (H, W) in float64.

    Args:
        view: a model with a pool of this package or global average pooling.
        x: input (1, 3, H, W).
        target: the class.

    Raises:
        OptionError: if the model has no such pool, has more than a linear layer behind it, or if its score is no
            sum of shares (a pool that does not change with the scale of the features).
    """
    features, grid, logits = view.features(x)
    pool, classifier = view.float64_head
    X = features.double()
    if pool.out_features != classifier.in_features or not _agree(classifier(pool.represent(X)), logits):
        raise OptionError("the model has more than a linear layer behind its pool: its score has no contribution map")
    shares, score, base = contributions(by_entries(pool, X), X, classifier.weight[target])
    completeness_target = score - base
    gap = abs(shares.sum().item() - completeness_target)
    if not gap <= COMPLETE * abs(completeness_target):
        raise OptionError(
            f"contribution: with pool {pool.pool_type!r} the shares miss the score of {completeness_target:.3g} by "
            f"{gap:.3g}; explain it with another method"
        )
    shares = shares.reshape(grid)
    return Attribution(shares, True, contributions=shares, completeness_target=completeness_target)


def by_entries(pool: Pool, X: Tensor) -> Represent:
    """The pool's ``represent``, with the factors of an element-wise last step held at their values at X."""
    with torch.no_grad():
        before, after = pool.entries(X), pool.represent(X)
        if torch.equal(before, after):
            return pool.represent
        factor = torch.where(before == 0, 0.0, after / before)
    return lambda features: pool.entries(features) * factor


def contributions(represent: Represent, X: Tensor, weight: Tensor) -> tuple[Tensor, float, float]:
    """Shares (M,) of ⟨weight, represent(X)⟩ for features X (1, C, M); the score, and the score of zero features."""
    with torch.no_grad():
        vector = represent(X)
        if _same(vector, represent(X + _shift_like(X))):
            X = X - X.mean(dim=-1, keepdim=True)
        homogeneous = _same(0.5 * vector, represent(0.5 * X))
        base = (represent(torch.zeros_like(X)) @ weight).item()
    gradient = torch.zeros_like(X)
    for point, share in [(1.0, 1.0)] if homogeneous else _gauss_points():
        scaled = (point * X).requires_grad_(True)
        gradient += share * torch.autograd.grad((represent(scaled) @ weight).sum(), scaled)[0]
    return (X * gradient).sum(dim=1)[0], (vector @ weight).item(), base


def _agree(ours: Tensor, logits: Tensor) -> bool:
    """Whether the scores that are explained are those that the model gives."""
    return bool((ours - logits).abs().max() <= MODEL_AGREEMENT * logits.abs().max().clamp_min(1e-3))


def _shift_like(X: Tensor) -> Tensor:
    """A constant per channel, of the size of the features."""
    size = X.square().mean().sqrt()
    return size * torch.linspace(0.5, 1.5, X.shape[1], dtype=X.dtype, device=X.device).unsqueeze(-1)


def _same(first: Tensor, second: Tensor) -> bool:
    return bool((first - second).norm() <= SAME * first.norm())


def _gauss_points() -> list[tuple[float, float]]:
    """Points and weights of Gauss-Legendre quadrature on [0, 1]."""
    points, weights = np.polynomial.legendre.leggauss(GAUSS_POINTS)
    return [(float(p + 1) / 2, float(w) / 2) for p, w in zip(points, weights, strict=True)]
