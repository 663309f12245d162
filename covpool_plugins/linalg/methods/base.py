"""The two kinds of methods, and the table of their names."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor

from ...errors import OptionError
from ...tables import Table
from .._dual import Matrix

Root = Literal["root", "inverse"]
Scaling = Literal["trace", "frobenius"]


@dataclass(frozen=True)
class Method:
    """A way to compute the square root of a symmetric positive semi-definite matrix and its gradient."""


@dataclass(frozen=True)
class EigenMethod(Method):
    """eigh forward; backward U [K ∘ (Uᵀ G U)] Uᵀ, where K is all that distinguishes one method from another."""

    def divided_differences(self, first: Tensor, second: Tensor) -> Tensor:
        """K(λ_i, λ_j), the method's version of (√λ_i - √λ_j) / (λ_i - λ_j).

        ``first`` and ``second`` are eigenvalues that broadcast against each other; at least one of each pair is
        positive, and neither is negative.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class IterativeMethod(Method):
    """Matrix products only. ``evaluate`` is written once, for plain matrices and for matrices with a tangent."""

    scaling: Scaling = "trace"

    def __post_init__(self) -> None:
        check_choice(self, "scaling", get_args(Scaling))

    def evaluate(self, B: Matrix, wanted: Root) -> Matrix:
        """The root of B, or its inverse root: a matrix function whose spectrum argument lies in [0, 1].

        The two belong together: the root equals B times the inverse root, step by step.
        """
        raise NotImplementedError


METHODS: Table[Method] = Table("method")


TABLES: Table[Table[Method]] = Table("matrix function")
TABLES.add("sqrtm", METHODS)


def list_methods(function: str = "sqrtm") -> list[str]:
    """Names of the methods that a matrix function takes."""
    return list(TABLES[function])


def resolve_method(method: str | Method, **options: Any) -> Method:
    """A method object from a name or an object, with options replaced.

    Raises:
        UnknownNameError: for a name that is not in the table.
        OptionError: for an option the method does not have, or one out of range.
    """
    if isinstance(method, Method):
        chosen, label = method, type(method).__name__
    else:
        chosen, label = METHODS[method], repr(method)
    if not options:
        return chosen
    allowed = [field.name for field in dataclasses.fields(chosen)]
    for option in options:
        if option not in allowed:
            known = ", ".join(allowed) or "none"
            raise OptionError(f"method {label} has no option {option!r}; its options: {known}")
    return dataclasses.replace(chosen, **options)


def check_choice(method: object, option: str, allowed: tuple[str, ...]) -> None:
    """Raise unless an option is one of the allowed names."""
    value = getattr(method, option)
    if value not in allowed:
        raise OptionError(f"{type(method).__name__}: {option} must be one of {', '.join(allowed)}, got {value!r}")


def check_at_least(method: object, option: str, least: int) -> None:
    """Raise unless an option is an integer not below ``least``."""
    value = getattr(method, option)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise OptionError(f"{type(method).__name__}: {option} must be an integer >= {least}, got {value!r}")
