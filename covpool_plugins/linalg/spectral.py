"""Powers, the logarithm and the exponential of matrices; powers and log(I + A / eps) of the covariance of features."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Any, TypeGuard

import torch
from torch import Tensor

from ..checks import check_number
from ..errors import OptionError
from .eigenbasis import SpectralFunction, compose, decompose
from .feature_functions import FeatureFunction, Rule, decompose_features
from .methods.base import (
    Compute,
    SpectralMethod,
    Vectorize,
    check_exportable,
    check_root_options,
    function_of_covariance,
    function_of_matrices,
)
from .packing import pack_triu
from .square_root import covariance_sqrt, sqrtm
from .tensors import (
    Function,
    apply,
    autocast_off,
    check_features,
    check_square,
    exporting,
    first_derivative_only,
    identity_like,
    is_plain,
    keep,
    kept,
    null_threshold,
    product,
    symmetrize,
    unwrapped,
    working_dtype,
)

SQUARINGS = 36


def powm(A: Tensor, p: float | Tensor) -> Tensor:
    """A^p, in the dtype of A, for symmetric positive semi-definite matrices (..., C, C) and any real p.

    Eigenvalues that count as zero stay zero, for negative p too (Moore-Penrose); p = 0 gives the
    projector on the range. A 0-dimensional tensor p, a learned exponent, gets its gradient ⟨G, A^p log A⟩ (but no
    second derivative, and ``torch.func.vmap`` cannot map over it).

    Raises:
        ShapeError, DtypeError: if ``A`` is not a batch of square floating point matrices.
        OptionError: if ``p`` is not a finite number.

    Examples:
        >>> powm(torch.diag(torch.tensor([4.0, 0.0])), -0.5).diagonal()
        tensor([0.5000, 0.0000])
    """
    if exporting() and is_product_of_roots(p):
        return power_of_root(sqrtm(A), p)
    function = _power(p)
    if not isinstance(p, Tensor):
        return function_of_matrices(A, function)
    check_square(A)
    work = symmetrize(A.double())
    image, values, U = decompose(work.detach(), function, working_dtype(A.dtype))
    return _with_exponent(apply(SpectralFunction, work, image, values, U, function), p, function, values, U).to(A.dtype)


def covariance_powm(
    X: Tensor,
    p: float | Tensor,
    centered: bool = True,
    *,
    compute: Compute = "mixed",
    vectorize: Vectorize = "full",
) -> Tensor:
    """``powm(covariance(X), p)`` in one step: faster, more accurate, and with a second derivative.

    The covariance A of fewer positions than channels is singular, and a power of it has no second derivative as a
    function of A; as a function of features that keep their rank it has one.

    Args:
        X: features (..., C, M), C channels at M positions; half precision is computed in float32.
        p: the exponent, or a 0-dimensional tensor of it, see :func:`powm`.
        centered: subtract the mean over the positions.
        compute, vectorize: as of :func:`covariance_sqrt`.

    Returns:
        Matrices (..., C, C), or (..., C(C+1)/2) for ``triu``, in the dtype of ``X``.

    Raises:
        ShapeError, DtypeError: if ``X`` is not a batch of floating point features.
        OptionError: for an option that does not exist, or if ``p`` is not a finite number.

    Examples:
        >>> X = torch.randn(2, 8, 5, dtype=torch.float64)
        >>> torch.allclose(covariance_powm(X, 0.5), covariance_sqrt(X, "exact"))
        True
    """
    check_root_options(compute, vectorize)
    if exporting() and is_product_of_roots(p):
        F = power_of_root(covariance_sqrt(X, "exact", centered=centered, compute=compute), p)
        return pack_triu(F) if vectorize == "triu" else F
    function = _power(p)
    if not isinstance(p, Tensor):
        return function_of_covariance(X, function, centered, compute, vectorize)
    check_features(X, centered)
    rule = Rule(function, centered, compute == "mixed", False)
    work = X.to(torch.float64 if compute == "float64" else working_dtype(X.dtype))
    values, U, V = decompose_features(work, rule)
    F = _with_exponent(apply(FeatureFunction, work, values, U, V, rule), p, function, values, U)
    return (pack_triu(F) if vectorize == "triu" else F).to(X.dtype)


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


def covariance_log1p(
    X: Tensor,
    eps: float,
    centered: bool = True,
    *,
    compute: Compute = "mixed",
    vectorize: Vectorize = "full",
) -> Tensor:
    """log(I + covariance(X) / eps) in one step.

    Args:
        X: features (..., C, M), C channels at M positions; half precision is computed in float32.
        eps: the variance that the logarithm is bounded by; positive.
        centered: subtract the mean over the positions.
        compute, vectorize: as of :func:`covariance_sqrt`.

    Returns:
        Matrices (..., C, C), or (..., C(C+1)/2) for ``triu``, in the dtype of ``X``.

    Raises:
        ShapeError, DtypeError: if ``X`` is not a batch of floating point features.
        OptionError: for an option that does not exist, or unless ``eps`` is a positive number.

    Examples:
        >>> X = torch.randn(2, 8, 5, dtype=torch.float64)
        >>> expected = logm(torch.eye(8, dtype=torch.float64) + covariance(X) / 0.1)
        >>> torch.allclose(covariance_log1p(X, 0.1), expected)
        True
    """
    check_number("eps", eps, "(0, inf)")
    function = Log1p(eps)
    check_exportable(function, "covariance_log1p")
    return function_of_covariance(X, function, centered, compute, vectorize)


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
        return (expm1_neg(A) + identity_like(A).double()).to(A.dtype)
    return function_of_matrices(A, NegativeExponential())


# While a graph is exported: matrix products alone


def is_product_of_roots(p: float | Tensor) -> TypeGuard[float]:
    """Whether A^p is a product of square roots of A."""
    return isinstance(p, int | float) and p > 0 and 2 * p == int(2 * p)


def power_of_root(S: Tensor, p: float) -> Tensor:
    """S^(2 p), the power p of the matrix with that root, by products: for an exported graph."""
    return reduce(product, [S] * int(2 * p))


def expm1_neg(A: Tensor) -> Tensor:
    """exp(-A) - I in float64 for A (..., n, n) with eigenvalues from zero to 2^30, by matrix products alone.

    Scaling and squaring: without the identity, a squaring E <- 2 E + E E keeps the digits that are there.
    """
    with autocast_off(A.device.type):
        B = symmetrize(A.double()) * 0.5**SQUARINGS
        square = B @ B
        E = -B + square / 2 - (square @ B) / 6 + (square @ square) / 24
        for _ in range(SQUARINGS):
            E = 2 * E + E @ E
        return E


# A learned exponent


def _power(p: float | Tensor) -> Power:
    """The power, to which a learned exponent is a constant."""
    if isinstance(p, Tensor):
        if p.ndim or not p.is_floating_point():
            raise OptionError(f"powm: p must be a number or a 0-dimensional tensor of one, got shape {tuple(p.shape)}")
        constant = unwrapped(p.detach().double())
        if constant is None:
            raise OptionError("powm: p must be one number for all matrices, got one that vmap maps over")
        p = constant
    function = Power(p)
    check_exportable(function, "powm")
    return function


def _with_exponent(F: Tensor, p: Tensor, function: Power, values: Tensor, U: Tensor) -> Tensor:
    """F = A^p, with its derivative along p too: A^p log A, from the eigenvalues and vectors of A."""
    if is_plain(p):
        return F
    with autocast_off(F.device.type):
        # λ^p log λ tends to zero with λ.
        along = function.values(values) * torch.where(values == 0, 1.0, values).log()
        along = compose(along.to(F.dtype), U.to(F.dtype))
    return apply(AlongExponent, F, p, along)


class AlongExponent(Function):
    """F once more, with its derivative along p."""

    @staticmethod
    def forward(F: Tensor, p: Tensor, along: Tensor) -> Tensor:
        return F.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        keep(ctx, *inputs[1:])

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> tuple[Tensor, Tensor, None]:
        p, along = kept(ctx)
        along_p = first_derivative_only((G * along).sum().to(p.dtype), "a learned exponent", p, G)
        return first_derivative_only(G, "a learned exponent", p), along_p, None

    @staticmethod
    def tangent(ctx: Any, along_F: Tensor | None, along_p: Tensor | None, _: None) -> Tensor:
        _, along = kept(ctx)
        total = torch.zeros_like(along) if along_F is None else along_F
        return total if along_p is None else total + along_p.to(along.dtype) * along


# The functions of the eigenvalues


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
        zero, lost = eigenvalues == 0, eigenvalues.isnan()  # NaN to the power zero would be one
        return torch.where(zero, 0.0, torch.where(zero, 1.0, eigenvalues) ** self.p).masked_fill(lost, torch.nan)

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


@dataclass(frozen=True)
class Log1p(SpectralMethod):
    """log(1 + λ / ε)."""

    eps: float

    def values(self, eigenvalues: Tensor) -> Tensor:
        return torch.log1p(eigenvalues / self.eps)

    def divided_differences(self, first: Tensor, second: Tensor) -> Tensor:
        low, gap = torch.minimum(first, second) + self.eps, (first - second).abs()
        tie = gap == 0
        return torch.where(tie, 1 / low, torch.log1p(gap / low) / torch.where(tie, 1.0, gap))

    @property
    def derivatives_at_zero(self) -> float:
        return float("inf")

    def derivative(self, eigenvalues: Tensor, order: int) -> Tensor | None:
        shifted = eigenvalues + self.eps
        return -(shifted**-2) if order == 2 else -6 * shifted**-4


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
