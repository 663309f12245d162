"""The table of explanation methods, what a method returns, and the ranges of its options.

A method is a function ``(view, x, target, *, option=default, ...) -> Attribution`` with its row in the table:

    def my_method(view: ModelView, x: Tensor, target: int) -> Attribution: ...

    EXPLANATIONS.add("my_method", my_method)

``view`` is the :class:`ModelView` of the model, ``x`` the normalised input (1, C, H, W) and ``target`` the class. A
method that needs the pool or one linear classifier raises ``NotApplicableError`` for a model without them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from torch import Tensor

from ..checks import check_integer, check_known, check_number
from ..errors import OptionError
from ..tables import Table

# RISE draws this many masks at a time: up to this, the map does not depend on the batch size of the network.
MASKS_PER_DRAW = 64
LARGEST_SEED = 2**63 - 1

Space = Literal["image", "matrix", "picture"]
Array = TypeVar("Array", Tensor, np.ndarray)


@dataclass(frozen=True, eq=False)
class Attribution(Generic[Array]):
    """What a method says about one input and one class.

    Args:
        map: (H, W), on the grid of the feature map or of the input; a matrix (C, C) where ``space`` says so.
        signed: whether negative values speak against the class; otherwise the map is a magnitude.
        layer: the layer whose map was explained, where there is one.
        contributions: (H, W), shares of the score that sum to ``completeness_target``, where the method has them;
            ``extras["class_token"]`` has to be added where there is one.
        completeness_target: the class score minus the score of a picture without features, which is the bias.
        extras: further arrays by name, saved with the map; single numbers are shown in the caption.
        space: ``image`` for a map over the picture, ``matrix`` for one of channels by channels, ``picture`` where the
            method made a picture, ``extras["picture"]`` (3, H, W) of red, green and blue in 0..1, whose grey version
            is the map.
        relative: whether only differences of the map's values mean something: pictures show it from its smallest value.
    """

    map: Array
    signed: bool
    layer: str | None = None
    contributions: Array | None = None
    completeness_target: float | None = None
    extras: Mapping[str, Array] = field(default_factory=dict)
    space: Space = "image"
    relative: bool = False


ExplanationMethod = Callable[..., Attribution]
EXPLANATIONS: Table[ExplanationMethod] = Table("explanation method")


def list_explanations() -> list[str]:
    """Names that :func:`covpool_plugins.explain.explain` takes.

    Examples:
        >>> "contribution" in list_explanations()
        True
    """
    return list(EXPLANATIONS)


def explanation_options(name: str) -> list[str]:
    """Names of the options of a method.

    Raises:
        UnknownNameError: for a name that is not in the table.

    Examples:
        >>> explanation_options("grad_cam")
        ['layer']
    """
    return list(inspect.signature(EXPLANATIONS[name]).parameters)[3:]


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Raise unless the method has the options and they are in range; layers and classes are checked with the model.

    Raises:
        UnknownNameError: for a method that is not in the table.
        OptionError: naming the method, the option, its value and what is allowed.
    """
    check_known(f"explanation method {name!r}", options, explanation_options(name))
    for option, value in options.items():
        if option in RANGES:
            RANGES[option](f"{name}: {option}", value)


def with_options(methods: Sequence[str] | Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Names of methods, or a mapping from names to options, as a mapping.

    Raises:
        UnknownNameError: for a method that is not in the table.
        OptionError: for no method at all, or an option as by :func:`check_options`.
    """
    if isinstance(methods, str) or not methods:
        raise OptionError(f"methods must be a list of names, got {methods!r}")
    options = methods if isinstance(methods, Mapping) else {name: {} for name in methods}
    for name in options:
        check_options(name, options[name])
    return {name: dict(options[name]) for name in options}


def _check_at_most(option: str, value: Any, least: int, most: int) -> None:
    check_integer(option, value, least)
    if value > most:
        raise OptionError(f"{option} must be at most {most}, got {value!r}")


def _check_shares(option: str, value: Any) -> None:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise OptionError(f"{option} must be a list of numbers in (0, 1), got {value!r}")
    for share in value:
        check_number(option, share, "(0, 1)")


# An option means the same in every method that has it.
RANGES: dict[str, Callable[[str, Any], None]] = {
    "areas": _check_shares,
    "bands": check_integer,
    "batch_size": partial(_check_at_most, least=1, most=MASKS_PER_DRAW),
    "iterations": check_integer,
    "jitter": partial(check_integer, least=0),
    "masks": check_integer,
    "points": check_integer,
    "seed": partial(_check_at_most, least=0, most=LARGEST_SEED),
    "smoothness": partial(check_number, interval="[0, inf)"),
    "strongest": check_integer,
}
