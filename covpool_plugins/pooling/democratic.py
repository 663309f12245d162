"""γ-democratic aggregation: positions weighted so that none of them dominates the second moment."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..checks import check_integer, check_number
from ..linalg.tensors import autocast_off, power_of_two, product
from ..tables import About
from .base import POOLS, widened
from .covariance_pool import CovariancePool, Weighting, bilinear_pool
from .normalizations import Plain


class DemocraticWeighting(Weighting):
    """Features x_i (B, C, M) times √α_i, so that their second moment is Σ α_i x_i x_iᵀ / M.

    With the kernel K_ij = <x_i, x_j>² the weights solve α_i Σ_j K_ij α_j = (Σ_j K_ij)^γ: γ = 1 leaves all weights at
    one (sum pooling), γ = 0 gives every position the same contribution (democratic pooling). The damped Sinkhorn
    iteration finds them: α_i <- α_i ((Σ_j K_ij)^γ / (α_i Σ_j K_ij α_j))^τ from α = 1. The gradient is that of the
    unrolled iteration, weights included.

    The paper writes the iteration for features as they are. Here they are divided by a power of two near their largest
    magnitude first, and the weights are scaled back, because K is of degree four and leaves the range of float32
    early. For τ = 1/2 this changes nothing: the first step finds the common scale of the weights. Positions that are
    zero up to rounding beside that magnitude contribute nothing; the iteration leaves them out, because the equation
    has no finite solution for them when γ < 1.

    Args:
        gamma: γ, 0 <= γ <= 1; 0.5 is what the authors recommend in general.
        iterations: steps of the Sinkhorn iteration; the default is a choice of this project.
        damping: τ, 0 < τ <= 1.

    Source: Lin, Maji & Koniusz, "Second-order Democratic Aggregation", ECCV 2018.

    Raises:
        OptionError: for an option outside its range.

    Examples:
        >>> X = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])  # two positions, the second twice as large
        >>> DemocraticWeighting(gamma=0.0)(X).norm(dim=1)
        tensor([[1., 1.]])
    """

    def __init__(self, *, gamma: float = 0.5, iterations: int = 10, damping: float = 0.5) -> None:
        super().__init__()
        check_number("democratic: gamma", gamma, "[0, 1]")
        check_integer("democratic: iterations", iterations)
        check_number("democratic: damping", damping, "(0, 1]")
        self.gamma = float(gamma)
        self.iterations = iterations
        self.damping = float(damping)

    def weights(self, X: Tensor) -> Tensor:
        """The weights α (B, M) of the positions of features (B, C, M), in float32 at least."""
        alpha, scale = self._scaled_weights(X)
        return alpha * scale ** (2 * self.gamma - 2)

    def forward(self, X: Tensor, mask: Tensor | None = None) -> Tensor:  # masked positions are zero
        alpha, scale = self._scaled_weights(X)
        # √α as a whole: α itself, of the degree 2γ - 2 in the features, may leave the range where its root does not.
        factor = alpha.sqrt() * scale ** (self.gamma - 1)
        return (X * factor.unsqueeze(-2)).to(X.dtype)

    def _scaled_weights(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (B, M) for the features divided by their scale, and that scale (B, 1)."""
        wide = widened(X)
        with autocast_off(X.device.type):
            limits = torch.finfo(wide.dtype)
            scale = power_of_two(wide)
            Y = wide / scale
            dead = Y.detach().square().sum(-2) <= limits.eps**2
            K = product(Y.transpose(-2, -1), Y).square()
            target = torch.where(dead, 1.0, K.sum(-1)) ** self.gamma
            alpha = torch.ones_like(target)
            for _ in range(self.iterations):
                contribution = alpha * product(K, alpha.unsqueeze(-1)).squeeze(-1)
                # Dead positions are cut out before the power, whose slope at zero would be infinite.
                ratio = torch.where(dead, 1.0, target / torch.where(dead, 1.0, contribution))
                alpha = alpha * ratio**self.damping
        return alpha, scale.squeeze(-1)

    def extra_repr(self) -> str:
        return f"gamma={self.gamma:g}, iterations={self.iterations}, damping={self.damping:g}"


def democratic(
    in_channels: int,
    *,
    gamma: float = 0.5,
    iterations: int = 10,
    damping: float = 0.5,
    eps: float = 1e-8,
    **shared: Any,
) -> CovariancePool:
    weighting = DemocraticWeighting(gamma=gamma, iterations=iterations, damping=damping)
    return bilinear_pool(in_channels, "democratic", eps, weighting=weighting, normalization=Plain(), **shared)


POOLS.add(
    "democratic",
    democratic,
    About(
        "second moment of positions weighted by Sinkhorn iterations, signed square root, l2 norm",
        "exact, also through the weights",
        "ECCV 2018",
    ),
)
