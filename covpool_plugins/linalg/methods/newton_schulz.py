"""The coupled Newton-Schulz iteration."""

from __future__ import annotations

from dataclasses import dataclass

from .._dual import Matrix, affine, product
from .base import METHODS, IterativeMethod, Root, check_at_least


@dataclass(frozen=True)
class NewtonSchulz(IterativeMethod):
    """Coupled Newton-Schulz steps Y <- Y T, Z <- T Z with T = (3 I - Z Y) / 2, from Y = A / scale and Z = I.

    With the published five steps and trace scaling this is another operator than the square root: eigenvalues below
    about 1 % of the trace come out too small (the error of S S against A is 0.2 to 0.7 for feature covariances).
    The gradient is the exact one of the steps taken.

    Args:
        scaling: what A is divided by, so that its eigenvalues lie in [0, 1]; the paper's choice is the trace.
        iterations: number of steps, the paper's N.

    Source: Li, Xie, Wang & Gao, "Towards Faster Training of Global Covariance Pooling Networks by Iterative Matrix
    Square Root Normalization" (iSQRT-COV), CVPR 2018, eq. 3-5.
    """

    iterations: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, "iterations", 1)

    def evaluate(self, B: Matrix, wanted: Root) -> Matrix:
        T = affine(B, 1.5, -0.5)
        if self.iterations == 1:
            return product(B, T) if wanted == "root" else T
        Y, Z = product(B, T), T
        for _ in range(self.iterations - 2):
            T = affine(product(Z, Y), 1.5, -0.5)
            Y, Z = product(Y, T), product(T, Z)
        T = affine(product(Z, Y), 1.5, -0.5)
        return product(Y, T) if wanted == "root" else product(T, Z)


METHODS.add("isqrt", NewtonSchulz())
