"""The ranges of the options of explanation methods; an option means the same wherever it stands."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from ..checks import check_integer, check_number
from ..errors import OptionError

# Masks of RISE that are drawn together: the map does not depend on the batch size of the network, up to this.
DRAWN_TOGETHER = 64
LARGEST_SEED = 2**63 - 1

Check = Callable[[str, Any], None]


def _check_at_most(option: str, value: Any, least: int, most: int) -> None:
    check_integer(option, value, least)
    if value > most:
        raise OptionError(f"{option} must be at most {most}, got {value!r}")


def _check_shares(option: str, value: Any) -> None:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise OptionError(f"{option} must be a list of numbers in (0, 1), got {value!r}")
    for share in value:
        check_number(option, share, "(0, 1)")


CHECKS: dict[str, Check] = {
    "areas": _check_shares,
    "bands": check_integer,
    "batch_size": partial(_check_at_most, least=1, most=DRAWN_TOGETHER),
    "iterations": check_integer,
    "jitter": partial(check_integer, least=0),
    "masks": check_integer,
    "points": check_integer,
    "seed": partial(_check_at_most, least=0, most=LARGEST_SEED),
    "smoothness": partial(check_number, interval="[0, inf)"),
    "strongest": check_integer,
}


def check_ranges(method: str, options: Mapping[str, Any]) -> None:
    """Raise unless every option is in its range; layers and classes depend on the model and are checked with it.

    Raises:
        OptionError: naming the method, the option, its value and what is allowed.
    """
    for option, value in options.items():
        if option in CHECKS:
            CHECKS[option](f"{method}: {option}", value)
