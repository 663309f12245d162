"""Exponential and powers by matrix products alone, for graphs that are exported: ONNX has no decompositions."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

from .tensors import autocast_off

SQUARINGS = 36


def expm1_neg(A: Tensor) -> Tensor:
    """exp(-A) - I for symmetric A (..., n, n) in float64 with eigenvalues from zero to 2^30: scaling and squaring.

    Without the identity, a squaring E <- 2 E + E E keeps the digits that are there.
    """
    with autocast_off(A.device.type):
        B = A * 0.5**SQUARINGS
        square = B @ B
        E = -B + square / 2 - (square @ B) / 6 + (square @ square) / 24
        for _ in range(SQUARINGS):
            E = 2 * E + E @ E
        return E


def is_product_of_roots(p: float | Tensor) -> bool:
    """Whether A^p is a product of square roots of A."""
    return isinstance(p, int | float) and p > 0 and 2 * p == int(2 * p)


def power_of_root(S: Tensor, p: float) -> Tensor:
    """S^(2 p), the power p of the matrix with that root."""
    with autocast_off(S.device.type):
        return reduce(torch.matmul, [S] * int(2 * p))
