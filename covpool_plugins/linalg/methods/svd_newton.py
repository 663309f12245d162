"""eigh forward, the gradient of Newton-Schulz steps backward."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...checks import check_integer
from ...tables import About
from .base import SQUARE_ROOTS, EigenMethod, check_field
from .eigen import BY_EIGH


@dataclass(frozen=True)
class SVDNewton(EigenMethod):
    """The exact root forward, and backward the gradient of Newton-Schulz steps with trace scaling.

    On the eigenvalues those steps are a recursion of numbers; so are their divided differences. The trace, which the
    scaling depends on, adds a multiple of the identity to the gradient.

    Args:
        iterations: number of steps.

    Source: Song, Sebe & Wang, "Why Approximate Matrix Square Root Outperforms Accurate SVD in Global Covariance
    Pooling?", ICCV 2021, section 3.2.

    Examples:
        >>> A = torch.diag(torch.tensor([4.0, 1.0])).requires_grad_()
        >>> grads = [torch.autograd.grad(sqrtm(A, name, iterations=5).sum(), A)[0] for name in ("svdnewton", "isqrt")]
        >>> torch.allclose(*grads, atol=1e-5)
        True
    """

    iterations: int = 10

    def __post_init__(self) -> None:
        check_field(self, "iterations", check_integer, 1)

    def coefficients(self, values: Tensor, others: Tensor) -> Tensor:
        b, unit = _shares(values)
        c = (others / unit).square()
        K = _differences(b, c, self.iterations) / unit.unsqueeze(-1)
        return torch.where((values == 0).all(-1)[..., None, None], 0.0, K)

    def towards_null(self, values: Tensor) -> Tensor | float:
        return self.coefficients(values, torch.zeros_like(values[..., :1])).mT * values.unsqueeze(-2)

    def along_identity(self, values: Tensor, diagonal: Tensor) -> Tensor | None:
        b, unit = _shares(values)
        y = _steps(b, self.iterations)[-1][0]
        slope = _differences(b, b, self.iterations).diagonal(dim1=-2, dim2=-1)
        return ((0.5 * y - b * slope) * diagonal).sum(-1, keepdim=True) / unit


def _shares(roots: Tensor) -> tuple[Tensor, Tensor]:
    """The eigenvalues as shares of the trace, and its root (..., 1)."""
    unit = torch.linalg.vector_norm(roots, dim=-1, keepdim=True)
    unit = torch.where(unit == 0, 1.0, unit)
    return (roots / unit).square(), unit


def _steps(b: Tensor, iterations: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(y, z, t) before every step y <- y t, z <- t z, t = (3 - z y) / 2, and after the last."""
    y, z, states = b, torch.ones_like(b), []
    for _ in range(iterations + 1):
        t = 1.5 - 0.5 * z * y
        states.append((y, z, t))
        y, z = y * t, t * z
    return states


def _differences(b: Tensor, c: Tensor, iterations: int) -> Tensor:
    """Divided differences y[b_i, c_j] after the steps: (u v)[b, c] = u(b) v[b, c] + u[b, c] v(c)."""
    rows, columns = _steps(b.unsqueeze(-1), iterations), _steps(c.unsqueeze(-2), iterations)
    Y = torch.ones_like(rows[0][0] * columns[0][0])
    Z = torch.zeros_like(Y)
    for (y, z, t), (y2, z2, t2) in zip(rows[:-1], columns[:-1], strict=True):
        T = -0.5 * (z * Y + Z * y2)
        Y, Z = y * T + Y * t2, t * Z + T * z2
    return Y


SQUARE_ROOTS.add("svdnewton", SVDNewton(), About(BY_EIGH, "that of 10 Newton-Schulz steps", "ICCV 2021"))
