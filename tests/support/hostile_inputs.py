"""Inputs that break second-order layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from covpool_plugins.tables import Table

BATCH = 3
BAD = 0  # the index of the sample that is hostile where the others stay as they are
Refusal = Literal["never", "always", "heads", "batch statistics"]


@dataclass(frozen=True)
class HostileInput:
    """How ordinary features become hostile.

    Attributes:
        spoil: ordinary features (B, C, S, S) to hostile ones of the same shape, all samples of them.
        reshape: ordinary features to a batch of another shape or type, in place of ``spoil``.
        poisoned: whether it holds NaN or infinity, which may spoil its own sample and nothing else.
        refused: which layers refuse it in one line: all, the heads, or those that take statistics of a batch.
    """

    spoil: Callable[[Tensor], Tensor] | None = None
    reshape: Callable[[Tensor], Tensor] | None = None
    poisoned: bool = False
    refused: Refusal = "never"


INPUTS: Table[HostileInput] = Table("hostile input")


def _add(name: str, spoil: Callable[[Tensor], Tensor], poisoned: bool = False) -> None:
    INPUTS.add(name, HostileInput(spoil, poisoned=poisoned))


def _add_shape(name: str, reshape: Callable[[Tensor], Tensor], refused: Refusal = "never") -> None:
    INPUTS.add(name, HostileInput(reshape=reshape, refused=refused))


def ordinary_features(batch: int, channels: int, side: int) -> Tensor:
    """Correlated non-negative features (B, C, S, S), the same every time."""
    generator = torch.Generator().manual_seed(channels)
    noise = torch.randn(batch, channels, side * side, generator=generator)
    mixing = torch.randn(channels, channels, generator=generator)
    return (mixing @ noise / channels**0.5 + 0.3).relu().unflatten(-1, (side, side))


def _position(x: Tensor, index: int = 0) -> Tensor:
    return x.flatten(2)[..., index, None, None].expand_as(x)


def _repeated(x: Tensor, dim: int) -> Tensor:
    """Each second entry along a dimension is the one before it."""
    pairs = torch.arange(x.shape[dim]) // 2 * 2
    return x.index_select(dim, pairs)


def _only(x: Tensor, dim: int, index: int = 0) -> Tensor:
    """Zero but for one index of a dimension."""
    kept = torch.zeros_like(x)
    kept.select(dim, index).copy_(x.select(dim, index))
    return kept


def _without(x: Tensor, dim: int) -> Tensor:
    return x - _only(x, dim)


def _with(x: Tensor, value: float) -> Tensor:
    """One number replaced, in the first channel."""
    x = x.clone()
    x[:, 0, -1, -1] = value
    return x


def _equal_eigenvalues(x: Tensor, spread: float = 0.0) -> Tensor:
    """One position for each channel: the second moment is a multiple of the identity, up to the spread."""
    C, M = x.shape[1], x.shape[2] * x.shape[3]
    values = 1 + spread * torch.arange(C, dtype=x.dtype) / C
    return (torch.eye(C, max(C, M), dtype=x.dtype)[:, :M] * values[:, None]).view(x.shape[1:]).expand_as(x)


def _scales(x: Tensor, low: float, high: float) -> Tensor:
    """Channels of all sizes."""
    return x * torch.logspace(low, high, x.shape[1]).view(-1, 1, 1)


_add("ordinary", lambda x: x)
_add("zeros", torch.zeros_like)
_add("minus zeros", lambda x: -torch.zeros_like(x))
_add("constant", lambda x: torch.full_like(x, 0.1))
_add("large constant", lambda x: torch.full_like(x, 1234.5678))
_add("negative constant", lambda x: torch.full_like(x, -0.1))
_add("constant channels", _position)
_add("nearly constant", lambda x: 1 + 1e-7 * x)
_add("large mean", lambda x: 1000 + x)
_add("all negative", lambda x: -x - 0.1)
_add("dead channel", lambda x: _without(x, 1))
_add("one live channel", lambda x: _only(x, 1))
_add("duplicate channels", lambda x: _repeated(x, 1))
_add("equal channels", lambda x: x[:, :1].expand_as(x))
_add("duplicate positions", lambda x: _repeated(x, 3))
_add("one live position", lambda x: _only(_only(x, 2), 3))
_add("one live number", lambda x: _only(_only(_only(x, 1), 2), 3))
_add("rank 1", lambda x: x[:, :1] * _position(x))
_add("equal eigenvalues", _equal_eigenvalues)
_add("nearly equal eigenvalues", lambda x: _equal_eigenvalues(x, 1e-6))
_add("equal samples", lambda x: x[:1].expand_as(x))
_add("scale 1e-18", lambda x: 1e-18 * x)
_add("scale 1e18", lambda x: 1e18 * x)
_add("denormals", lambda x: 1e-40 * x)
_add("smallest number", lambda x: torch.full_like(x, 1e-45) * (x > x.mean()))
_add("scales 1e-18 to 1", lambda x: _scales(x, -18, 0))
_add("scales 1e-9 to 1e9", lambda x: _scales(x, -9, 9))
_add("outlier 1e18", lambda x: _with(x, 1e18))
_add("NaN", lambda x: _with(x, torch.nan), poisoned=True)
_add("infinity", lambda x: _with(x, torch.inf), poisoned=True)
_add("minus infinity", lambda x: _with(x, -torch.inf), poisoned=True)
_add("all NaN", lambda x: torch.full_like(x, torch.nan), poisoned=True)
_add_shape("one sample", lambda x: x[:1])
_add_shape("1x1 maps", lambda x: x[..., :1, :1])
_add_shape("one sample of 1x1", lambda x: x[:1, :, :1, :1], refused="batch statistics")
_add_shape("two positions", lambda x: x[..., :1, :2])
_add_shape("empty batch", lambda x: x[:0])
_add_shape("no positions", lambda x: x[..., :0], refused="heads")
_add_shape("another number of channels", lambda x: x[:, 1:], refused="always")
_add_shape("integers", lambda x: x.long(), refused="always")
