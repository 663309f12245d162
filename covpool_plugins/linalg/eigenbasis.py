"""Functions of the eigenvalues of matrices: value, gradient, forward mode and second derivative of all of them.

For A = U diag(λ) Uᵀ and f(A) = U diag(f(λ)) Uᵀ the derivative in a direction G is (Daleckii-Krein)

    L(A, G) = U [K ∘ (Uᵀ G U)] Uᵀ,      K_ij = f[λ_i, λ_j] = (f(λ_i) - f(λ_j)) / (λ_i - λ_j),

which is its own adjoint: the gradient and the derivative along a tangent are one formula. Its derivative in A has the
second divided differences f[λ_i, λ_j, λ_k]; for roots these are solutions of nested Lyapunov equations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .tensors import (
    Function,
    apply,
    autocast_off,
    first_derivative_only,
    guarded_eigh,
    kept,
    no_further_derivative,
    null_threshold,
    symmetrize,
    unwrapped,
)

if TYPE_CHECKING:
    from .methods.base import SpectralMethod

AT_A_TIME = 16  # eigenvalues of which second divided differences with all pairs of the others are in memory


def spectral_function(
    A: Tensor, function: SpectralMethod, dtype: torch.dtype | None = None, shift: float = 0.0
) -> Tensor:
    """f(A + shift I) for symmetric positive semi-definite A (..., n, n) in float32 or float64, in that precision.

    ``dtype`` is the precision that the matrices were given in, where it is another one: it says which eigenvalues
    cannot be told from zero. A positive ``shift`` makes all of them definite.
    """
    image, values, U = decompose(A.detach(), function, dtype or A.dtype, shift)
    return apply(SpectralFunction, A, image, values, U, function)


def decompose(
    A: Tensor, function: SpectralMethod, dtype: torch.dtype, shift: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """f(λ), λ and U of symmetric A + shift I; λ is zero where an eigenvalue of A in ``dtype`` cannot be told from zero.

    With a positive ``shift`` none is zero.
    """
    with autocast_off(A.device.type):
        values, U = guarded_eigh(A)
        null = values <= (0.0 if shift else null_threshold(values, dtype))
        values = function.truncate(torch.where(null, 0.0, values) + shift)
        return function.values(values), values, U


def compose(values: Tensor, U: Tensor) -> Tensor:
    """U diag(values) Uᵀ."""
    return (U * values.unsqueeze(-2)) @ U.mT


class SpectralFunction(Function):
    """f(A), from what :func:`decompose` makes of A."""

    twice_forward = True

    @staticmethod
    def forward(A: Tensor, image: Tensor, values: Tensor, U: Tensor, function: SpectralMethod) -> Tensor:
        with autocast_off(A.device.type):
            return compose(image, U)

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> tuple:
        return SpectralFunction.tangent(ctx, G), None, None, None, None

    @staticmethod
    def tangent(ctx: Any, along_A: Tensor, *_: Any) -> Tensor:
        A, _, *decomposed = kept(ctx)
        return apply(SpectralDerivative, symmetrize(along_A), A, *decomposed)


class SpectralDerivative(Function):
    """L(A, G) for symmetric G; differentiable in G and A where f has a second derivative."""

    twice_forward = True

    @staticmethod
    def forward(G: Tensor, A: Tensor, values: Tensor, U: Tensor, function: SpectralMethod) -> Tensor:
        with autocast_off(G.device.type):
            return U @ ((U.mT @ G @ U) * function.coefficients(values, values)) @ U.mT

    @staticmethod
    def backward(ctx: Any, H: Tensor) -> tuple:
        G, *decomposed = kept(ctx)
        H = symmetrize(H)
        return apply(SpectralDerivative, H, *decomposed), _second_derivative(G, H, *decomposed), None, None, None

    @staticmethod
    def tangent(ctx: Any, along_G: Tensor | None, along_A: Tensor | None, *_: Any) -> Tensor:
        G, *decomposed = kept(ctx)
        total = torch.zeros_like(G)
        if along_G is not None:
            total = total + apply(SpectralDerivative, symmetrize(along_G), *decomposed)
        if along_A is not None:
            total = total + _second_derivative(G, symmetrize(along_A), *decomposed)
        return total


def _second_derivative(G: Tensor, H: Tensor, A: Tensor, values: Tensor, U: Tensor, function: SpectralMethod) -> Tensor:
    """The derivative of L(A, G) along H, symmetric in G and H; and with either of them that along the other."""
    if function.derivatives_at_zero < 2 and _any_zero(values):
        # Finite along features that keep the rank, but no function of the matrix alone.
        raise no_further_derivative("a function of a matrix with zero eigenvalues")
    with autocast_off(G.device.type):
        inner = function.curvature(values, U.mT @ G @ U, U.mT @ H @ U)
        if inner is None:
            raise no_further_derivative(function)
        return first_derivative_only(U @ inner @ U.mT, "a second derivative", A, G, H)


def _any_zero(values: Tensor) -> bool:
    """Whether there is an eigenvalue that is zero, where that can be asked; under vmap it cannot."""
    known = None if torch.compiler.is_compiling() else unwrapped(values)
    return known is not None and bool((known == 0).any())


def second_differences(values: Tensor, E: Tensor, D: Tensor, function: SpectralMethod) -> Tensor:
    """Σ_k f[λ_i, λ_j, λ_k] (E_ik D_kj + D_ik E_kj), for a few k at a time."""
    total = torch.zeros_like(E)
    for begin in range(0, values.shape[-1], AT_A_TIME):
        some = slice(begin, begin + AT_A_TIME)
        F = second_divided_differences(values, values[..., some], function)
        mixed = torch.einsum("...ijk,...ik,...kj->...ij", F, E[..., some], D[..., some, :])
        total = total + mixed + mixed.mT
    return total


def second_divided_differences(values: Tensor, some: Tensor, function: SpectralMethod) -> Tensor:
    """f[λ_i, λ_j, λ_k] (..., n, n, m) for λ (..., n) and m of them.

    Where two are zero, and f has no derivatives there, f[0, 0, λ] = f(λ) / λ²: that of a function which is zero around
    zero. It is f on matrices that keep their rank, whose zero eigenvalues stay zero.

    Of three eigenvalues, the two that differ most are divided by; where even these are close (relative 1e-3), the
    series around the mean is used instead: f''/2 + f''''/24 · Σ d² / 2 with the deviations d.
    """
    triples = torch.stack(
        torch.broadcast_tensors(values[..., :, None, None], values[..., None, :, None], some[..., None, None, :])
    )
    low, middle, high = triples.sort(dim=0).values.unbind(0)
    two_zero = (middle == 0) & (function.derivatives_at_zero < 2)
    largest = torch.where(high == 0, 1.0, high)
    of_zeros = torch.where(high == 0, 0.0, function.divided_differences(torch.zeros_like(largest), largest) / largest)
    low, middle, high = (torch.where(two_zero, 1.0, value) for value in (low, middle, high))
    mean = (low + middle + high) / 3
    deviations = ((low - mean) ** 2 + (middle - mean) ** 2 + (high - mean) ** 2) / 2
    second, fourth = function.derivative(mean, 2), function.derivative(mean, 4)
    assert second is not None and fourth is not None
    series = second / 2 + fourth / 24 * deviations
    close = high - low <= 1e-3 * high
    gap = torch.where(close, 1.0, high - low)
    quotient = (function.divided_differences(middle, high) - function.divided_differences(low, middle)) / gap
    return torch.where(two_zero, of_zeros, torch.where(close, series, quotient))
