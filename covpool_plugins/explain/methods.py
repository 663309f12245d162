"""The table of explanation methods, and what one returns.

A method is a function ``(view, x, target, *, option=default, ...) -> Attribution`` in a file of this room, with its
row in the table::

    @METHODS.register("my_method")
    def my_method(view: ModelView, x: Tensor, target: int) -> Attribution: ...
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from ..checks import check_known
from ..tables import Table
from .model_view import ModelView
from .options import check_ranges

Space = Literal["image", "matrix", "picture"]


@dataclass(frozen=True)
class Attribution:
    """What a method says about one input and one class.

    Args:
        map: (H, W), on the grid of the feature map or of the input; a matrix (C, C) where ``space`` says so.
        signed: whether negative values speak against the class; otherwise the map is a magnitude.
        layer: the layer whose map was explained, where there is one.
        contributions: (H, W), shares of the score that sum to ``completeness_target``, where the method has them; with
            a ``class_token`` among the extras, that number has to be added.
        completeness_target: the class score minus the score of a picture without features, which is the bias.
        extras: further arrays by name, which are saved with the map; single numbers are shown in the caption.
        space: ``image`` for a map that lies over the picture, ``matrix`` for one that is drawn by itself, or
            ``picture`` where the method made a picture, ``extras["picture"]`` (3, H, W) of red, green and blue in 0..1,
            whose grey version the map is.
        relative: only differences of the map's values mean something: pictures show it from its smallest value on.
    """

    map: Tensor
    signed: bool
    layer: str | None = None
    contributions: Tensor | None = None
    completeness_target: float | None = None
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    space: Space = "image"
    relative: bool = False


Method = Callable[..., Attribution]
METHODS: Table[Method] = Table("explanation method")


def list_methods() -> list[str]:
    """Names that :func:`covpool_plugins.explain.explain` takes.

    Examples:
        >>> "contribution" in list_methods()
        True
    """
    return list(METHODS)


def method_options(name: str) -> list[str]:
    """Names of the options of a method.

    Raises:
        UnknownNameError: for a name that is not in the table.

    Examples:
        >>> method_options("grad_cam")
        ['layer']
    """
    return list(inspect.signature(METHODS[name]).parameters)[3:]


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Raise unless the method has the options and they are in their ranges.

    Raises:
        UnknownNameError: for a method that is not in the table.
        OptionError: for an option.
    """
    check_known(f"explanation method {name!r}", options, method_options(name))
    check_ranges(name, options)


def attribute(name: str, view: ModelView, x: Tensor, target: int, **options: Any) -> Attribution:
    """Run a method by name.

    Raises:
        UnknownNameError: for a name that is not in the table.
        OptionError: for an option that the method does not have, or one out of range.
        NotApplicableError: for a model that the method says nothing about.
    """
    check_options(name, options)
    return METHODS[name](view, x, target, **options)
