"""The logarithm, by eigen-decomposition or by inverse scaling and squaring."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..checks import check_integer
from ._dual import solve_positive
from .methods.base import LOGARITHMS, Method, SpectralMethod, check_field, resolve_method
from .spectral import Power, SpectralFunction, apply_to, null_threshold
from .tensors import check_square, symmetrize, working_dtype


def logm(A: Tensor, method: str | Method = "exact", **options: Any) -> Tensor:
    """log(A), in the dtype of A, for symmetric positive definite matrices (..., C, C).

    Args:
        A: the matrices. Eigenvalues that count as zero are raised to the smallest one that does not, so that the
            logarithm of a singular matrix is finite; add a multiple of the identity for another floor.
        method: ``exact``, or ``inverse_scaling``: log A = 2^k log A^(1/2^k) with k square roots.

    Raises:
        ShapeError, DtypeError: if ``A`` is not a batch of square floating point matrices.
        UnknownNameError, OptionError: for a method or option that does not exist.

    Examples:
        >>> logm(torch.diag(torch.tensor([1.0, 10.0]))).diagonal()
        tensor([0.0000, 2.3026])
    """
    chosen = resolve_method(method, "logm", **options)
    if isinstance(chosen, SpectralMethod):
        return apply_to(A, chosen)
    assert isinstance(chosen, InverseScaling)
    check_square(A)
    return chosen.logarithm(symmetrize(A.to(working_dtype(A.dtype)))).to(A.dtype)


@dataclass(frozen=True)
class Logarithm(SpectralMethod):
    """log λ."""

    def values(self, eigenvalues: Tensor) -> Tensor:
        return torch.where(eigenvalues == 0, _floor(eigenvalues), eigenvalues).log()

    def divided_differences(self, first: Tensor, second: Tensor) -> Tensor:
        low, high = torch.minimum(first, second), torch.maximum(first, second)
        x = (high - low) / torch.where(low == 0, high, low)
        tie = x == 0
        return torch.where(tie, 1.0, torch.log1p(x) / torch.where(tie, 1.0, x)) / torch.where(low == 0, high, low)

    def derivative(self, eigenvalues: Tensor, order: int) -> Tensor | None:
        return -(eigenvalues**-2) if order == 2 else -6 * eigenvalues**-4


def _floor(eigenvalues: Tensor) -> Tensor:
    tiny = torch.finfo(eigenvalues.dtype).tiny
    return null_threshold(eigenvalues).clamp_min(tiny)


@dataclass(frozen=True)
class InverseScaling(Method):
    """log A = 2^k log A^(1/2^k): k square roots bring A near the identity, where a short series does for the logarithm.

    Args:
        roots: k.
        terms: of log X = 2 Σ_j W^(2 j + 1) / (2 j + 1), W = (X + I)⁻¹ (X - I).

    Source: Kenney & Laub, "Condition estimates for matrix functions", 1989; Higham, "Functions of Matrices", ch. 11.

    Examples:
        >>> logm(10 * torch.eye(2, dtype=torch.float64), InverseScaling(roots=8)).diagonal()
        tensor([2.3026, 2.3026], dtype=torch.float64)
    """

    roots: int = 6
    terms: int = 6

    def __post_init__(self) -> None:
        check_field(self, "roots", check_integer, 1)
        check_field(self, "terms", check_integer, 1)

    def logarithm(self, A: Tensor) -> Tensor:
        """log A; eigenvalues below a rounding error of the largest are raised to it."""
        eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
        scale = A.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
        scale = torch.where(scale > 0, scale, 1.0)
        X = A / scale + torch.finfo(A.dtype).eps * eye
        for _ in range(self.roots):
            X = SpectralFunction.apply(X, Power(0.5))[0]
        # Cholesky, not LU: batched LU fails in MKL for large matrices on two threads (pytorch#142815).
        W = symmetrize(solve_positive(X + eye, X - eye))
        square, power, total = W @ W, W, W
        for j in range(1, self.terms):
            power = power @ square
            total = total + power / (2 * j + 1)
        return 2 ** (self.roots + 1) * total + scale.log() * eye


LOGARITHMS.add("exact", Logarithm())
LOGARITHMS.add("inverse_scaling", InverseScaling())
