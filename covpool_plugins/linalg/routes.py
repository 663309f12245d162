"""eigh or matrix products: two routes to the exact root.

``exact`` and ``svdpade`` decompose a matrix, which a CPU does well. Where a decomposition is slow (on a GPU) or unknown
(in ONNX), the ``minimax`` iteration with enough steps gives the same root, to the rounding of its precision.
"""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from .methods.base import Method, Route
from .methods.minimax import Minimax

ROUTES: tuple[Route, ...] = tuple(route for route in get_args(Route) if route != "auto")

# Steps and smallest eigenvalue at which the iteration's error is that of eigh in the same precision.
PRODUCTS: dict[torch.dtype, Minimax] = {
    torch.float32: Minimax(smallest=1e-4, steps=5),
    torch.float64: Minimax(smallest=1e-8, steps=9),
}


def uses_products(method: Method, X: Tensor) -> bool:
    """Whether a method takes the route by matrix products for this input; ``auto`` does on a GPU and in an export."""
    route: Route = getattr(method, "route", "eigh")
    if route == "auto":
        return X.is_cuda or torch.onnx.is_in_onnx_export() or torch.compiler.is_exporting()
    return route == "products"
