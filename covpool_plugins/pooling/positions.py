"""Which positions count: masks of ragged samples, and what depends on how many positions a sample has.

Features X are (..., C, M), masks (..., M), true where a position counts. Features are zero where it does not.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..errors import DtypeError, ShapeError
from ..linalg.covariance import rounding_of_mean
from ..linalg.tensors import working_dtype


def check_mask(mask: Tensor, batch: int, positions: int) -> None:
    """Raise unless the mask is boolean, (batch, positions).

    Raises:
        DtypeError, ShapeError: naming what was given.
    """
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise DtypeError(f"mask must be a boolean tensor, got {getattr(mask, 'dtype', type(mask).__name__)}")
    if mask.shape != (batch, positions):
        raise ShapeError(f"mask must be (batch, positions), here {(batch, positions)}, got shape {tuple(mask.shape)}")


def only(X: Tensor, mask: Tensor | None) -> Tensor:
    """X (..., C, M) where the mask is true; zero, without gradient, elsewhere."""
    return X if mask is None else X.masked_fill(~mask.unsqueeze(-2), 0.0)


def reduced_positions(reduction: nn.Module, maps: Tensor, mask: Tensor | None) -> Tensor:
    """Features (B, C, M) of maps (B, C', H, W) by a reduction that works position by position."""
    if mask is None:
        return reduction(maps).flatten(2)
    check_mask(mask, maps.shape[0], maps.shape[2] * maps.shape[3])
    X = maps.flatten(2)
    if reduction.training and any(isinstance(module, nn.BatchNorm2d) for module in reduction.modules()):
        rows = X.transpose(1, 2).flatten(0, 1)
        reduced = on_rows(lambda rows: reduction(rows.T[None, :, :, None])[0, :, :, 0].T, rows, mask.flatten())
        return reduced.unflatten(0, mask.shape).transpose(1, 2)
    return only(reduction(only(X, mask).reshape(maps.shape)).flatten(2), mask)


def on_rows(function: Callable[[Tensor], Tensor], rows: Tensor, mask: Tensor) -> Tensor:
    """The function of those rows (n, C) that count, zeros elsewhere: a batch norm takes its statistics of them alone.

    Raises:
        ShapeError: if there is none, of which no statistics can be taken.
    """
    counting = rows[mask]
    if len(counting) == 0:
        raise ShapeError("no positions to train a batch norm on: the mask leaves none of the batch")
    result = function(counting)
    return result.new_zeros(len(rows), result.shape[1]).index_put((mask,), result)


def is_one_position(X: Tensor) -> bool:
    """Whether features (B, C, M) have a single position; not asked of a program that is recorded or mapped."""
    recorded = torch.jit.is_tracing() or torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export()
    return not recorded and not torch._C._are_functorch_transforms_active() and X.shape[-1] == 1


def count_positions(X: Tensor, mask: Tensor | None) -> Tensor | int:
    """How many positions of features (..., C, M) count, for the division of sums: M, or (..., 1, 1), at least one."""
    return X.shape[-1] if mask is None else mask.sum(-1).clamp_min(1)[..., None, None].to(X.dtype)


def mean_over_positions(X: Tensor, mask: Tensor | None) -> Tensor:
    """The means (..., C, 1) of features (..., C, M) over the positions that count."""
    return X.mean(-1, keepdim=True) if mask is None else only(X, mask).sum(-1, keepdim=True) / count_positions(X, mask)


def counted(X: Tensor, mask: Tensor | None, centered: bool, rounding: torch.dtype = torch.float32) -> Tensor:
    """Features whose second moment X Xᵀ / M is the covariance of the positions that count; float32 at least.

    They are centred, in float64, and zero where they are constant up to the rounding of a type, or masked; the others
    are multiplied by √(M / n) for n of M positions.
    """
    wide = only(X.double(), mask)
    count = count_positions(wide, mask)
    if centered:
        mean = mean_over_positions(wide, mask)
        wide = only(wide - mean, mask)
        variance = (wide.detach().square().sum(-1, keepdim=True) / count).sum(1)
        wide = wide * (~(variance <= rounding_of_mean(mean.to(torch.promote_types(rounding, X.dtype))))).to(
            wide.dtype
        ).unsqueeze(-1)
    if mask is not None:
        wide = wide * (X.shape[-1] / count) ** 0.5
    return wide.to(working_dtype(X.dtype))


def squared_size(X: Tensor, mask: Tensor | None = None, centered: bool = False) -> Tensor:
    """Σ x² (B, 1) of features (B, C, M), over the positions that count."""
    if centered:
        X = only(X - mean_over_positions(X, mask), mask)
    return X.square().sum((-2, -1)).unsqueeze(-1)
