"""The logarithm."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .methods.base import SpectralMethod
from .spectral import apply_to, null_threshold


def logm(A: Tensor) -> Tensor:
    """log(A), in the dtype of A, for symmetric positive definite matrices (..., C, C).

    Eigenvalues that count as zero are raised to the smallest one that does not, so that the logarithm of a singular
    matrix is finite; add a multiple of the identity for another floor.

    Raises:
        ShapeError, DtypeError: if ``A`` is not a batch of square floating point matrices.

    Examples:
        >>> logm(torch.diag(torch.tensor([1.0, 10.0]))).diagonal()
        tensor([0.0000, 2.3026])
    """
    return apply_to(A, Logarithm())


@dataclass(frozen=True)
class Logarithm(SpectralMethod):
    """log λ."""

    def values(self, eigenvalues: Tensor) -> Tensor:
        floor = null_threshold(eigenvalues).clamp_min(torch.finfo(eigenvalues.dtype).tiny)
        return torch.where(eigenvalues == 0, floor, eigenvalues).log()

    def divided_differences(self, first: Tensor, second: Tensor) -> Tensor:
        low, high = torch.minimum(first, second), torch.maximum(first, second)
        x = (high - low) / torch.where(low == 0, high, low)
        tie = x == 0
        return torch.where(tie, 1.0, torch.log1p(x) / torch.where(tie, 1.0, x)) / torch.where(low == 0, high, low)

    def derivative(self, eigenvalues: Tensor, order: int) -> Tensor | None:
        return -(eigenvalues**-2) if order == 2 else -6 * eigenvalues**-4
