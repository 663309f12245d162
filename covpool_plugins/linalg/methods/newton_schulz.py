"""The coupled Newton-Schulz iteration, and the general coupled step it is a case of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...checks import check_integer
from ...tables import About
from .._dual import Matrix, polynomial, product
from .base import INVERSE_ROOTS, SQUARE_ROOTS, IterativeMethod, Scaling, Wanted, option

NEWTON_SCHULZ_STEP = (1.5, -0.5)


def coupled_steps(B: Matrix, steps: Sequence[Sequence[float]], wanted: Wanted) -> Matrix:
    """Steps Y <- Y T, Z <- T Z with T a polynomial in Z Y, from Y = B and Z = I; no product that is not needed.

    Z tends to the inverse root and Y = B Z to the root. With k steps of degree one in Z Y this takes 3 (k - 1)
    products, or one if k is one.

    Args:
        steps: the coefficients of T in ascending powers of Z Y, for each step.
        wanted: Y (``root``) or Z (``inverse``, ``factor``).
    """
    first, *others = steps
    T = polynomial(first, B, block=2)
    if not others:
        return product(B, T) if wanted == "root" else T
    Y, Z = product(B, T), T
    for coefficients in others[:-1]:
        T = polynomial(coefficients, product(Z, Y), block=2)
        Y, Z = product(Y, T), product(T, Z)
    T = polynomial(others[-1], product(Z, Y), block=2)
    return product(Y, T) if wanted == "root" else product(T, Z)


@dataclass(frozen=True)
class NewtonSchulz(IterativeMethod):
    """Coupled Newton-Schulz steps Y <- Y T, Z <- T Z with T = (3 I - Z Y) / 2, from Y = A / scale and Z = I.

    ``isqrt`` is the method as published: five steps, trace scaling and the exact gradient of the steps taken. Five
    steps only approximate the square root: eigenvalues far below the trace come out too small. Relative error of S S
    for a matrix 64 x 64 with eigenvalues evenly spaced on a logarithmic scale, by condition number, as
    ``tools/benchmark.py operators`` prints it:

    ===================================  ======  ======  ======  ======
    condition number                      10      100     1e4     1e6
    ===================================  ======  ======  ======  ======
    5 steps, trace (``isqrt``)            0.29    0.17    0.087   0.058
    5 steps, Frobenius                    0.022   0.032   0.023   0.019
    10 steps, trace                       1e-6    9e-4    2e-3    1e-3
    20 steps, Frobenius                   1e-15   2e-15   8e-15   2e-9
    ===================================  ======  ======  ======  ======

    ``newton_schulz_lyapunov`` scales by the Frobenius norm, and its gradient for a matrix is the iterative Lyapunov
    solution; ``newton_schulz`` is the inverse root, as in IterNorm.

    Args:
        iterations: number of steps, the paper's N.

    Source: Li, Xie, Wang & Gao, "Towards Faster Training of Global Covariance Pooling Networks by Iterative Matrix
    Square Root Normalization" (iSQRT-COV), CVPR 2018, eq. 3-5; Lin & Maji, BMVC 2017, section 3.1; Huang et al.,
    "Iterative Normalization", CVPR 2019.

    Examples:
        >>> sqrtm(torch.diag(torch.tensor([100.0, 1.0])), NewtonSchulz(iterations=5)).diagonal()
        tensor([10.0000,  0.6563])
        >>> sqrtm(torch.diag(torch.tensor([100.0, 1.0])), NewtonSchulz(iterations=15)).diagonal()
        tensor([10.0000,  1.0000])
    """

    scaling: Scaling = "trace"
    iterations: int = option(5, check_integer, 1)

    def exportable(self, function: str) -> bool:
        return True

    def evaluate(self, B: Matrix, wanted: Wanted) -> Matrix:
        return coupled_steps(B, [NEWTON_SCHULZ_STEP] * self.iterations, wanted)


SQUARE_ROOTS.add("isqrt", NewtonSchulz(), About("5 Newton-Schulz steps", "exact for these steps", "CVPR 2018"))
SQUARE_ROOTS.add(
    "newton_schulz_lyapunov",
    NewtonSchulz(scaling="frobenius", gradient="auto", lyapunov_iterations=10, iterations=10),
    About("10 Newton-Schulz steps", "exact for these steps", "BMVC 2017"),
)
INVERSE_ROOTS.add("newton_schulz", NewtonSchulz(scaling="frobenius", iterations=10))
