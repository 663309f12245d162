"""Matrix Taylor polynomial and matrix Padé approximant of the square root around the identity."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import accumulate
from math import comb

import torch

from ...checks import check_integer
from ...tables import About
from .._dual import Matrix, affine, inverse_positive, polynomials, solve_positive
from .base import INVERSE_ROOTS, SQUARE_ROOTS, Gradient, IterativeMethod, Wanted, check_field

Coefficients = tuple[Fraction, ...]


@cache
def taylor_coefficients(degree: int) -> Coefficients:
    """√(1 - z) up to z^degree, ascending."""
    coefficients = [Fraction(1)]
    for k in range(degree):
        coefficients.append(coefficients[-1] * (Fraction(k) - Fraction(1, 2)) / (k + 1))
    return tuple(coefficients)


@cache
def pade_coefficients(degree: int) -> tuple[Coefficients, Coefficients]:
    """Numerator and denominator of the [degree/degree] Padé approximant of √(1 - z), ascending, exact.

    From ((1 + r)^(2 d + 1) ± (1 - r)^(2 d + 1)) with r = √(1 - z): their quotient, times r, is the approximant.
    """
    order = 2 * degree + 1

    def even_part(offset: int) -> Coefficients:
        # Σ binom(order, 2 k + offset) (1 - z)^k, expanded in z and normalised to one at z = 0.
        total = [Fraction(0)] * (degree + 1)
        for k in range(degree + 1):
            for j in range(k + 1):
                total[j] += comb(order, 2 * k + offset) * comb(k, j) * (-1) ** j
        return tuple(c / total[0] for c in total)

    return even_part(0), even_part(1)


@torch.compiler.assume_constant_result
def _taylor_row(degree: int, wanted: Wanted) -> list[float]:
    """Coefficients of the polynomial, or of its ``factor``."""
    coefficients = taylor_coefficients(degree)
    if wanted == "factor":
        coefficients = _divide_by_b((coefficients[0] - sum(coefficients), *coefficients[1:]))
    return [float(c) for c in coefficients]


@torch.compiler.assume_constant_result
def _pade_rows(degree: int, wanted: Wanted) -> list[list[float]]:
    """Coefficients of the numerator and of the denominator for the root, its inverse or its factor."""
    P, Q = pade_coefficients(degree)
    if wanted == "inverse":
        P, Q = Q, P
    elif wanted == "factor":
        at_one = sum(P, Fraction(0)) / sum(Q, Fraction(0))
        P = (*_divide_by_b(tuple(p - at_one * q for p, q in zip(P, Q, strict=True))), Fraction(0))
    return [[float(c) for c in row] for row in (P, Q)]


def _divide_by_b(coefficients: Coefficients) -> Coefficients:
    """N(z) / (1 - z) for a polynomial with N(1) = 0: the running sums of its coefficients."""
    return tuple(accumulate(coefficients[:-1]))


@dataclass(frozen=True)
class MTP(IterativeMethod):
    """The Taylor polynomial of √(I - Z), Z = I - A / ‖A‖_F; the inverse root is its inverse.

    An approximation of the square root: eigenvalues far below ‖A‖_F come out too large, a zero eigenvalue as
    0.18 √‖A‖_F for degree 10. Relative error of S S for a matrix 64 x 64 with eigenvalues evenly spaced on a
    logarithmic scale, by condition number, as ``tools/benchmark.py operators`` prints it:

    ==================  ======  ======  ======  ======
    condition number     10      100     1e4     1e6
    ==================  ======  ======  ======  ======
    degree 10            0.10    0.16    0.20    0.22
    ==================  ======  ======  ======  ======

    Args:
        degree: of the polynomial, the paper's K.

    Source: Song, Sebe & Wang, "Fast Differentiable Matrix Square Root", ICLR 2022, eq. 4-6.

    Examples:
        >>> sqrtm(torch.diag(torch.tensor([100.0, 1.0])), MTP(degree=10)).diagonal()  # too large for the smaller
        tensor([10.0000,  1.9356])
    """

    gradient: Gradient = "auto"
    degree: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        check_field(self, "degree", check_integer, 1)

    @property
    def at_zero(self) -> float:  # type: ignore[override]
        return sum(_taylor_row(self.degree, "root"))

    def exportable(self, function: str) -> bool:
        return function == "sqrtm"

    def evaluate(self, B: Matrix, wanted: Wanted) -> Matrix:
        Z = affine(B, 1.0, -1.0)
        result = polynomials([_taylor_row(self.degree, wanted)], Z)[0]
        return inverse_positive(result) if wanted == "inverse" else result


@dataclass(frozen=True)
class MPA(IterativeMethod):
    """The Padé approximant of √(I - Z), Z = I - A / ‖A‖_F; the inverse root is its inverse.

    An approximation of the square root: eigenvalues far below ‖A‖_F come out too large, a zero eigenvalue as
    √‖A‖_F / (2 degree + 1). Relative error of S S for a matrix 64 x 64 with eigenvalues evenly spaced on a logarithmic
    scale, by condition number, as ``tools/benchmark.py operators`` prints it:

    ==================  ======  ======  ======  ======
    condition number     10      100     1e4     1e6
    ==================  ======  ======  ======  ======
    degree 5             0.010   0.030   0.048   0.054
    ==================  ======  ======  ======  ======

    The denominator is positive definite, so one Cholesky factorisation solves for the quotient.

    Args:
        degree: of numerator and denominator, the paper's M = N.

    Source: Song, Sebe & Wang, "Fast Differentiable Matrix Square Root", ICLR 2022, eq. 7-11.

    Examples:
        >>> sqrtm(torch.diag(torch.tensor([100.0, 1.0])), MPA(degree=5)).diagonal()  # too large for the smaller
        tensor([10.0000,  1.2473])
    """

    gradient: Gradient = "auto"
    degree: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_field(self, "degree", check_integer, 1)

    @property
    def at_zero(self) -> float:  # type: ignore[override]
        return 1 / (2 * self.degree + 1)

    def evaluate(self, B: Matrix, wanted: Wanted) -> Matrix:
        numerator, denominator = polynomials(_pade_rows(self.degree, wanted), affine(B, 1.0, -1.0))
        return solve_positive(denominator, numerator)


SQUARE_ROOTS.add("mtp", MTP(), About("Taylor polynomial of degree 10", "exact for this polynomial", "ICLR 2022"))
SQUARE_ROOTS.add("mpa", MPA(), About("Padé approximant of degree 5", "exact for this quotient", "ICLR 2022"))
INVERSE_ROOTS.add("mtp", MTP())
INVERSE_ROOTS.add("mpa", MPA())
