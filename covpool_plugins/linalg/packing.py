"""Symmetric matrices to vectors and back: the upper triangle, row by row."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ShapeError

BLOCK = 64  # rows; a block of the largest usual matrices still fits into a core's cache
KEPT = 32  # index tensors; a pool of 256 channels takes four for its blocks and one for its gradient

_indices: dict[tuple[str, int, int, torch.device], Tensor] = {}


def packed_size(n: int) -> int:
    """How many numbers an n x n symmetric matrix has: n (n + 1) / 2.

    Examples:
        >>> packed_size(256)
        32896
    """
    return n * (n + 1) // 2


def pack_triu(S: Tensor) -> Tensor:
    """Upper triangles (..., n(n+1)/2) of matrices (..., n, n), in the order of ``torch.triu_indices(n, n)``.

    Raises:
        ShapeError: for other shapes.

    Examples:
        >>> pack_triu(torch.tensor([[1.0, 2.0], [2.0, 3.0]]))
        tensor([1., 2., 3.])
    """
    if S.ndim < 2 or S.shape[-1] != S.shape[-2]:
        raise ShapeError(f"S must be square matrices (..., n, n), got shape {tuple(S.shape)}")
    return _pack_rows(S)


def unpack_symmetric(v: Tensor, n: int) -> Tensor:
    """The symmetric matrices (..., n, n) whose upper triangles are ``v`` (..., n(n+1)/2), in one pass.

    Raises:
        ShapeError: for vectors of another length.

    Examples:
        >>> unpack_symmetric(torch.tensor([1.0, 2.0, 3.0]), 2)
        tensor([[1., 2.],
                [2., 3.]])
    """
    if v.ndim == 0 or v.shape[-1] != packed_size(n):
        raise ShapeError(
            f"v must be vectors (..., {packed_size(n)}) for matrices of size {n}, got shape {tuple(v.shape)}"
        )
    return v.index_select(-1, _cached("mirrored", n, n, v.device)).unflatten(-1, (n, n))


def packed_square(H: Tensor) -> Tensor:
    """Upper triangles of H Hᵀ for H (..., n, m), by block rows: the whole product is never in memory."""
    n = H.shape[-2]
    rows = [_pack_rows(H[..., i : i + BLOCK, :] @ H[..., i:, :].mT) for i in range(0, n, BLOCK)]
    return rows[0] if len(rows) == 1 else torch.cat(rows, dim=-1)


def unpack_gradient(v: Tensor, n: int) -> Tensor:
    """The gradient (..., n, n) of a symmetric matrix, from that of its upper triangle (..., n(n+1)/2).

    An entry off the diagonal was read once and stands for two places, each of which gets half.
    """
    G = 0.5 * unpack_symmetric(v, n)
    G.diagonal(dim1=-2, dim2=-1).mul_(2)
    return G


def unpacked_gradient_product(v: Tensor, U: Tensor) -> Tensor:
    """``2 * unpack_gradient(v, n) @ U`` for U (..., n, m), by block rows: the matrix is never in memory as a whole."""
    n = U.shape[-2]
    places = _cached("mirrored", n, n, v.device)
    products = []
    for i in range(0, n, BLOCK):
        rows = v.index_select(-1, places[i * n : (i + BLOCK) * n]).unflatten(-1, (-1, n))
        rows.diagonal(offset=i, dim1=-2, dim2=-1).mul_(2)
        products.append(rows @ U)
    return products[0] if len(products) == 1 else torch.cat(products, dim=-2)


def _pack_rows(S: Tensor) -> Tensor:
    """The entries (i, j >= i) of S (..., k, n), row by row."""
    return S.flatten(-2).index_select(-1, _cached("upper", S.shape[-2], S.shape[-1], S.device))


def _cached(kind: str, rows: int, columns: int, device: torch.device) -> Tensor:
    key = (kind, rows, columns, device)
    indices = None if torch.compiler.is_compiling() else _indices.get(key)
    if indices is None:
        with torch.inference_mode(False):
            indices = _upper(rows, columns, device) if kind == "upper" else _mirrored(rows, device)
        # Fake and meta tensors of a tracing mode must not outlive it, nor those of a transform of torch.func.
        recorded = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
        if type(indices) is Tensor and not recorded:
            if len(_indices) >= KEPT:
                _indices.pop(next(iter(_indices)))
            _indices[key] = indices
    return indices


def _upper(rows: int, columns: int, device: torch.device) -> Tensor:
    """Where the entries (i, j >= i) are in a flat matrix, row by row.

    What ``torch.triu_indices`` gives, from operations that the older ONNX exporter knows: row i starts at the entry
    i (2 columns - i + 1) / 2, and the float64 root is exact there.
    """
    entry = torch.arange(rows * columns - rows * (rows - 1) // 2, device=device)
    twice = 2 * columns + 1
    row = ((twice - (twice**2 - 8 * entry).double().sqrt()) / 2).floor().long()
    return entry + row * (row + 1) // 2


def _mirrored(n: int, device: torch.device) -> Tensor:
    """For every place of a flat symmetric matrix, where its entry is among the packed ones."""
    rows = torch.arange(n, device=device).unsqueeze(-1)
    columns = torch.arange(n, device=device)
    low, high = torch.minimum(rows, columns), torch.maximum(rows, columns)
    return (low * (2 * n - low - 1) // 2 + high).flatten()
