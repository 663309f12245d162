"""The power and the exponential."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import OptionError
from .eigenbasis import SpectralFunction, compose, decompose, spectral_function
from .exports import expm1_neg, is_product_of_roots, power_of_root
from .methods.base import SpectralMethod, check_exportable
from .square_root import sqrtm
from .tensors import (
    Function,
    apply,
    autocast_off,
    check_square,
    exporting,
    first_derivative_only,
    kept,
    product,
    symmetrize,
    working_dtype,
)


def powm(A: Tensor, p: float | Tensor) -> Tensor:
    """A^p, in the dtype of A, for symmetric positive semi-definite matrices (..., C, C) and any real p.

    Eigenvalues that count as zero stay zero, for negative p too (Moore-Penrose); p = 0 gives the
    projector on the range. A 0-dimensional tensor p, a learned exponent, gets its gradient ⟨G, A^p log A⟩ (but no
    second derivative).

    Raises:
        ShapeError, DtypeError: if ``A`` is not a batch of square floating point matrices.
        OptionError: if ``p`` is not a finite number.

    Examples:
        >>> powm(torch.diag(torch.tensor([4.0, 0.0])), -0.5).diagonal()
        tensor([0.5000, 0.0000])
    """
    if not isinstance(p, Tensor):
        if exporting() and is_product_of_roots(p):
            return power_of_root(sqrtm(A), p)
        return apply_to(A, Power(p))
    check_learned(p)
    check_square(A)
    check_exportable(Power(1.0), Power.__name__)
    work, exponent = symmetrize(A.double()), p.double()
    function = Power(exponent.detach())
    image, values, U = decompose(work.detach(), function, working_dtype(A.dtype))
    F = apply(SpectralFunction, work, image, values, U, function)
    return apply(AlongExponent, F, exponent, values, U).to(A.dtype)


def check_learned(p: Tensor) -> None:
    """Raise unless ``p`` is one number."""
    if p.ndim or not p.is_floating_point():
        raise OptionError(f"powm: p must be a number or a 0-dimensional tensor of one, got shape {tuple(p.shape)}")


class AlongExponent(Function):
    """A^p once more, with its derivative along p: A^p log A."""

    @staticmethod
    def forward(F: Tensor, p: Tensor, values: Tensor, U: Tensor) -> Tensor:
        return F.clone()

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> tuple[Tensor, Tensor, None, None]:
        _, p, values, U = kept(ctx)
        with autocast_off(G.device.type):
            diagonal = (U.mT @ G @ U).diagonal(dim1=-2, dim2=-1)
            along_p = (diagonal * _along_exponent(p, values)).sum().to(p.dtype)
        along_p = first_derivative_only(along_p, "a learned exponent", p, G)
        return first_derivative_only(G, "a learned exponent", p), along_p, None, None

    @staticmethod
    def tangent(ctx: Any, along_F: Tensor | None, along_p: Tensor | None, *_: Any) -> Tensor:
        _, p, values, U = kept(ctx)
        total = U.new_zeros(()) if along_F is None else along_F
        if along_p is None:
            return total
        return total + compose((along_p * _along_exponent(p, values)).to(U.dtype), U)


def _along_exponent(p: Tensor, values: Tensor) -> Tensor:
    """λ^p log λ, which tends to zero with λ."""
    safe = torch.where(values == 0, 1.0, values)
    return safe**p * safe.log()


def expm_neg(A: Tensor) -> Tensor:
    """exp(-A), in the dtype of A, for symmetric positive semi-definite matrices (..., C, C).

    Raises:
        ShapeError, DtypeError: if ``A`` is not a batch of square floating point matrices.

    Examples:
        >>> expm_neg(torch.diag(torch.tensor([0.0, 1.0]))).diagonal()
        tensor([1.0000, 0.3679])
    """
    if exporting():
        check_square(A)
        work = symmetrize(A.double())
        return (expm1_neg(work) + torch.eye(A.shape[-1], dtype=work.dtype, device=A.device)).to(A.dtype)
    return apply_to(A, NegativeExponential())


def damped(A: Tensor) -> Tensor:
    """A exp(-2 A) for symmetric positive semi-definite matrices (..., C, C), which is (A^(1/2) exp(-A))².

    Raises:
        ShapeError, DtypeError: if ``A`` is not a batch of square floating point matrices.
    """
    if exporting():
        check_square(A)
        work = symmetrize(A.double())
        return (work + product(work, expm1_neg(2 * work))).to(A.dtype)
    return apply_to(A, Damped())


def apply_to(A: Tensor, function: SpectralMethod) -> Tensor:
    """f(A) for matrices of any floating point dtype, as the public functions give it; computed in float64."""
    check_square(A)
    check_exportable(function, type(function).__name__)
    return spectral_function(symmetrize(A.double()), function, working_dtype(A.dtype)).to(A.dtype)


@dataclass(frozen=True)
class Power(SpectralMethod):
    """λ^p, zero for zero."""

    p: float | Tensor

    def __post_init__(self) -> None:
        if isinstance(self.p, Tensor):
            return
        if isinstance(self.p, bool) or not isinstance(self.p, (int, float)) or not abs(self.p) < float("inf"):
            raise OptionError(f"powm: p must be a finite number, got {self.p!r}")

    @property
    def quotient(self) -> SpectralMethod | None:
        return None if isinstance(self.p, Tensor) else Power(self.p - 1)

    def values(self, eigenvalues: Tensor) -> Tensor:
        zero = eigenvalues == 0
        return torch.where(zero, 0.0, torch.where(zero, 1.0, eigenvalues) ** self.p)

    def divided_differences(self, first: Tensor, second: Tensor) -> Tensor:
        low, high = torch.minimum(first, second), torch.maximum(first, second)
        # (1 - r^p) / (1 - r) with r = low / high, without cancellation: r^p - 1 = expm1(p log r).
        log_r = (torch.where(low == 0, high, low) / high).log()
        tie = log_r == 0
        quotient = torch.expm1(self.p * log_r) / torch.expm1(torch.where(tie, 1.0, log_r))
        quotient = torch.where(tie, self.p, quotient)
        return high ** (self.p - 1) * torch.where(low == 0, 1.0, quotient)

    @property
    def derivatives_at_zero(self) -> float:
        if isinstance(self.p, Tensor) or self.p < 1:
            return 0
        return float("inf") if self.p == int(self.p) or self.p >= 4 else 1

    def derivative(self, eigenvalues: Tensor, order: int) -> Tensor | None:
        factor: float | Tensor = 1.0
        for k in range(order):
            factor *= self.p - k
        if isinstance(factor, float) and factor == 0:
            return torch.zeros_like(eigenvalues)
        return factor * eigenvalues ** (self.p - order)


@dataclass(frozen=True)
class NegativeExponential(SpectralMethod):
    """exp(-λ)."""

    def values(self, eigenvalues: Tensor) -> Tensor:
        return torch.exp(-eigenvalues)

    def divided_differences(self, first: Tensor, second: Tensor) -> Tensor:
        low, gap = torch.minimum(first, second), (first - second).abs()
        tie = gap == 0
        return torch.exp(-low) * torch.where(tie, -1.0, torch.expm1(-gap) / torch.where(tie, 1.0, gap))

    @property
    def derivatives_at_zero(self) -> float:
        return float("inf")

    def derivative(self, eigenvalues: Tensor, order: int) -> Tensor | None:
        return torch.exp(-eigenvalues)


@dataclass(frozen=True)
class Damped(SpectralMethod):
    """λ exp(-2 λ); of zero eigenvalues the derivative is left out, as of a root: features do not vary along them."""

    def values(self, eigenvalues: Tensor) -> Tensor:
        return eigenvalues * torch.exp(-2 * eigenvalues)

    def divided_differences(self, first: Tensor, second: Tensor) -> Tensor:
        low, high = torch.minimum(first, second), torch.maximum(first, second)
        return torch.exp(-2 * high) + 2 * low * NegativeExponential().divided_differences(2 * first, 2 * second)

    def derivative(self, eigenvalues: Tensor, order: int) -> Tensor | None:
        return (4 * eigenvalues - 4 if order == 2 else 16 * eigenvalues - 32) * torch.exp(-2 * eigenvalues)
