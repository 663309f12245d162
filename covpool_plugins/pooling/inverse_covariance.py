"""The inverse of the covariance, as it is or made sparse."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..checks import check_integer, check_number
from ..linalg import Compute, Vectorize, covariance, inv_sqrtm
from ..linalg.tensors import identity_like, power_of_two, product, symmetrize, trace, transpose
from ..tables import About
from .base import POOLS
from .held_size import HeldSizePool, of_unit_size
from .normalizations import Normalization

INVERSE_STEPS = 7
# J: everywhere, and besides on the diagonal, where the released code draws from [0, 1e-9] in every call.
JITTER, DIAGONAL_JITTER = 1e-10, 0.5e-9


class IterativeInverse(Normalization):
    """What takes products only: it needs float64 no more than the iterative roots do, and exports."""

    @property
    def is_exportable(self) -> bool:
        return True

    @property
    def is_iterative(self) -> bool:
        return True

    def forward(self, X: Tensor, centered: bool, compute: Compute, vectorize: Vectorize) -> Tensor:
        wide = compute == "float64" or X.dtype == torch.float64
        return super().forward(X, centered, "float64" if wide else "float32", vectorize)


class Precision(IterativeInverse):
    """(A + J)⁻¹, the precision matrix, by Newton-Schulz steps; J is a fixed jitter of 1e-10 to 1e-9.

    A zero covariance gives zeros; in the released code the inverse of the jitter, 1e9.

    Args:
        iterations: steps; with k of them no eigenvalue of the result exceeds 1.5^(2k) / tr A, by default 292 / tr A.

    Source: baseline of Rahman, Koniusz, Wang, Zhou, Moghadam & Sun, "Learning Partial Correlation Based Deep Visual
    Representation for Image Classification", CVPR 2023, as in the authors' code.

    Raises:
        OptionError: unless ``iterations`` is a positive integer.

    Examples:
        >>> x = torch.tensor([[1.0, 1.0, -1.0, -1.0], [2.0, -2.0, 2.0, -2.0]]).view(1, 2, 2, 2)  # variances 1 and 4
        >>> pool = create_pool("precision", 2, reduce_channels=None)
        >>> pool.matrix(pool(x)).diagonal(dim1=-2, dim2=-1)
        tensor([[1.0000, 0.2500]])
    """

    in_range = False

    def __init__(self, *, iterations: int = INVERSE_STEPS) -> None:
        super().__init__()
        check_integer("precision: iterations", iterations)
        self.iterations = iterations

    def of_features(self, X: Tensor, centered: bool) -> Tensor:
        unit = power_of_two(X).clamp_min(1)  # (unit² A + J)⁻¹ in numbers that stay in range
        A = covariance(X / unit, centered)
        zero = is_zero_covariance(A)
        found = inverse(torch.where(zero, identity_like(A), A + jitter(A) / unit / unit), self.iterations)
        return torch.where(zero, 0.0, found / unit / unit)

    def extra_repr(self) -> str:
        return f"iterations={self.iterations}"


class SparseInverse(IterativeInverse):
    """Sparse inverse covariance Λ / √(tr Λ), by proximal gradient steps from the inverse Λ = A⁻¹ of A = Σ / tr Σ.

    For i = 0 ... n - 2, with G = A - Λ⁻¹ and η = step_size · (1 - i / (n - 1)):

        Λ <- relu(relu(Λ) - η (G + sparsity)) - relu(relu(-Λ) - η (sparsity - G)),    Λ <- (Λ + Λᵀ) / 2.

    The released code takes the n-th step too, whose η is zero. Both inverses are seven Newton-Schulz steps of the
    matrix plus a jitter, see :class:`Precision`; on 256 channels it is their bound of the eigenvalues, 292, that
    regularises most. The result does not change with the scale of the features; a zero covariance gives zeros.

    Args:
        iterations: n, at least two.
        step_size: of the first step.
        sparsity: the weight of ‖Λ‖₁; 0.01 makes 1 to 7 % of the entries zero, 0.1 about half.

    Source: iSICE: Rahman, Koniusz, Wang, Zhou, Moghadam & Sun, "Learning Partial Correlation Based Deep Visual
    Representation for Image Classification", CVPR 2023; the formulas are those of the authors' code.

    Raises:
        OptionError: for an option outside its range.

    Examples:
        >>> create_pool("isice", 8, reduce_channels=None, sparsity=0.1)(torch.randn(2, 8, 7, 7)).shape
        torch.Size([2, 36])
    """

    def __init__(self, *, iterations: int = 5, step_size: float = 5.0, sparsity: float = 0.01) -> None:
        super().__init__()
        check_integer("isice: iterations", iterations, 2)
        check_number("isice: step_size", step_size, "(0, inf)")
        check_number("isice: sparsity", sparsity, "[0, inf)")
        self.iterations = iterations
        self.step_size = float(step_size)
        self.sparsity = float(sparsity)

    def of_features(self, X: Tensor, centered: bool) -> Tensor:
        S = covariance(of_unit_size(X), centered)
        zero = is_zero_covariance(S)
        A = torch.where(zero, identity_like(S), S)
        A = A / trace(A)
        L = inverse(A + jitter(A), INVERSE_STEPS)
        for i in range(self.iterations - 1):
            G = A - inverse(L + jitter(A), INVERSE_STEPS)
            step = self.step_size * (1 - i / (self.iterations - 1))
            positive = (L.relu() - step * (G + self.sparsity)).relu()
            negative = ((-L).relu() - step * (self.sparsity - G)).relu()
            L = symmetrize(positive - negative)
        return torch.where(zero, 0.0, L / trace(L).sqrt())

    def extra_repr(self) -> str:
        return f"iterations={self.iterations}, step_size={self.step_size:g}, sparsity={self.sparsity:g}"


def inverse(A: Tensor, iterations: int) -> Tensor:
    """A⁻¹ as the square of its inverse root, by so many Newton-Schulz steps on A over its trace."""
    root = inv_sqrtm(A, "newton_schulz", scaling="trace", iterations=iterations)
    return product(root, transpose(root))  # one tensor twice is more than Dynamo takes


def jitter(A: Tensor) -> Tensor:
    """J, for matrices like A (..., C, C)."""
    return JITTER + DIAGONAL_JITTER * identity_like(A)


def is_zero_covariance(A: Tensor) -> Tensor:
    """True for each covariance (..., C, C) of constant features; shape (..., 1, 1)."""
    return trace(A.detach()) <= 0


def precision(in_channels: int, *, iterations: int = INVERSE_STEPS, **shared: Any) -> HeldSizePool:
    normalization = Precision(iterations=iterations)
    return HeldSizePool(in_channels, pool_type="precision", normalization=normalization, power=2, **shared)


def isice(
    in_channels: int, *, iterations: int = 5, step_size: float = 5.0, sparsity: float = 0.01, **shared: Any
) -> HeldSizePool:
    normalization = SparseInverse(iterations=iterations, step_size=step_size, sparsity=sparsity)
    return HeldSizePool(in_channels, pool_type="isice", normalization=normalization, **shared)


POOLS.add(
    "precision",
    precision,
    About("inverse of the covariance, by 7 Newton-Schulz steps", "exact for these steps", "CVPR 2023"),
)
POOLS.add(
    "isice",
    isice,
    About("sparse inverse of the covariance, by 4 proximal steps", "exact for these steps", "CVPR 2023"),
)
