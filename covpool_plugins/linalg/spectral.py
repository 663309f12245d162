"""Functions of the eigenvalues: one forward, one backward and one second derivative for all of them.

For A = U diag(λ) Uᵀ and f(A) = U diag(f(λ)) Uᵀ the derivative in a direction G is (Daleckii-Krein)

    L(A, G) = U [K ∘ (Uᵀ G U)] Uᵀ,      K_ij = f[λ_i, λ_j] = (f(λ_i) - f(λ_j)) / (λ_i - λ_j),

which is its own adjoint, hence the gradient; its derivative in A has the second divided differences f[λ_i, λ_j, λ_k].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import OptionError
from .methods.base import EigenMethod, SpectralMethod, check_exportable
from .tensors import (
    apply,
    autocast_off,
    check_square,
    first_derivative_only,
    guarded_eigh,
    no_further_derivative,
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
        return apply_to(A, Power(p))
    if p.ndim or not p.is_floating_point():
        raise OptionError(f"powm: p must be a number or a 0-dimensional tensor of one, got shape {tuple(p.shape)}")
    check_square(A)
    check_exportable(Power(1.0), Power.__name__)
    work = symmetrize(A.to(working_dtype(A.dtype)))
    exponent = p.to(work.dtype)
    F, values, U = apply(SpectralFunction, work, Power(exponent.detach()))
    return apply(AlongExponent, F, exponent, values, U).to(A.dtype)


class AlongExponent(torch.autograd.Function):
    """A^p once more, with its derivative along p: A^p log A."""

    generate_vmap_rule = True

    @staticmethod
    def forward(F: Tensor, p: Tensor, values: Tensor, U: Tensor) -> Tensor:
        return F.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> tuple[Tensor, Tensor, None, None]:
        p, values, U = ctx.saved_tensors
        with autocast_off(G.device.type), torch.no_grad():
            safe = torch.where(values == 0, 1.0, values)  # λ^p log λ tends to zero with λ
            along_p = ((U.mT @ G @ U).diagonal(dim1=-2, dim2=-1) * safe**p * safe.log()).sum()
        along_p = first_derivative_only(along_p, "a learned exponent", p, G)
        return first_derivative_only(G, "a learned exponent", p), along_p, None, None


def expm_neg(A: Tensor) -> Tensor:
    """exp(-A), in the dtype of A, for symmetric positive semi-definite matrices (..., C, C).

    Raises:
        ShapeError, DtypeError: if ``A`` is not a batch of square floating point matrices.

    Examples:
        >>> expm_neg(torch.diag(torch.tensor([0.0, 1.0]))).diagonal()
        tensor([1.0000, 0.3679])
    """
    return apply_to(A, NegativeExponential())


def damped(A: Tensor) -> Tensor:
    """A exp(-2 A) for symmetric positive semi-definite matrices (..., C, C), which is (A^(1/2) exp(-A))².

    Raises:
        ShapeError, DtypeError: if ``A`` is not a batch of square floating point matrices.
    """
    return apply_to(A, Damped())


def apply_to(A: Tensor, function: SpectralMethod) -> Tensor:
    """f(A) for matrices of any floating point dtype, as the public functions give it."""
    check_square(A)
    check_exportable(function, type(function).__name__)
    return apply(SpectralFunction, symmetrize(A.to(working_dtype(A.dtype))), function)[0].to(A.dtype)


@dataclass(frozen=True)
class Power(SpectralMethod):
    """λ^p, zero for zero."""

    p: float | Tensor

    def __post_init__(self) -> None:
        if isinstance(self.p, Tensor):
            return
        if isinstance(self.p, bool) or not isinstance(self.p, (int, float)) or not abs(self.p) < float("inf"):
            raise OptionError(f"powm: p must be a finite number, got {self.p!r}")

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


def null_threshold(eigenvalues: Tensor) -> Tensor:
    """The size below which an eigenvalue (..., n) cannot be told from zero; shape (..., 1)."""
    n, largest = eigenvalues.shape[-1], eigenvalues.amax(dim=-1, keepdim=True)
    return largest.clamp_min(0) * (n * torch.finfo(eigenvalues.dtype).eps)


def decompose(A: Tensor, function: SpectralMethod, finite: bool = False) -> tuple[Tensor, Tensor]:
    """λ and U of symmetric matrices for a function of them; eigenvalues that count as zero are zero.

    ``finite`` says that there is no NaN or infinity in A.
    """
    values, U = torch.linalg.eigh(A.mT) if finite else guarded_eigh(A)
    values = torch.where(values <= null_threshold(values), 0.0, values)
    return function.truncate(values) if isinstance(function, EigenMethod) else values, U


def compose(values: Tensor, U: Tensor) -> Tensor:
    """U diag(values) Uᵀ."""
    return (U * values.unsqueeze(-2)) @ U.mT


class SpectralFunction(torch.autograd.Function):
    """f(A), and besides λ and U, which the gradient needs."""

    generate_vmap_rule = True

    @staticmethod
    def forward(A: Tensor, function: SpectralMethod) -> tuple[Tensor, Tensor, Tensor]:
        with autocast_off(A.device.type):
            values, U = decompose(A, function)
            return compose(function.values(values), U), values, U

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        A, ctx.function = inputs
        _, values, U = output
        ctx.mark_non_differentiable(values, U)
        ctx.save_for_backward(A, values, U)

    @staticmethod
    def backward(ctx: Any, G: Tensor, *_: Tensor) -> tuple[Tensor, None]:
        A, values, U = ctx.saved_tensors
        grad = apply(SpectralDerivative, symmetrize(G), A, values, U, ctx.function)
        if ctx.function.derivatives_at_zero < 2 and torch.is_grad_enabled() and _any_zero(values):
            # Finite along features that keep the rank, but no function of the matrix alone.
            grad = first_derivative_only(grad, "a function of a matrix with zero eigenvalues", A, G)
        return grad, None


class PlainSpectralFunction(torch.autograd.Function):
    """f(A) alone, without vmap.

    For small matrices: ``setup_context``, which vmap needs, takes longer than their decomposition.
    """

    @staticmethod
    def forward(ctx: Any, A: Tensor, function: SpectralMethod) -> Tensor:
        with autocast_off(A.device.type):
            values, U = decompose(A, function, finite=_known_finite(A))
            ctx.function = function
            ctx.save_for_backward(A, values, U)
            return compose(function.values(values), U)

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> tuple[Tensor, None]:
        if torch.is_grad_enabled():
            return SpectralFunction.backward(ctx, G)
        _, values, U = ctx.saved_tensors
        return SpectralDerivative.forward(symmetrize(G), G, values, U, ctx.function), None


def _known_finite(A: Tensor) -> bool:
    """Whether A is found finite by its sum; not asked where that would wait for a GPU or be traced."""
    if type(A) is not Tensor or A.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return math.isfinite(A.sum().item())


class SpectralDerivative(torch.autograd.Function):
    """L(A, G) for symmetric G; differentiable in G and A where f has a second derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(G: Tensor, A: Tensor, values: Tensor, U: Tensor, function: SpectralMethod) -> Tensor:
        with autocast_off(G.device.type):
            points = values.sqrt() if isinstance(function, EigenMethod) else values
            return U @ basis_derivative(U.mT @ G @ U, points, function) @ U.mT

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        G, A, values, U, ctx.function = inputs
        ctx.save_for_backward(G, A, values, U)

    @staticmethod
    def backward(ctx: Any, H: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        G, A, values, U = ctx.saved_tensors
        H = symmetrize(H)
        if ctx.function.derivative(values[..., -1:], 2) is None:
            raise no_further_derivative(ctx.function)
        along_G = apply(SpectralDerivative, H, A, values, U, ctx.function)
        with autocast_off(G.device.type):
            F = second_divided_differences(values, ctx.function)
            E, D = U.mT @ G @ U, U.mT @ H @ U
            # Σ_k f[i, j, k] (E_ik D_kj + D_ik E_kj)
            mixed = torch.einsum("...ijk,...ik,...kj->...ij", F, E, D)
            along_A = U @ (mixed + mixed.mT) @ U.mT
        return along_G, first_derivative_only(along_A, "a second derivative", A, G, H), None, None, None


def _any_zero(values: Tensor) -> bool:
    """Whether there is an eigenvalue that is zero, where that can be asked; under vmap it cannot."""
    if torch.compiler.is_compiling():
        return False
    while torch._C._functorch.is_functorch_wrapped_tensor(values):
        if torch._C._functorch.is_batchedtensor(values):
            return False
        values = torch._C._functorch.get_unwrapped(values)
    return bool((values == 0).any())


def basis_derivative(E: Tensor, values: Tensor, function: SpectralMethod) -> Tensor:
    """K ∘ E for E = Uᵀ G U, with what a method adds to it; ``values`` are the roots s for an eigen method, else λ."""
    D = E * function.coefficients(values, values)
    if isinstance(function, EigenMethod):
        multiple = function.along_identity(values, E.diagonal(dim1=-2, dim2=-1))
        if multiple is not None:
            D.diagonal(dim1=-2, dim2=-1).add_(multiple)
    return D


def second_divided_differences(values: Tensor, function: SpectralMethod) -> Tensor:
    """f[λ_i, λ_j, λ_k] (..., n, n, n) for λ (..., n); zero where two of them are, unless f has derivatives there.

    Of three eigenvalues, the two that differ most are divided by; where even these are close (relative 1e-3), the
    series around the mean is used instead: f''/2 + f''''/24 · Σ d² / 2 with the deviations d.
    """
    triples = torch.stack(
        torch.broadcast_tensors(values[..., :, None, None], values[..., None, :, None], values[..., None, None, :])
    )
    low, middle, high = triples.sort(dim=0).values.unbind(0)
    two_zero = (middle == 0) & (function.derivatives_at_zero < 2)
    low, middle, high = (torch.where(two_zero, 1.0, value) for value in (low, middle, high))
    mean = (low + middle + high) / 3
    deviations = ((low - mean) ** 2 + (middle - mean) ** 2 + (high - mean) ** 2) / 2
    second, fourth = function.derivative(mean, 2), function.derivative(mean, 4)
    assert second is not None and fourth is not None
    series = second / 2 + fourth / 24 * deviations
    close = high - low <= 1e-3 * high
    gap = torch.where(close, 1.0, high - low)
    quotient = (function.divided_differences(middle, high) - function.divided_differences(low, middle)) / gap
    return torch.where(two_zero, 0.0, torch.where(close, series, quotient))
