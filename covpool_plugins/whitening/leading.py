"""The inverse root and the projector of leading eigenvalues, zero for the others.

The divided differences across the cut are f(λ_i) / (λ_i - λ_j), the derivative of the eigenvectors that are kept; that
an eigenvalue may cross the cut has no derivative and none is attempted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import check_integer, check_number
from ..linalg.methods.base import SpectralMethod, option
from ..linalg.methods.eigen import partial_sum


@dataclass(frozen=True)
class Leading(SpectralMethod):
    """f on the leading eigenvalues: (λ + eps)^(-1/2), or one for the projector on their eigenvectors.

    Args:
        projector: which of the two.
        energy: eigenvalues are kept, the largest first, until their sum has this share of the total.
        components: at most so many are kept.
        eps: added to every eigenvalue.
        iterations: ``None`` for the exact gradient; else that of so many power iterations, which is the exact one
            times 1 - x^(iterations + 1), x = λ_min / λ_max, off the diagonal. It is bounded where eigenvalues are
            nearly equal. Exact ties within what is kept have the exact gradient.

    Source: Wang et al., "Backpropagation-Friendly Eigendecomposition", NeurIPS 2019, eq. 9-12.
    """

    projector: bool = False
    energy: float = option(1.0, check_number, "(0, 1]")
    components: int | None = option(None, check_integer, 1)
    eps: float = option(0.0, check_number, "[0, inf)")
    iterations: int | None = option(None, check_integer, 1)

    def dropped(self, eigenvalues: Tensor) -> Tensor | None:
        """True for the eigenvalues (..., n), ascending, that are left out; ``None`` if none can be."""
        n, mask = eigenvalues.shape[-1], None
        if self.energy < 1:
            sums = eigenvalues.cumsum(-1)
            total = sums[..., -1:]
            mask = (total - sums >= self.energy * total) & (total > 0)
        if self.components is not None and self.components < n:
            rank = torch.arange(n, device=eigenvalues.device).expand_as(eigenvalues)
            last = rank < n - self.components
            mask = last if mask is None else mask | last
        return mask

    def values(self, eigenvalues: Tensor) -> Tensor:
        shifted, dropped = eigenvalues + self.eps, self.dropped(eigenvalues)
        f = torch.ones_like(shifted) if self.projector else shifted.rsqrt()
        return f if dropped is None else torch.where(dropped, 0.0, f)

    def divided_differences(self, first: Tensor, second: Tensor) -> Tensor:
        if self.projector:
            return torch.zeros_like(first + second)
        a, b = (first + self.eps).sqrt(), (second + self.eps).sqrt()
        return (a * b * (a + b)).reciprocal_().neg_()

    def coefficients(self, values: Tensor, others: Tensor) -> Tensor:
        # Which are left out depends on all of them: ``others`` are the same ones.
        shifted, dropped = values + self.eps, self.dropped(values)
        first, second = shifted.unsqueeze(-1), shifted.unsqueeze(-2)
        K = self.divided_differences(values.unsqueeze(-1), values.unsqueeze(-2))
        if dropped is not None:
            K = torch.where(dropped.unsqueeze(-1) | dropped.unsqueeze(-2), 0.0, K)
            f = self.values(values)
            gap = (first - second).abs()
            across = (dropped.unsqueeze(-1) ^ dropped.unsqueeze(-2)) & (gap > 0)
            K = torch.where(across, (f.unsqueeze(-1) + f.unsqueeze(-2)) / torch.where(across, gap, 1.0), K)
        return K if self.iterations is None else K * partial_sum(first, second, self.iterations)

    def derivative(self, eigenvalues: Tensor, order: int) -> Tensor | None:
        if self != Leading(eps=self.eps):
            return None
        shifted = eigenvalues + self.eps
        return 0.75 * shifted**-2.5 if order == 2 else (105 / 16) * shifted**-4.5

    @property
    def derivatives_at_zero(self) -> float:
        return float("inf")
