"""What a checkpoint is, and where each of its tensors goes in our model.

A layout is a list of pairs (module in the original, module in ours); what stands under the one comes to stand under the
other, in the same shape. Or it is a list of changes of keys, for networks whose names differ from timm's throughout.
Whitening layers, whose tensors are cut and joined, have a rule of their own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import OptionError
from ..tables import Table
from .network import Network
from .original_state import OriginalState
from .triangle import columns

Shape = tuple[int, ...]
Pieces = Mapping[int | None, Tensor]


class Placement(NamedTuple):
    """A place in our state dict; with a number, one part of the tensor there; perhaps transposed.

    ``shape`` is that of the tensor in the file, where it is another than ours; with ``ones`` it is ours but for axes of
    length one. ``change`` is a name in :data:`CHANGES`, where numbers change.
    """

    key: str
    part: int | None = None
    transposed: bool = False
    shape: Shape | None = None
    ones: bool = False
    change: str | None = None


class Dropped(NamedTuple):
    """A tensor that has no place: why it needs none, and its shape in the file, if there is but one."""

    reason: str
    shape: Shape | None = None


Somewhere = Placement | Dropped | None
# Of a list, each has one of as many equal parts of the rows.
Places = Somewhere | list[Placement | Dropped]
Place = Callable[[str], Places]


@dataclass(frozen=True)
class Change:
    """How a tensor of our model is made of its parts in the file, and each part of it.

    Args:
        join: from the parts by their numbers to the whole.
        split: from the whole, the number and the shape of a part to the part; as far as that can be told.
        remark: on a part.
    """

    join: Callable[[Pieces], Tensor]
    split: Callable[[Tensor, int | None, Shape], Tensor]
    remark: str = ""


def _stack(pieces: Pieces) -> Tensor:
    return pieces[None] if None in pieces else torch.stack([pieces[index] for index in range(len(pieces))])


def _two_classifiers(factor: float, remark: str) -> Change:
    """A factor times the sum of two linear classifiers, as one of both vectors, one behind the other."""

    def join(pieces: Pieces) -> Tensor:
        first, second = pieces[0], pieces[1]
        return factor * (first + second if first.ndim == 1 else torch.cat([first, second], dim=1))

    def split(whole: Tensor, part: int | None, shape: Shape) -> Tensor:
        if whole.ndim == 1:
            return whole / (2 * factor)
        return (whole[:, -shape[1] :] if part else whole[:, : shape[1]]) / factor

    return Change(join, split, remark)


def _biased(weight: Tensor) -> float:
    """√((C - 1) / C): a norm that divides by an unbiased variance is one of the biased with so much less weight."""
    return float((1 - 1 / len(weight)) ** 0.5)


CHANGES: dict[str | None, Change] = {
    None: Change(_stack, lambda whole, part, _: whole if part is None else whole[part].clone()),
    "lower": Change(
        lambda pieces: pieces[None][:, columns(pieces[None].shape[1], "lower")],
        lambda whole, *_: whole[:, columns(whole.shape[1], "upper")],
        "columns of the lower triangle",
    ),
    "mean": _two_classifiers(0.5, "half of it: the logits are the mean of two classifiers'"),
    "sum": _two_classifiers(1.0, "the logits are the sum of two classifiers'"),
    "unbiased": Change(
        lambda pieces: pieces[None] * _biased(pieces[None]),
        lambda whole, *_: whole / _biased(whole),
        "times √((C - 1) / C), for the unbiased variance of the release",
    ),
}


def by_modules(pairs: Iterable[tuple[str, str]]) -> Place:
    """The rule of a list of pairs; the longest match counts, the empty name is the whole model.

    A pair may have the whole key of a tensor, whose axes of length one do not count then.
    """
    table = dict(pairs)

    def place(key: str) -> Placement | None:
        parts = key.split(".")
        for length in range(len(parts), -1, -1):
            module = ".".join(parts[:length])
            if module in table:
                ours = ".".join(part for part in (table[module], *parts[length:]) if part)
                return Placement(ours, ones=length == len(parts))
        return None

    return place


class Renaming(NamedTuple):
    """A regular expression in keys, what it is replaced by, and the part and change of the tensors that it is in."""

    pattern: str
    replacement: str | Callable[[re.Match[str]], str]
    part: int | None = None
    change: str | None = None


def by_renaming(renamings: Iterable[Renaming]) -> Place:
    """The rule of changes of keys, one after another; axes of length one do not count."""

    def place(key: str) -> Placement:
        part = change = None
        for step in renamings:
            key, count = re.subn(step.pattern, step.replacement, key)
            if count:
                part, change = step.part if part is None else part, change or step.change
        return Placement(key, part, ones=True, change=change)

    return place


@dataclass(frozen=True)
class Hints:
    """What the user says: the architecture and the head."""

    arch: str | None = None
    head: str | None = None


class RefusedError(OptionError):
    """Of a checkpoint whose kind is beyond doubt: no other kind is looked for."""


@dataclass(frozen=True)
class Plan:
    """What a checkpoint is and where its tensors go.

    Args:
        source: where checkpoints of this kind come from.
        network: the model that they are weights of.
        place: the place of a tensor, or why it has none; ``None`` for one that nobody knows.
        notes: what was decided, and why.
        dropped: why tensors have no place, by regular expressions of their whole keys; before ``place`` is asked.
        fresh: whether the model's head starts with fresh weights.
        named: whether the file or the user says so by name; then no other kind is looked for.
        any_order: whether the vector may be a lower triangle, as fast-MPN-COV's once was.
        data: what of timm's description of the data differs from the backbone's own.
    """

    source: str
    network: Network
    place: Place
    notes: list[str] = field(default_factory=list)
    dropped: Mapping[str, Dropped] = field(default_factory=dict)
    fresh: bool = False
    named: bool = False
    any_order: bool = False
    data: dict[str, Any] = field(default_factory=dict)

    def places(self, key: str) -> Sequence[Somewhere]:
        """The places of equal parts of a tensor's rows, mostly one: where it goes, or why it has no place."""
        without = (dropped for pattern, dropped in self.dropped.items() if re.fullmatch(pattern, key))
        place = next(without, None) or self.place(key)
        return place if isinstance(place, list) else [place]


LAYOUTS: Table[Callable[[OriginalState, Hints], Plan | None]] = Table("kind of checkpoint")
