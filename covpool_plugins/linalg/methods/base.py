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
from ..eigenbasis import second_differences, spectral_function
from ..feature_functions import Rule, function_of_features
from ..iterations import iterative_root, iterative_root_of_features
from ..tensors import check_features, check_square, exporting, identity_like, symmetrize, working_dtype

Wanted = Literal["root", "inverse", "factor"]
Scaling = Literal["trace", "frobenius", "spectral"]
Gradient = Literal["auto", "exact", "lyapunov"]
ROUTES = ("auto", "eigh", "products")
Compute = Literal["mixed", "float32", "float64"]
COMPUTES: tuple[str, ...] = get_args(Compute)
Vectorize = Literal["full", "triu"]


def option(default: Any, check: Callable[..., None], *allowed: object) -> Any:
    """A field of a method, with its check: one of :mod:`covpool_plugins.checks` and what this takes."""
    return dataclasses.field(default=default, metadata={"check": (check, *allowed)})


@dataclass(frozen=True)
class Method:
    """How a function of symmetric positive semi-definite matrices and its gradient are computed.

    ``route`` says where the root by matrix products replaces it: ``products``, everywhere; ``auto``, on a GPU and while
    a graph is exported; ``export``, then alone; ``eigh``, nowhere.

    Examples:
        >>> resolve_method("isqrt").exportable("sqrtm"), resolve_method("svdtopn").exportable("sqrtm")
        (True, False)
    """

    route: ClassVar[Any] = "eigh"

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, (check, *allowed) = getattr(self, field.name), field.metadata.get("check", (None,))
            if check and not (value is None and field.default is None):
                check(f"{type(self).__name__}: {field.name}", value, *allowed)

    def exportable(self, function: str) -> bool:
        """Whether it exports to ONNX, which has no decompositions: it can do with matrix products alone."""
        return self.route != "eigh"

    def by_products(self, X: Tensor) -> bool:
        """Whether the root by matrix products replaces it for this input."""
        if self.route in ("auto", "export") and exporting():
            return True
        return self.route == "products" or (self.route == "auto" and X.is_cuda)

    def of_matrix(self, A: Tensor, wanted: Wanted, compute: Compute, shift: float = 0.0) -> Tensor:
        """The root or the inverse root of A + shift I, for symmetric matrices A (..., n, n) in float32 or float64."""
        raise NotImplementedError

    def of_features(self, X: Tensor, centered: bool, mixed: bool, packed: bool) -> Tensor:
        """The function of the covariance of features (..., C, M) in float32 or float64, in that precision.

        ``mixed`` asks for decompositions in float64, ``packed`` for the upper triangle as a vector.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class SpectralMethod(Method):
    """A function f of the eigenvalues λ: eigh forward; backward U [K ∘ (Uᵀ G U)] Uᵀ with its divided differences K.

    Eigenvalues are never negative here, and zero where they cannot be told from zero.
    """

    def values(self, eigenvalues: Tensor) -> Tensor:
        """f(λ) for the eigenvalues (..., n) of a matrix, ascending."""
        raise NotImplementedError

    def divided_differences(self, first: Tensor, second: Tensor) -> Tensor:
        """K(λ_i, λ_j): (f(λ_i) - f(λ_j)) / (λ_i - λ_j), and f'(λ) where the two are equal.

        ``first`` and ``second`` broadcast against each other; neither is negative, and at most one of a pair is zero.
        """
        raise NotImplementedError

    def coefficients(self, values: Tensor, others: Tensor) -> Tensor:
        """K for all pairs of the eigenvalues ``values`` (..., n) and ``others`` (..., m), shape (..., n, m).

        Zero for two zeros, unless the function has a derivative there.
        """
        first, second = values.unsqueeze(-1), others.unsqueeze(-2)
        if self.derivatives_at_zero > 0:
            return self.divided_differences(first, second)
        both_zero = (first == 0) & (second == 0)
        return torch.where(
            both_zero, 0.0, self.divided_differences(torch.where(both_zero, torch.ones_like(first), first), second)
        )

    def truncate(self, eigenvalues: Tensor) -> Tensor:
        """The eigenvalues (..., n), ascending, with those set to zero that the method leaves out."""
        return eigenvalues

    @property
    def derivatives_at_zero(self) -> float:
        """How many finite derivatives the function has where the eigenvalue is zero."""
        return 0

    def derivative(self, eigenvalues: Tensor, order: int) -> Tensor | None:
        """The second or fourth derivative of f; ``None`` for a gradient that is no derivative of f."""
        return None

    def curvature(self, values: Tensor, E: Tensor, D: Tensor) -> Tensor | None:
        """The second derivative of f(A) along E and D, all in the eigenbasis; ``None`` as of :meth:`derivative`."""
        if self.derivative(values[..., -1:], 2) is None:
            return None
        return second_differences(values, E, D, self)

    def of_matrix(self, A: Tensor, wanted: Wanted, compute: Compute, shift: float = 0.0) -> Tensor:
        work = A if compute == "float32" else A.double()
        return spectral_function(work, self, A.dtype, shift).to(A.dtype)

    def of_features(self, X: Tensor, centered: bool, mixed: bool, packed: bool) -> Tensor:
        return function_of_features(X, Rule(self, centered, mixed, packed))

    @property
    def quotient(self) -> SpectralMethod | None:
        """f(λ) / λ, zero for zero: f(Y Yᵀ) is Y times that of Yᵀ Y times Yᵀ. ``None`` if f has no second derivative."""
        return None


@dataclass(frozen=True)
class EigenMethod(SpectralMethod):
    """A square root by eigh; K is all that distinguishes one published method from another.

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

    route: ClassVar[Any] = "export"

    def values(self, eigenvalues: Tensor) -> Tensor:
        return eigenvalues.sqrt()

    def coefficients(self, values: Tensor, others: Tensor) -> Tensor:
        """K for all pairs of the eigenvalues ``values`` (..., n) and ``others`` (..., m), shape (..., n, m).

        Zero for two zeros, where the exact K is infinite. On the covariance of features that block meets only
        directions in which the features do not vary, and the gradient that reaches the features is zero there for any
        finite K.
        """
        K = sum_or_infinity(values.sqrt().unsqueeze(-1), others.sqrt().unsqueeze(-2)).reciprocal_()
        factor = self.factor(values.unsqueeze(-1), others.unsqueeze(-2))
        return K if factor is None else K * factor

    def factor(self, first: Tensor, second: Tensor) -> Tensor | None:
        """K as a multiple of the exact 1 / (√λ_i + √λ_j); ``None`` for one.

        The eigenvalues λ_i and λ_j broadcast against each other.
        """
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
    lyapunov_iterations: int = option(9, check_integer, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        # Of these, subclasses have other defaults.
        check_choice(f"{type(self).__name__}: scaling", self.scaling, get_args(Scaling))
        check_choice(f"{type(self).__name__}: gradient", self.gradient, get_args(Gradient))

    def of_matrix(self, A: Tensor, wanted: Wanted, compute: Compute, shift: float = 0.0) -> Tensor:
        work = A.double() if compute == "float64" else A
        if shift:
            work = work + shift * identity_like(work)
        return iterative_root(work, self, wanted).to(A.dtype)

    def of_features(self, X: Tensor, centered: bool, mixed: bool, packed: bool) -> Tensor:
        return iterative_root_of_features(X, self, centered, packed)

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
        >>> "svdtopn" in list_methods(), "svdtopn" in list_methods(exportable=True)
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
    elif is_method(method, function):
        chosen, label = method, type(method).__name__
    else:
        raise OptionError(f"{method} is no method for {function}; available: {', '.join(list_methods(function))}")
    if options:
        check_known(f"method {label}", options, [field.name for field in dataclasses.fields(chosen)])
        chosen = dataclasses.replace(chosen, **options)
    check_exportable(chosen, function)
    return chosen


def is_method(method: object, function: str) -> bool:
    """Whether a matrix function takes that method: of a class in its table, or a user's own of the same kind."""
    kinds: dict[str, tuple[type[Method], ...]] = {
        "sqrtm": (EigenMethod, IterativeMethod),
        "inv_sqrtm": (IterativeMethod,),
    }
    known = tuple(type(method) for _, method in MATRIX_FUNCTIONS[function].items())
    return isinstance(method, kinds.get(function, ()) + known)


def check_exportable(method: Method, function: str) -> None:
    """Raise while a model is exported to ONNX, which has no decomposition, unless the method does without."""
    if torch.onnx.is_in_onnx_export() and not method.exportable(function):
        able = list_methods(function, exportable=True) if function in MATRIX_FUNCTIONS else []
        raise ExportError(
            f"{method} needs a matrix decomposition, which ONNX does not have; "
            f"{function} without one: {', '.join(able) or 'none'}"
        )


def check_root_options(compute: str, vectorize: str) -> None:
    """Raise :class:`OptionError` unless both are options of :func:`covariance_sqrt`.

    Examples:
        >>> check_root_options("mixed", "tril")
        Traceback (most recent call last):
        covpool_plugins.errors.OptionError: vectorize must be one of full, triu, got 'tril'
    """
    check_choice("compute", compute, COMPUTES)
    check_choice("vectorize", vectorize, get_args(Vectorize))


def function_of_matrices(A: Tensor, function: SpectralMethod) -> Tensor:
    """f(A) for matrices of any floating point dtype, in that dtype; computed in float64."""
    check_square(A)
    return function.of_matrix(symmetrize(A.to(working_dtype(A.dtype))), "root", "mixed").to(A.dtype)


def function_of_covariance(X: Tensor, method: Method, centered: bool, compute: Compute, vectorize: Vectorize) -> Tensor:
    """What a method makes of the covariance of features of any floating point dtype, in that dtype."""
    check_features(X, centered)
    check_root_options(compute, vectorize)
    work = X.to(torch.float64 if compute == "float64" else working_dtype(X.dtype))
    return method.of_features(work, centered, compute == "mixed", vectorize == "triu").to(X.dtype)
