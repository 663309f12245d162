"""Channels per stage, as necks and heads are told them."""

from __future__ import annotations

from collections.abc import Sequence

from ..checks import is_integer
from ..errors import OptionError


def stage_channels(option: str, value: int | Sequence[int]) -> list[int]:
    """The channels of every stage, for a number or a list of them.

    Raises:
        OptionError: if that is not what ``value`` is.
    """
    stages = list(value) if isinstance(value, Sequence) else [value]
    if not stages or not all(is_integer(c) for c in stages):
        raise OptionError(f"{option} must be a positive integer or a list of them, got {value!r}")
    return stages
