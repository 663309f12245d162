"""Checks of options: one line that names the option, what is allowed and what was given."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from .errors import OptionError, ShapeError


def is_integer(value: object, least: int = 1) -> bool:
    """Whether this is an integer of at least ``least``; ``True`` is none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def check_integer(option: str, value: object, least: int = 1) -> None:
    """Raise unless the value is an integer of at least ``least``.

    Raises:
        OptionError: naming ``option`` and the value.
    """
    if not is_integer(value, least):
        allowed = "a positive integer" if least == 1 else f"an integer >= {least}"
        raise OptionError(f"{option} must be {allowed}, got {value!r}")


def check_number(option: str, value: object, interval: str) -> None:
    """Raise unless the value is a number in an interval.

    Args:
        option: its name in the message.
        value: what was given.
        interval: in the usual notation: ``"(0, 1]"`` holds 1 and not 0; ``"(0, inf)"`` has no upper end.

    Raises:
        OptionError: naming ``option`` and the value.
    """
    low, high = (float(end) for end in interval[1:-1].split(","))
    inside = (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and (low <= value if interval[0] == "[" else low < value)
        and (value <= high if interval[-1] == "]" else value < high)
    )
    if not inside:
        raise OptionError(f"{option} must be a number in {interval}, got {value!r}")


def check_choice(option: str, value: object, allowed: Collection[object]) -> None:
    """Raise unless the value is one of those allowed.

    Raises:
        OptionError: naming ``option``, the value and what is allowed.
    """
    # 1 equals True and is no choice where True is one.
    if not any(value == choice and isinstance(value, bool) == isinstance(choice, bool) for choice in allowed):
        raise OptionError(f"{option} must be one of {', '.join(map(str, allowed))}, got {value!r}")


def check_classes(num_classes: object, pool_type: str) -> None:
    """Raise unless there are as many classes as can be, which without a pool is none.

    Raises:
        OptionError: naming the value.
    """
    check_integer("num_classes", num_classes, 0)
    if num_classes and not pool_type:
        raise OptionError(f"global_pool='' leaves nothing to classify: use num_classes=0, got {num_classes}")


def check_whole_clips(count: int, frames: int) -> None:
    """Raise unless ``count`` frames are a whole number of clips of ``frames`` frames.

    Raises:
        ShapeError: naming both.
    """
    # Any batch is a whole number of single frames; asking would tie an exported program to its batch.
    if frames > 1 and count % frames != 0:
        raise ShapeError(f"a batch of {count} frames is no whole number of clips of {frames} frames")


def check_flag(option: str, value: object) -> None:
    """Raise unless the value is ``True`` or ``False``.

    Raises:
        OptionError: naming ``option`` and the value.
    """
    if not isinstance(value, bool):
        raise OptionError(f"{option} must be True or False, got {value!r}")


def check_known(owner: str, options: Iterable[str], known: Collection[str]) -> None:
    """Raise unless all names of options are known.

    Raises:
        OptionError: naming ``owner``, the first unknown option and those that there are.
    """
    for option in options:
        if option not in known:
            raise OptionError(f"{owner} has no option {option!r}; its options: {', '.join(known) or 'none'}")
