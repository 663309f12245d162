"""Coupled steps with the best polynomial for each step's spectrum."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.polynomial import Polynomial

from ...checks import check_choice, check_integer, check_number
from ...tables import About
from .._dual import Matrix
from .base import INVERSE_ROOTS, SQUARE_ROOTS, IterativeMethod, Scaling, Wanted, option
from .newton_schulz import coupled_steps

DEGREES = (3, 5, 7, 9)
NARROW = 1e-2  # of intervals so short, the error of the best polynomial is lost in rounding


@dataclass(frozen=True)
class Minimax(IterativeMethod):
    """Coupled steps like Newton-Schulz's, each with the polynomial that is best for what the steps before left.

    x = √(eigenvalue of Z Y) should become one. A step maps x to an odd polynomial p(x); of its degree, p is the one
    with the least largest |1 - p| on the interval in which x lies, at first [√smallest, 1], then [1 - e, 1 + e] with
    the error e of the step before. The composition is the best one among all compositions of that form. With degree
    five, k steps take 4 k - 3 products.

    Largest error |1 - x| over [smallest, 1], against Newton-Schulz (``tools/benchmark.py operators``):

    ================================  ========  ======  ======  ======  ======
    smallest                          products   0.1     0.01    1e-3    1e-4
    ================================  ========  ======  ======  ======  ======
    Newton-Schulz, 5 steps            12         3e-3    0.34    0.76    0.92
    degree 5, 2 steps                 5          6e-4    0.063   0.36    0.71
    degree 5, 3 steps (``minimax``)   9          5e-10   2e-4    0.031   0.27
    Newton-Schulz, 10 steps           27         1e-16   3e-11   0.024   0.47
    degree 5, 4 steps                 13         2e-16   9e-12   2e-5    0.013
    ================================  ========  ======  ======  ======  ======

    Args:
        smallest: the smallest eigenvalue, as a share of the scale, that should come out right; smaller ones come out
            too small.
        steps: number of steps.
        degree: of the odd polynomials, 3, 5, 7 or 9.

    Source: composed minimax odd polynomials for the matrix sign were first in Amsel, Persson, Musco & Gower, "The Polar
    Express", arXiv 2505.16932, 2025, and Grishina, Smirnov & Rakhuba, "Accelerating Newton-Schulz Iteration for
    Orthogonalization via Chebyshev-type Polynomials" (CANS), arXiv 2506.10935, 2025; found here independently, for the
    square root. Remez exchange per step as in Chen & Chow, "A stable scaling of Newton-Schulz", 2014.

    Examples:
        >>> sqrtm(torch.diag(torch.tensor([100.0, 1.0])), Minimax(smallest=1e-3, steps=4)).diagonal()
        tensor([10.0001,  1.0000])
    """

    scaling: Scaling = "frobenius"
    smallest: float = option(1e-2, check_number, "(0, 1)")
    steps: int = option(3, check_integer, 1)
    degree: int = option(5, check_choice, DEGREES)

    def exportable(self, function: str) -> bool:
        return True

    def evaluate(self, B: Matrix, wanted: Wanted) -> Matrix:
        return coupled_steps(B, step_coefficients(self.smallest, self.steps, self.degree), wanted)


@torch.compiler.assume_constant_result
def step_coefficients(smallest: float, steps: int, degree: int) -> tuple[tuple[float, ...], ...]:
    """Coefficients of p(x) / x in ascending powers of x², for each step."""
    return _step_coefficients(smallest, steps, degree)


@cache
def _step_coefficients(smallest: float, steps: int, degree: int) -> tuple[tuple[float, ...], ...]:
    low, high, polynomials = smallest**0.5, 1.0, []
    for _ in range(steps):
        coefficients, error = best_odd_polynomial(low, high, degree)
        polynomials.append(tuple(coefficients))
        low, high = 1 - error, 1 + error
    return tuple(polynomials)


# Numbers and arrays, not tensors: torch.export replaces the tensors of what it runs by ones without values.


def best_odd_polynomial(low: float, high: float, degree: int) -> tuple[list[float], float]:
    """The odd polynomial closest to one on [low, high] in the largest error, by Remez exchange, and that error."""
    terms = (degree + 1) // 2
    powers, signs = 2 * np.arange(terms) + 1, (-1.0) ** np.arange(terms + 1)

    def error(x: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
        return 1 - x[:, None] ** powers @ coefficients

    if high - low < NARROW:
        coefficients = limit_polynomial(terms)
        return coefficients.tolist(), np.abs(error(np.array([low, high]), coefficients)).max().item()
    points = (high + low) / 2 - (high - low) / 2 * np.cos(np.linspace(0, np.pi, terms + 1))
    # Dense at both ends of the interval and, for a wide one, at small values.
    grid = low * (high / low) ** (0.5 - 0.5 * np.cos(np.linspace(0, np.pi, 20001)))
    for _ in range(50):
        *best, level = np.linalg.solve(np.column_stack([points[:, None] ** powers, signs]), np.ones(terms + 1))
        found = error(grid, np.array(best))
        largest = np.abs(found).max().item()
        # The point of largest error of each run of one sign; the last runs have as many as are needed.
        runs = np.split(np.arange(len(grid)), np.flatnonzero(np.diff(found >= 0)) + 1)
        new = grid[[run[np.abs(found[run]).argmax()] for run in runs[-terms - 1 :]]]
        if largest <= abs(level) * (1 + 1e-9) or np.array_equal(new, points):
            break
        points = new
    return [float(c) for c in best], largest


def limit_polynomial(terms: int) -> np.ndarray:
    """What the best polynomial tends to for an interval that shrinks to one: x times the series of (x²)^(-1/2)."""
    total, factor = Polynomial([0.0]), 1.0  # the factor of (1 - x²)^k in (1 - (1 - x²))^(-1/2)
    for k in range(terms):
        total += factor * Polynomial([1, -1]) ** k
        factor *= (k + 0.5) / (k + 1)
    return total.coef


SQUARE_ROOTS.add(
    "minimax", Minimax(), About("3 steps with minimax polynomials", "exact for these steps", "this project")
)
INVERSE_ROOTS.add("minimax", Minimax(smallest=1e-3, steps=5))
