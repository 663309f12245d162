"""eigh or matrix products: two routes to the exact root, and which is faster on a device.

``exact`` and ``svdpade`` decompose a matrix, which a CPU does well. A GPU may do better with matrix products alone: the
``minimax`` iteration with enough steps is the same root, to the rounding of its precision. Which is faster depends on
the device, the PyTorch release and the size, so it is measured, once for each of them, and remembered.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any, TypeVar, get_args

import torch
from torch import Tensor

from .methods.base import Method, Route
from .methods.eigen import Exact, ExactInverse
from .methods.minimax import Minimax

Result = TypeVar("Result")
ROUTES: tuple[Route, ...] = tuple(route for route in get_args(Route) if route != "auto")
MEASURED_DEVICES = {"cuda"}  # device types; everywhere else eigh is taken
REPEATS = 3

# Steps and smallest eigenvalue at which the iteration's error is that of eigh in the same precision.
PRODUCTS: dict[torch.dtype, Minimax] = {
    torch.float32: Minimax(smallest=1e-4, steps=5),
    torch.float64: Minimax(smallest=1e-8, steps=9),
}

_fastest: dict[tuple, Route] = {}


def measured_routes() -> dict[tuple, Route]:
    """What was measured in this process: (device, function, dtype, options ..., sizes ...) -> route.

    Examples:
        >>> [key for key in measured_routes() if key[0] == "cpu"]  # eigh is the faster there, and nothing is measured
        []
    """
    return dict(_fastest)


def uses_products(method: Method, X: Tensor, key: tuple, run: Callable[[Tensor, Method], Tensor]) -> bool:
    """Whether a method should take the route by matrix products for this input.

    Args:
        method: with ``route="auto"`` it is measured, on a device where eigh is not always the faster.
        X: the input (..., n, m).
        key: what distinguishes this use from others besides the device, the dtype and the sizes.
        run: (X, method) -> result, on float tensors of any values.
    """
    if not isinstance(method, Exact | ExactInverse):
        return False
    route = method.route if method.route != "auto" else _automatic(method, X, key, run)
    return route == "products"


def _automatic(method: Exact | ExactInverse, X: Tensor, key: tuple, run: Callable[[Tensor, Method], Tensor]) -> Route:
    if X.device.type not in MEASURED_DEVICES or X.numel() == 0:
        return "eigh"
    if torch.compiler.is_compiling() or type(X) is not Tensor:
        return "eigh"  # a graph is being recorded: there is nothing to measure
    n, m = X.shape[-2:]
    batch = X.numel() // (n * m)
    full_key = (str(X.device), *key, X.dtype, 1 << (batch - 1).bit_length(), n, m)
    if X.is_cuda and torch.cuda.is_current_stream_capturing():
        return _fastest.get(full_key, "products")
    if full_key not in _fastest:
        with torch.inference_mode(False), torch.enable_grad():
            example = _example(batch, n, m, X)
            _fastest[full_key] = min(ROUTES, key=lambda route: _seconds(run, example, method, route))
    return _fastest[full_key]


def _example(batch: int, n: int, m: int, like: Tensor) -> Tensor:
    """Numbers without a pattern; a covariance where a square matrix is asked for."""
    numbers = torch.arange(batch * n * m, device=like.device, dtype=torch.float64)
    X = (numbers.square() * 0.37).sin().view(batch, n, m)
    return (X @ X.mT / m if n == m else X).to(like.dtype)


def _seconds(run: Callable[[Tensor, Method], Tensor], X: Tensor, method: Exact | ExactInverse, route: Route) -> float:
    """Least time of a forward and backward; the first, which loads kernels, does not count."""
    routed: Any = dataclasses.replace(method, route=route)
    found = []
    for _ in range(REPEATS + 1):
        leaf = X.clone().requires_grad_()
        start = _now(X.device)
        run(leaf, routed).sum().backward()
        found.append(_now(X.device) - start)
    return min(found[1:])


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
