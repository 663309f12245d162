"""The table of explanation methods, and what one returns.

A method is a function ``(view, x, target, *, option=default, ...) -> Attribution`` in a file of this room, with its
row in the table::

    @METHODS.register("my_method")
    def my_method(view: ModelView, x: Tensor, target: int) -> Attribution: ...
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import OptionError
from ..tables import Table
from .model_view import ModelView


@dataclass(frozen=True)
class Attribution:
    """What a method says about one input and one class.

    Args:
        map: (H, W), on the grid of the feature map or of the input.
        signed: whether negative values speak against the class; otherwise the map is a magnitude.
        layer: the layer whose map was explained, where there is one.
        contributions: (H, W), shares of the score that sum to ``completeness_target``, where the method has them.
        completeness_target: the class score minus the score of a picture without features, which is the bias.
    """

    map: Tensor
    signed: bool
    layer: str | None = None
    contributions: Tensor | None = None
    completeness_target: float | None = None


Method = Callable[..., Attribution]
METHODS: Table[Method] = Table("explanation method")


def list_methods() -> list[str]:
    """Names that :func:`covpool_plugins.explain.explain` takes."""
    return list(METHODS)


def method_options(name: str) -> list[str]:
    """Names of the options of a method."""
    return list(inspect.signature(METHODS[name]).parameters)[3:]


def attribute(name: str, view: ModelView, x: Tensor, target: int, **options: Any) -> Attribution:
    """Run a method by name.

    Raises:
        UnknownNameError: for a name that is not in the table.
        OptionError: for an option that the method does not have.
    """
    known = method_options(name)
    for option in options:
        if option not in known:
            listed = ", ".join(known) or "none"
            raise OptionError(f"explanation method {name!r} has no option {option!r}; its options: {listed}")
    return METHODS[name](view, x, target, **options)
