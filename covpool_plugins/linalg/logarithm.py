"""The logarithm."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .eigenbasis import SpectralFunction, compose, decompose
from .methods.base import SpectralMethod, check_exportable
from .tensors import apply, check_square, null_threshold, product, symmetrize, working_dtype


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
    check_square(A)
    check_exportable(Logarithm(), "logm")
    work, function = symmetrize(A.double()), Logarithm(working_dtype(A.dtype))
    image, values, U = decompose(work.detach(), function, function.dtype)
    F = apply(SpectralFunction, work, image, values, U, function)
    # The floor is a share of the largest eigenvalue, and moves with it.
    null = compose((values == 0).to(U.dtype), U)
    largest = (U[..., -1:] * product(work, U[..., -1:])).sum(dim=(-2, -1), keepdim=True)
    share = torch.where(largest > 0, largest, 1.0) / torch.where(largest > 0, largest, 1.0).detach()
    return (F + null * (share - 1)).to(A.dtype)


@dataclass(frozen=True)
class Logarithm(SpectralMethod):
    """log λ, and for zero the logarithm of the least size at which an eigenvalue is told from zero, as if constant.

    Args:
        dtype: the precision that the matrices were given in.
    """

    dtype: torch.dtype = torch.float64

    def _floored(self, eigenvalues: Tensor) -> Tensor:
        floor = null_threshold(eigenvalues, self.dtype).clamp_min(torch.finfo(eigenvalues.dtype).tiny)
        return torch.where(eigenvalues == 0, floor, eigenvalues)

    def values(self, eigenvalues: Tensor) -> Tensor:
        return self._floored(eigenvalues).log()

    def divided_differences(self, first: Tensor, second: Tensor) -> Tensor:
        low, high = torch.minimum(first, second), torch.maximum(first, second)
        x = (high - low) / torch.where(low == 0, high, low)
        tie = x == 0
        return torch.where(tie, 1.0, torch.log1p(x) / torch.where(tie, 1.0, x)) / torch.where(low == 0, high, low)

    def coefficients(self, values: Tensor, others: Tensor) -> Tensor:
        """As of any function, but that the logarithm of zero is that of the floor."""
        K = super().coefficients(values, others)
        first, second = values.unsqueeze(-1), others.unsqueeze(-2)
        one_zero = (first == 0) ^ (second == 0)
        high = torch.where(one_zero, torch.maximum(first, second), 1.0)
        floor = self._floored(values)[..., :1]  # of the smallest, which is zero where any is
        return torch.where(one_zero, (high.log() - floor.unsqueeze(-1).log()) / high, K)

    def derivative(self, eigenvalues: Tensor, order: int) -> Tensor | None:
        return -(eigenvalues**-2) if order == 2 else -6 * eigenvalues**-4
