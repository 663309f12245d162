"""The Denman-Beavers iteration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ...checks import check_integer, check_number
from ...tables import About
from .._dual import Dual, Matrix, affine, combination, inverse_positive
from .base import SQUARE_ROOTS, Gradient, IterativeMethod, Wanted, option


@dataclass(frozen=True)
class DenmanBeavers(IterativeMethod):
    """Y <- (Y + Z⁻¹) / 2, Z <- (Z + Y⁻¹) / 2 from Y = A / scale and Z = I: quadratic convergence, two inverses a step.

    The inverses need a positive definite matrix, so a ridge is added to the diagonal; without it the iteration diverges
    for singular matrices, with it their root is off by about 2^-iterations √scale in the null directions. For features
    with fewer positions than channels any other method is a better choice.

    Args:
        ridge: what is added to the diagonal, as a share of the scale; at least ten rounding errors are.
        iterations: number of steps.

    Source: Denman & Beavers, "The matrix sign function and computations in systems", 1976; Lin & Maji, BMVC 2017.

    Examples:
        >>> A = torch.diag(torch.tensor([9.0, 4.0], dtype=torch.float64))
        >>> sqrtm(A, DenmanBeavers(iterations=12, ridge=1e-12)).diagonal()
        tensor([3.0000, 2.0000], dtype=torch.float64)
    """

    through_gram: ClassVar[bool] = False
    gradient: Gradient = "auto"
    iterations: int = option(10, check_integer, 1)
    ridge: float = option(1e-6, check_number, "(0, 1)")

    def evaluate(self, B: Matrix, wanted: Wanted) -> Matrix:
        dtype = B.value.dtype if isinstance(B, Dual) else B.dtype
        Y = affine(B, max(self.ridge, 10 * torch.finfo(dtype).eps), 1.0)
        Z = affine(B, 1.0, 0.0)
        for _ in range(self.iterations):
            Y, Z = (
                combination(0.0, [0.5, 0.5], [Y, inverse_positive(Z)]),
                combination(0.0, [0.5, 0.5], [Z, inverse_positive(Y)]),
            )
        return Y if wanted == "root" else Z


SQUARE_ROOTS.add(
    "denman_beavers",
    DenmanBeavers(),
    About("10 Denman-Beavers steps; needs more positions than channels", "exact for these steps", "BMVC 2017"),
)
