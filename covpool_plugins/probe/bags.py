"""The inputs of a probe: what a data set of maps, tokens or ragged bags becomes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import ShapeError, require_extra


class Bags(NamedTuple):
    """N bags of positions.

    Attributes:
        values: (N, M, C) in float32.
        mask: (N, M), true where a position counts; ``None`` where all do.
    """

    values: Tensor
    mask: Tensor | None = None

    def positions(self) -> np.ndarray:
        """All positions that count, (sum of their numbers, C)."""
        return (self.values.flatten(0, 1) if self.mask is None else self.values[self.mask]).numpy()

    def part(self, rows: Any) -> Bags:
        return Bags(self.values[rows], None if self.mask is None else self.mask[rows])


def is_ragged(X: Any) -> bool:
    """Whether this is a sequence of arrays (M_i, C), whose numbers of positions may differ."""
    if isinstance(X, np.ndarray):
        return X.dtype == object and len(X) > 0 and getattr(X.flat[0], "ndim", 0) == 2
    return isinstance(X, (list, tuple)) and len(X) > 0 and all(getattr(bag, "ndim", 0) == 2 for bag in X)


def bags_of(X: Any, mask: Any = None) -> Bags:
    """Maps (N, C, H, W), tokens (N, M, C), vectors (N, C) or a sequence of arrays (M_i, C) as bags.

    Args:
        X: finite real numbers.
        mask: (N, positions), true where a position counts; not for a sequence of arrays.

    Raises:
        ShapeError: for other shapes, bags without positions, or a mask that does not fit.
        ValueError, TypeError: for what are no finite real numbers, in scikit-learn's words.
    """
    if is_ragged(X):
        if mask is not None:
            raise ShapeError("a sequence of bags takes no mask: each has its own number of positions")
        return _padded([_checked(bag, 2) for bag in X])
    X = _checked(X, None)
    if X.ndim == 4:
        X = X.reshape(*X.shape[:2], -1).transpose(0, 2, 1)
    elif X.ndim == 2:
        X = X[:, None]
    if X.ndim != 3 or 0 in X.shape:
        raise ShapeError(f"features must be (N, C, H, W), (N, M, C), (N, C) or arrays (M, C), got shape {X.shape}")
    values = torch.from_numpy(np.ascontiguousarray(X))
    return Bags(values, None if mask is None else _mask(mask, X.shape[:2]))


def _checked(X: Any, rank: int | None) -> np.ndarray:
    X = X.detach().cpu().numpy() if isinstance(X, Tensor) else X
    validation = require_extra("sklearn.utils.validation", "probe")
    return validation.check_array(X, dtype=np.float32, allow_nd=rank is None, ensure_min_features=rank or 1)


def _mask(mask: Any, shape: tuple[int, ...]) -> Tensor | None:
    mask = mask.cpu() if isinstance(mask, Tensor) else torch.from_numpy(np.asarray(mask))
    if mask.dtype != torch.bool or mask.shape != shape:
        raise ShapeError(f"mask must be boolean of shape {shape}, got {mask.dtype} of shape {tuple(mask.shape)}")
    if not mask.any(1).all():
        raise ShapeError(f"row {int((~mask.any(1)).nonzero()[0])} of the mask has no position that counts")
    return None if mask.all() else mask


def _padded(bags: list[np.ndarray]) -> Bags:
    channels = {bag.shape[1] for bag in bags}
    if len(channels) > 1:
        raise ShapeError(f"all bags must have the same channels, got {sorted(channels)}")
    lengths = torch.tensor([len(bag) for bag in bags])
    values = torch.zeros(len(bags), int(lengths.max()), channels.pop())
    for row, bag in enumerate(bags):
        values[row, : len(bag)] = torch.from_numpy(bag)
    mask = torch.arange(values.shape[1]) < lengths[:, None]
    return Bags(values, None if mask.all() else mask)
