"""eigh forward, the gradient of Newton-Schulz steps backward."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...checks import check_integer
from ...tables import About
from ..tensors import exporting, is_plain
from .base import SQUARE_ROOTS, Compute, Method, Wanted, option
from .eigen import BY_EIGH, Exact
from .newton_schulz import NewtonSchulz


@dataclass(frozen=True)
class SVDNewton(Method):
    """The exact root forward, and backward the gradient of Newton-Schulz steps with trace scaling.

    The steps are taken beside the eigen-decomposition, in its precision, and only if there is a gradient.

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

    iterations: int = option(10, check_integer, 1)

    def exportable(self, function: str) -> bool:
        return True

    def by_products(self, X: Tensor) -> bool:
        return exporting()

    def of_matrix(self, A: Tensor, wanted: Wanted, compute: Compute, shift: float = 0.0) -> Tensor:
        root = Exact().of_matrix(A.detach(), wanted, compute, shift)
        if is_plain(A):
            return root
        work = A if compute == "float32" else A.double()
        return _with_derivatives(root, self._steps.of_matrix(work, wanted, compute, shift))

    def of_features(self, X: Tensor, centered: bool, mixed: bool, packed: bool) -> Tensor:
        root = Exact().of_features(X.detach(), centered, mixed, packed)
        if is_plain(X):
            return root
        return _with_derivatives(root, self._steps.of_features(X.double() if mixed else X, centered, mixed, packed))

    @property
    def _steps(self) -> NewtonSchulz:
        return NewtonSchulz(iterations=self.iterations)


def _with_derivatives(value: Tensor, of: Tensor) -> Tensor:
    """The value of one with the derivatives of the other."""
    return value + (of - of.detach()).to(value.dtype)


SQUARE_ROOTS.add("svdnewton", SVDNewton(), About(BY_EIGH, "that of 10 Newton-Schulz steps", "ICCV 2021"))
