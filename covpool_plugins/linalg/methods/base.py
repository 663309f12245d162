"""The two kinds of methods, and the tables of their names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from ...checks import check_choice, check_integer, check_known
from ...errors import ExportError, OptionError
from ...tables import Table
from .._dual import Matrix

Wanted = Literal["root", "inverse", "factor"]
Scaling = Literal["trace", "frobenius", "spectral"]
Gradient = Literal["auto", "exact", "lyapunov"]
Route = Literal["auto", "eigh", "products"]


@dataclass(frozen=True)
class Method:
    """How a function of symmetric positive semi-definite matrices and its gradient are computed.

    Examples:
        >>> resolve_method("isqrt").exportable("sqrtm"), resolve_method("svdtaylor").exportable("sqrtm")
        (True, False)
    """

    def exportable(self, function: str) -> bool:
        """Whether it exports to ONNX, which has no decompositions: it can do with matrix products alone."""
        return False


@dataclass(frozen=True)
class SpectralMethod(Method):
    """A function of the eigenvalues: eigh forward; backward U [K ∘ (Uᵀ G U)] Uᵀ with its divided differences K."""

    def values(self, eigenvalues: Tensor) -> Tensor:
        """f(λ) for the eigenvalues (..., n) of a matrix, ascending; those that count as zero are zero."""
        raise NotImplementedError

    def divided_differences(self, first: Tensor, second: Tensor) -> Tensor:
        """K(λ_i, λ_j): (f(λ_i) - f(λ_j)) / (λ_i - λ_j), and f'(λ) where the two are equal.

        ``first`` and ``second`` broadcast against each other; neither is negative, and at most one of a pair is zero.
        """
        raise NotImplementedError

    def coefficients(self, values: Tensor, others: Tensor) -> Tensor:
        """K for all pairs of ``values`` (..., n) and ``others`` (..., m), shape (..., n, m).

        Zero for two zeros, unless the function has a derivative there.
        """
        first, second = values.unsqueeze(-1), others.unsqueeze(-2)
        if self.derivatives_at_zero > 0:
            return self.divided_differences(first, second)
        both_zero = (first == 0) & (second == 0)
        return torch.where(
            both_zero, 0.0, self.divided_differences(torch.where(both_zero, torch.ones_like(first), first), second)
        )

    @property
    def derivatives_at_zero(self) -> float:
        """How many finite derivatives the function has where the eigenvalue is zero."""
        return 0

    def derivative(self, eigenvalues: Tensor, order: int) -> Tensor | None:
        """The second or fourth derivative of f; ``None`` for a gradient that is no derivative of f."""
        return None


@dataclass(frozen=True)
class EigenMethod(SpectralMethod):
    """A square root by eigh; K is all that distinguishes one published method from another.

    K is written in the roots s = √λ, whose range is that of the features; their squares may leave it.

    Examples:
        >>> class Damped(EigenMethod):
        ...     def factor(self, first, second):
        ...         return 0.5 + 0.5 * (first == second)
        ...
        >>> A = torch.diag(torch.tensor([4.0, 1.0])).requires_grad_()
        >>> sqrtm(A, Damped()).sum().backward()
        >>> A.grad  # the exact one has 0.3333 off the diagonal
        tensor([[0.2500, 0.1667],
                [0.1667, 0.5000]])
    """

    def values(self, eigenvalues: Tensor) -> Tensor:
        return eigenvalues.sqrt()

    def divided_differences(self, first: Tensor, second: Tensor) -> Tensor:
        return (first.sqrt() + second.sqrt()).reciprocal()

    def truncate(self, eigenvalues: Tensor) -> Tensor:
        """The eigenvalues (..., n), ascending, with those set to zero that the method leaves out."""
        return eigenvalues

    def leaves_out(self, count: int) -> bool:
        """Whether :meth:`truncate` sets any of ``count`` eigenvalues to zero that are not."""
        return False

    def coefficients(self, values: Tensor, others: Tensor) -> Tensor:
        """K for all pairs of the roots ``values`` (..., n) and ``others`` (..., m), shape (..., n, m).

        Zero for two zeros, where the exact K is infinite. On the covariance of features that block meets only
        directions in which the features do not vary, and the gradient that reaches the features is zero there for any
        finite K.
        """
        first, second = values.unsqueeze(-1), others.unsqueeze(-2)
        K = sum_or_infinity(first, second).reciprocal_()
        factor = self.factor(first, second)
        return K if factor is None else K * factor

    def factor(self, first: Tensor, second: Tensor) -> Tensor | None:
        """K as a multiple of the exact 1 / (s_i + s_j); ``None`` for one. The roots broadcast against each other."""
        return None

    def towards_null(self, values: Tensor) -> Tensor | float:
        """s K(s, 0) for the roots ``values`` (..., n), shape (..., 1, n) or one number; any where the root is zero."""
        factor = self.factor(values.unsqueeze(-2), torch.zeros_like(values[..., :1]).unsqueeze(-1))
        return 1.0 if factor is None else factor

    def along_identity(self, values: Tensor, diagonal: Tensor) -> Tensor | None:
        """A multiple of the identity (..., 1) that the gradient has besides, for ``diagonal`` (..., n) of Uᵀ G U."""
        return None


def sum_or_infinity(first: Tensor, second: Tensor) -> Tensor:
    """first + second for numbers that are not negative, infinity where both are zero; broadcasts."""
    # By arithmetic, because masks take ten times as long: the product overflows just where both factors are not zero.
    huge = (first == 0).to(first.dtype).mul_(torch.finfo(first.dtype).max)
    return torch.addcmul(first, huge, (second == 0).to(first.dtype).mul_(2)).add_(second)


@dataclass(frozen=True)
class IterativeMethod(Method):
    """Matrix products (and at most a Cholesky factorisation) only.

    ``evaluate`` is written once, for plain matrices and for matrices with a tangent.

    Args:
        scaling: what A is divided by, so that its eigenvalues lie in [0, 1]: its trace, its Frobenius norm, or
            ``spectral``, ‖A A‖_F^½, the tightest bound of the largest eigenvalue that takes one product.
        gradient: ``exact``, the derivative of the steps taken; ``lyapunov``, the iterative solution of
            S R + R S = G with the computed root S, as published for some methods; ``auto`` is ``lyapunov`` for a
            matrix (``sqrtm``) and ``exact`` for features (``covariance_sqrt``, the pools), whose covariance may be
            singular: half of a block of the Lyapunov solution is missing then.
        lyapunov_iterations: steps of the Lyapunov solver; nine is what the released code of MTP and MPA runs.

    Raises:
        OptionError: for an option outside its range, here and in every method.

    Examples:
        >>> isinstance(resolve_method("mpa"), IterativeMethod), isinstance(resolve_method("svdpade"), IterativeMethod)
        (True, False)
    """

    at_zero: ClassVar[float] = 0.0
    through_gram: ClassVar[bool] = True
    scaling: Scaling = "frobenius"
    gradient: Gradient = "exact"
    lyapunov_iterations: int = 9

    def __post_init__(self) -> None:
        check_field(self, "scaling", check_choice, get_args(Scaling))
        check_field(self, "gradient", check_choice, get_args(Gradient))
        check_field(self, "lyapunov_iterations", check_integer, 1)

    def evaluate(self, B: Matrix, wanted: Wanted) -> Matrix:
        """The root of B, its inverse, or the factor F with root = at_zero I + B F; eigenvalues of B in [0, 1]."""
        raise NotImplementedError


MATRIX_FUNCTIONS: Table[Table[Method]] = Table("matrix function")
SQUARE_ROOTS: Table[Method] = Table("method")
INVERSE_ROOTS: Table[Method] = Table("method")
LYAPUNOV: Table[Method] = Table("method")
MATRIX_FUNCTIONS.add("sqrtm", SQUARE_ROOTS)
MATRIX_FUNCTIONS.add("inv_sqrtm", INVERSE_ROOTS)
MATRIX_FUNCTIONS.add("lyapunov", LYAPUNOV)


def list_methods(function: str = "sqrtm", exportable: bool = False) -> list[str]:
    """Names of the methods of a matrix function: ``sqrtm``, ``inv_sqrtm`` or ``lyapunov``.

    Args:
        function: that function.
        exportable: only those that export to ONNX.

    Raises:
        UnknownNameError: for another function.

    Examples:
        >>> "svdtaylor" in list_methods(), "svdtaylor" in list_methods(exportable=True)
        (True, False)
    """
    methods = MATRIX_FUNCTIONS[function].items()
    return [name for name, method in methods if not exportable or method.exportable(function)]


def resolve_method(method: str | Method, function: str = "sqrtm", **options: Any) -> Method:
    """A method object from a name or an object, with options replaced.

    Raises:
        UnknownNameError: for a name that the function's table does not have.
        OptionError: for an object of another function, an option the method does not have, or one out of range.
        ExportError: while a model is exported to ONNX, for a method that ONNX cannot express.

    Examples:
        >>> resolve_method("isqrt", iterations=7)
        NewtonSchulz(scaling='trace', gradient='exact', lyapunov_iterations=9, iterations=7)
    """
    if not isinstance(method, Method):
        chosen, label = MATRIX_FUNCTIONS[function][method], repr(method)
    elif isinstance(method, _accepted(function)):
        chosen, label = method, type(method).__name__
    else:
        raise OptionError(f"{method} is no method for {function}; available: {', '.join(list_methods(function))}")
    if options:
        check_known(f"method {label}", options, [field.name for field in dataclasses.fields(chosen)])
        chosen = dataclasses.replace(chosen, **options)
    check_exportable(chosen, function)
    return chosen


def _accepted(function: str) -> tuple[type[Method], ...]:
    """The classes whose objects a matrix function takes: those in its table, and users' own of the same kind."""
    kinds: dict[str, tuple[type[Method], ...]] = {
        "sqrtm": (EigenMethod, IterativeMethod),
        "inv_sqrtm": (IterativeMethod,),
    }
    return kinds.get(function, ()) + tuple(type(method) for _, method in MATRIX_FUNCTIONS[function].items())


def check_exportable(method: Method, function: str) -> None:
    """Raise while a model is exported to ONNX, which has no decomposition, unless the method does without."""
    if torch.onnx.is_in_onnx_export() and not method.exportable(function):
        able = list_methods(function, exportable=True) if function in MATRIX_FUNCTIONS else []
        raise ExportError(
            f"{method} needs a matrix decomposition, which ONNX does not have; "
            f"{function} without one: {', '.join(able) or 'none'}"
        )


def check_field(method: object, option: str, check: Callable[..., None], *allowed: object) -> None:
    """Check an option of a method by one of :mod:`covpool_plugins.checks`."""
    check(f"{type(method).__name__}: {option}", getattr(method, option), *allowed)
