"""Symmetric matrices to vectors and back: the upper triangle, row by row."""

from __future__ import annotations

import torch
from torch import Tensor

_indices: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}


def packed_size(n: int) -> int:
    """How many numbers an n x n symmetric matrix has: n (n + 1) / 2."""
    return n * (n + 1) // 2


def pack_triu(S: Tensor) -> Tensor:
    """Upper triangles (..., n(n+1)/2) of matrices (..., n, n), in the order of ``torch.triu_indices(n, n)``."""
    take, _ = _triangle_indices(S.shape[-1], S.device)
    return S.flatten(-2).index_select(-1, take)


def unpack_symmetric(v: Tensor, n: int) -> Tensor:
    """The symmetric matrices (..., n, n) whose upper triangles are ``v`` (..., n(n+1)/2), in one pass."""
    _, put = _triangle_indices(n, v.device)
    return v.index_select(-1, put).unflatten(-1, (n, n))


def _triangle_indices(n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    cached = None if torch.compiler.is_compiling() else _indices.get((n, device))
    if cached is None:
        with torch.inference_mode(False):
            cached = _build_triangle_indices(n, device)
        # Fake and meta tensors of a tracing mode must not outlive it.
        if type(cached[0]) is Tensor and not torch.compiler.is_compiling():
            _indices[n, device] = cached
    return cached


def _build_triangle_indices(n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    rows = torch.arange(n, device=device).unsqueeze(-1)
    columns = torch.arange(n, device=device)
    low, high = torch.minimum(rows, columns), torch.maximum(rows, columns)
    row, column = torch.triu_indices(n, n, device=device)
    return row * n + column, (low * (2 * n - low - 1) // 2 + high).flatten()
