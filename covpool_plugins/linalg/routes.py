"""eigh or matrix products: two routes to the exact root.

``exact`` and ``svdpade`` decompose a matrix, which a CPU does well. Where a decomposition is slow (on a GPU) or unknown
(in ONNX), the ``minimax`` iteration with enough steps gives the same root, to the rounding of its precision. While a
graph is exported every root by eigen-decomposition takes that route: these methods differ in their gradients alone.
"""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from .methods.base import Compute, Method, Route
from .methods.minimax import Minimax

ROUTES: tuple[Route, ...] = tuple(route for route in get_args(Route) if route != "auto")

# Steps and smallest eigenvalue at which the iteration's error is that of eigh in the same precision.
PRODUCTS: dict[torch.dtype, Minimax] = {
    torch.float32: Minimax(smallest=1e-4, steps=5),
    torch.float64: Minimax(smallest=1e-8, steps=9),
}
# In float64, of matrices that were rounded to float32: their negative eigenvalues must not grow.
OF_ROUNDED = Minimax(smallest=1e-6, steps=7)


def uses_products(method: Method, X: Tensor) -> bool:
    """Whether a method takes the route by matrix products for this input."""
    return method.by_products(X)


def routed(
    method: Method, X: Tensor, compute: Compute, exact: Minimax = PRODUCTS[torch.float64]
) -> tuple[Method, Compute]:
    """The method that computes in place of ``method`` for this input, and in what.

    ``exact`` is the one for float64.
    """
    if not uses_products(method, X):
        return method, compute
    narrow = compute == "float32" and X.dtype != torch.float64
    return (PRODUCTS[torch.float32], "float32") if narrow else (exact, "float64")
