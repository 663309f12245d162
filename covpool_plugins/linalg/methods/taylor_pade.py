"""Matrix Taylor polynomial and matrix Padé approximant of the square root around the identity."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import accumulate

import torch

from ...checks import check_integer
from ...tables import About
from .._dual import Matrix, affine, combination, inverse_positive, polynomial, product
from .base import INVERSE_ROOTS, SQUARE_ROOTS, Gradient, IterativeMethod, Wanted, option

Coefficients = tuple[Fraction, ...]


@cache
def taylor_coefficients(degree: int) -> Coefficients:
    """√(1 - z) up to z^degree, ascending."""
    coefficients = [Fraction(1)]
    for k in range(degree):
        coefficients.append(coefficients[-1] * (Fraction(k) - Fraction(1, 2)) / (k + 1))
    return tuple(coefficients)


@torch.compiler.assume_constant_result
def _taylor_row(degree: int, wanted: Wanted) -> list[float]:
    """Coefficients of the polynomial, or of its ``factor``."""
    coefficients = taylor_coefficients(degree)
    if wanted == "factor":
        coefficients = _divide_by_b((coefficients[0] - sum(coefficients), *coefficients[1:]))
    return [float(c) for c in coefficients]


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
    degree: int = option(10, check_integer, 1)

    @property
    def at_zero(self) -> float:  # type: ignore[override]
        return sum(_taylor_row(self.degree, "root"))

    def exportable(self, function: str) -> bool:
        return function == "sqrtm"

    def evaluate(self, B: Matrix, wanted: Wanted) -> Matrix:
        Z = affine(B, 1.0, -1.0)
        result = polynomial(_taylor_row(self.degree, wanted), Z)
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

    In partial fractions, with d the degree and θ_j = π j / (2 d + 1), it is

        (I + 2 Σ_j B (sin² θ_j I + cos² θ_j B)⁻¹) / (2 d + 1),      B = A / ‖A‖_F,      j = 1 ... d,

    a sum of positive terms, each with a Cholesky factorisation; numerator over denominator would cancel.

    Args:
        degree: of numerator and denominator, the paper's M = N.

    Source: Song, Sebe & Wang, "Fast Differentiable Matrix Square Root", ICLR 2022, eq. 7-11; partial fractions:
    Higham, "Functions of Matrices", 2008, section 6.

    Examples:
        >>> sqrtm(torch.diag(torch.tensor([100.0, 1.0])), MPA(degree=5)).diagonal()  # too large for the smaller
        tensor([10.0000,  1.2472])
    """

    gradient: Gradient = "auto"
    degree: int = option(5, check_integer, 1)

    @property
    def at_zero(self) -> float:  # type: ignore[override]
        return 1 / (2 * self.degree + 1)

    def evaluate(self, B: Matrix, wanted: Wanted) -> Matrix:
        angles = [math.pi * j / (2 * self.degree + 1) for j in range(1, self.degree + 1)]
        terms = [inverse_positive(affine(B, math.sin(x) ** 2, math.cos(x) ** 2)) for x in angles]
        factor = combination(0.0, [2 * self.at_zero] * len(terms), terms)
        if wanted == "factor":
            return factor
        root = affine(product(B, factor), self.at_zero, 1.0)
        return inverse_positive(root) if wanted == "inverse" else root


SQUARE_ROOTS.add("mtp", MTP(), About("Taylor polynomial of degree 10", "exact for this polynomial", "ICLR 2022"))
SQUARE_ROOTS.add("mpa", MPA(), About("Padé approximant of degree 5", "exact for this quotient", "ICLR 2022"))
INVERSE_ROOTS.add("mtp", MTP())
INVERSE_ROOTS.add("mpa", MPA())
