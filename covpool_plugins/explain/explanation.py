"""What a method says about one picture and one class: numbers, and how they are drawn."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from torch import Tensor

from ..errors import NotApplicableError
from ..files import write_atomically
from ..pictures import Picture
from .model_view import Activation
from .overlay import at_least, balance, colour_limit, enlarge, heat_map, overlay, with_caption

SMALLEST_SIDE = 320
PALE = 0.1  # of another map's full colour: from here on a map is hardly seen beside it
Space = Literal["image", "matrix", "picture"]
Array = Any  # numpy.ndarray; a tensor becomes one


@dataclass(frozen=True, eq=False)
class Explanation:
    """Where in a picture a class score comes from.

    A method gives the first fields, and :func:`~covpool_plugins.explain.explain` the keyword-only ones, which say what
    was asked. Tensors become arrays, those of floating point numbers in float64.

    Args:
        map: (H, W), on the grid of the feature map or of the input; a matrix (C, C) where ``space`` says so.
        signed: whether negative values speak against the class; otherwise the map is a magnitude.
        layer: the layer whose map was explained, where there is one.
        completeness_target: where the values of the map are shares of the score, what they and
            ``extras["class_token"]``, if there is one, sum to: the class score minus the score of nothing, which for
            a head is its bias, for integrated gradients that of their baseline.
        extras: further arrays by name, saved with the map; single numbers are shown in the caption.
        space: ``image`` for a map over the picture, ``matrix`` for one of channels by channels, ``picture`` where the
            method made a picture, ``extras["picture"]`` (3, H, W) of red, green and blue in 0..1, whose grey version
            is the map.
        relative: whether only differences of the map's values mean something: pictures show it from its smallest value.
        method: name of the method.
        target: the class.
        probability: of ``target``, by the ``activation``.
        image: the picture as the network saw it.
        versus: the class whose score was taken off, where there is one.
        class_names: names of the classes, for the caption.
        activation: ``softmax`` or ``sigmoid``.
    """

    map: Array
    signed: bool
    layer: str | None = None
    completeness_target: float | None = None
    extras: Mapping[str, Array] = field(default_factory=dict)
    space: Space = "image"
    relative: bool = False
    method: str = field(default="", kw_only=True)
    target: int = field(default=0, kw_only=True)
    probability: float = field(default=float("nan"), kw_only=True)
    image: Picture = field(default_factory=lambda: Image.new("RGB", (1, 1)), kw_only=True)
    versus: int | None = field(default=None, kw_only=True)
    class_names: Sequence[str] = field(default=(), kw_only=True)
    activation: Activation = field(default="softmax", kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "map", _array(self.map))
        object.__setattr__(self, "extras", {name: _array(value) for name, value in self.extras.items()})

    @property
    def contributions(self) -> np.ndarray | None:
        """The map, where its values are shares of the score."""
        return None if self.completeness_target is None else self.map

    @property
    def shown(self) -> np.ndarray:
        """The map as pictures show it: where only differences mean something, from its smallest value on."""
        return self.map - self.map.min() if self.relative else self.map

    def __str__(self) -> str:
        """A summary: the caption's lines, and where the map has its maximum."""
        rows, columns = self.map.shape
        row, column = np.unravel_index(int(self.map.argmax()), self.map.shape)
        grid = f"map {rows}x{columns}, largest at row {row}, column {column}: {self.map[row, column]:.3g}"
        return "\n".join([*self.caption(), grid])

    def heatmap(self) -> np.ndarray:
        """The map in the size of the picture (H, W), float32 in [0, 1], or [-1, 1] for a signed one; 1 is full colour.

        Raises:
            NotApplicableError: for a matrix or a picture, which lie over no picture.
        """
        if self.space != "image":
            raise NotApplicableError(f"{self.method} makes a {self.space}, no map of the picture")
        limit = colour_limit(self.shown)
        values = enlarge(self.shown / limit if limit > 0 else self.shown, self.image.size)
        return np.clip(values, -1 if self.signed else 0, 1)

    @property
    def class_token(self) -> float:
        """The class token's share of the score; zero where it has none."""
        return float(self.extras.get("class_token", 0.0))

    @property
    def completeness_gap(self) -> float | None:
        """How far the contributions miss the score minus bias, relative to it."""
        if self.completeness_target is None:
            return None
        total = float(self.map.sum()) + self.class_token
        return abs(total - self.completeness_target) / abs(self.completeness_target or 1.0)

    def overlay(self, limit: float | None = None, smallest_side: int = 1) -> Picture:
        """The map over the grey picture; a matrix as a heat map; the picture itself that a method made.

        Args:
            limit: the magnitude of full colour; the default is the map's own.
            smallest_side: what is smaller is enlarged.
        """
        if self.space == "matrix":
            return heat_map(self.map, self.signed, smallest_side, limit)
        if self.space == "picture":
            pixels = np.round(255 * np.clip(self.extras["picture"], 0, 1)).astype(np.uint8)
            return at_least(Image.fromarray(np.ascontiguousarray(np.moveaxis(pixels, 0, -1))), smallest_side)
        return overlay(at_least(self.image, smallest_side), self.shown, self.signed, limit)

    def class_name(self, number: int) -> str:
        """Name of a class, or its number."""
        return self.class_names[number] if self.class_names else str(number)

    def caption(self, limit: float | None = None) -> list[str]:
        """What the picture shows, in numbers.

        Args:
            limit: as of :meth:`overlay`.
        """
        where = f" at {self.layer}" if self.layer else ""
        against = "" if self.versus is None else f" versus {self.class_name(self.versus)}"
        p = f"p = {self.probability:.3g}" + (" (sigmoid)" if self.activation == "sigmoid" else "")
        lines = [f"{self.method}{where}, class {self.class_name(self.target)}{against}, {p}"]
        if self.completeness_target is not None:
            token = f", class token {self.class_token:+.3g}" if "class_token" in self.extras else ""
            lines.append(f"{balance(self.map)}{token} = {self.completeness_target:+.3g} of the score")
        numbers = {name: value for name, value in self.extras.items() if value.ndim == 0 and name != "class_token"}
        if self.relative:
            lines.append(f"values from {self.map.min():.3g}, without colour, to {self.map.max():.3g}")
        elif self.space != "picture":
            lines.append(self.scale(limit))
        if numbers:
            lines.append(", ".join(f"{name.replace('_', ' ')} {float(value):.3g}" for name, value in numbers.items()))
        return lines

    def scale(self, limit: float | None = None) -> str:
        """What full colour means, and how far a map stays behind it that is drawn on the scale of a stronger one."""
        if not self.map.any():
            return "the map is zero everywhere"
        own = colour_limit(self.shown)
        limit = own if limit is None else limit
        sign = "±" if self.signed else ""
        pale = f"; pale: this map's is at {sign}{own:.2g}" if own < PALE * limit else ""
        return f"full colour at {sign}{limit:.2g}{pale}"

    def picture(self, limit: float | None = None) -> Picture:
        """What :meth:`overlay` draws, large enough to be read, with its caption."""
        return with_caption(self.overlay(limit, SMALLEST_SIDE), self.caption(limit))

    def save(self, directory: Path | str, stem: str) -> list[Path]:
        """Write ``stem.png``, the picture with its caption, and ``stem.npz``, the numbers; returns both paths.

        The archive holds ``map``, ``target`` and ``probability``, where the method has them ``contributions`` and
        ``completeness_target``, and the extras under their names.
        """
        picture = self.picture()
        arrays: dict[str, Any] = {"map": self.map, "target": self.target, "probability": self.probability}
        if self.completeness_target is not None:
            arrays |= {"contributions": self.map, "completeness_target": self.completeness_target}
        arrays, base = {**self.extras, **arrays}, Path(directory)
        return [
            write_atomically(base / f"{stem}.png", lambda file: picture.save(file, format="PNG")),
            write_atomically(base / f"{stem}.npz", lambda file: np.savez_compressed(file, **arrays)),
        ]

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        file = io.BytesIO()
        self.picture().save(file, format="PNG")
        return file.getvalue()


def _array(value: Any) -> Any:
    """A tensor as an array, of floating point numbers in float64; what is no tensor stays what it is."""
    if not isinstance(value, Tensor):
        return value
    array = value.detach().cpu()
    return (array.double() if array.is_floating_point() else array).numpy()
