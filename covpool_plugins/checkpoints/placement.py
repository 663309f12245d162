"""Where each tensor of an original checkpoint goes in our model, and what shape it has to have there.

A layout is a list of pairs (module in the original, module in ours); what stands under the one comes to stand under the
other, in the same shape. Whitening layers, whose tensors are cut and joined, have a rule of their own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

Shape = tuple[int, ...]


class Placement(NamedTuple):
    """A place in our state dict; with a number, one part of the tensor there; perhaps transposed.

    ``shape`` is that of the tensor in the file, where it is another than ours.
    """

    key: str
    part: int | None = None
    transposed: bool = False
    shape: Shape | None = None


class Dropped(NamedTuple):
    """A tensor that has no place: why it needs none, and its shape in the file, if there is but one."""

    reason: str
    shape: Shape | None = None


Place = Callable[[str], Placement | Dropped | None]


def by_modules(pairs: Iterable[tuple[str, str]], dropped: Mapping[str, Dropped] | None = None) -> Place:
    """The rule of a list of pairs; the longest match counts, the empty name is the whole model.

    What ``dropped`` has by a regular expression of the whole key has no place.
    """
    table = dict(pairs)

    def place(key: str) -> Placement | Dropped | None:
        for pattern, without_place in (dropped or {}).items():
            if re.fullmatch(pattern, key):
                return without_place
        parts = key.split(".")
        for length in range(len(parts) - 1, -1, -1):
            module = ".".join(parts[:length])
            if module in table:
                return Placement(".".join(part for part in (table[module], *parts[length:]) if part))
        return None

    return place
