"""``explain``: one picture, one method, one class."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor, nn

from ..errors import OptionError
from ..files import write_atomically
from .images import Picture, as_input
from .methods import METHODS, attribute
from .model_view import Gradient, ModelView
from .overlay import overlay, with_caption

SMALLEST_SIDE = 320


@dataclass(frozen=True, eq=False)
class Explanation:
    """Where in a picture a class score comes from.

    Args:
        map: raw values (H, W), float64, on the grid of the feature map or of the network's input.
        method: name of the method.
        target: the class.
        probability: the softmax probability of ``target``.
        image: the picture as the network saw it.
        signed: whether negative values speak against the class.
        layer: the layer whose map was explained, where there is one.
        contributions: shares of the score (H, W), where the method has them; they sum to ``completeness_target``.
        completeness_target: score minus bias, where the method has contributions.
    """

    map: np.ndarray
    method: str
    target: int
    probability: float
    image: Picture
    signed: bool
    layer: str | None = None
    contributions: np.ndarray | None = None
    completeness_target: float | None = None

    @property
    def completeness_gap(self) -> float | None:
        """How far the contributions miss the score minus bias, relative to it."""
        if self.contributions is None or self.completeness_target is None:
            return None
        return abs(float(self.contributions.sum()) - self.completeness_target) / abs(self.completeness_target or 1.0)

    def overlay(self, limit: float | None = None) -> Picture:
        """The map over the grey picture, in the picture's size; ``limit`` is the magnitude of full colour."""
        return overlay(self.image, self.map, self.signed, limit)

    def caption(self) -> list[str]:
        """What the picture shows, in numbers."""
        where = f" at {self.layer}" if self.layer else ""
        lines = [f"{self.method}{where}, class {self.target}, p = {self.probability:.3g}"]
        if self.contributions is not None:
            for_it = float(self.contributions.clip(min=0).sum())
            against = float(self.contributions.clip(max=0).sum())
            lines.append(f"{for_it:+.3g} for, {against:+.3g} against = {self.completeness_target:+.3g} (score - bias)")
        return lines

    def save(self, directory: Path | str, stem: str) -> list[Path]:
        """Write ``stem.png``, the overlay with its caption, and ``stem.npz``, the numbers; returns both paths.

        The archive holds ``map``, ``target`` and ``probability``, and where the method has them ``contributions`` and
        ``completeness_target``.
        """
        factor = max(1.0, SMALLEST_SIDE / min(self.image.size))
        size = (round(factor * self.image.width), round(factor * self.image.height))
        large = overlay(self.image.resize(size, Image.Resampling.BICUBIC), self.map, self.signed)
        picture = with_caption(large, self.caption())
        arrays: dict[str, Any] = {"map": self.map, "target": self.target, "probability": self.probability}
        if self.contributions is not None:
            arrays |= {"contributions": self.contributions, "completeness_target": self.completeness_target}
        base = Path(directory)
        return [
            write_atomically(base / f"{stem}.png", lambda file: picture.save(file, format="PNG")),
            write_atomically(base / f"{stem}.npz", lambda file: np.savez_compressed(file, **arrays)),
        ]


def explain(
    model: nn.Module | ModelView,
    image: Path | str | Picture | np.ndarray | Tensor,
    method: str = "contribution",
    target: int | None = None,
    *,
    grad: Gradient = "exact",
    **options: Any,
) -> Explanation:
    """Explain a class score of a timm or MMPretrain classifier.

    Args:
        model: the classifier, which is left as it is; for several calls, build a :class:`ModelView` once.
        image: a file, a picture, an array (H, W, 3) of uint8, or a normalised input (1, C, H, W); a model with one
            input channel sees pictures in grey.
        method: one of :func:`list_methods`.
        target: the class; the default is the one with the highest score.
        grad: ``exact``, or ``training`` for the gradient approximation that the pool trains with (a view has its own).
        options: options of the method, for example ``layer`` for ``grad_cam``.

    Raises:
        UnknownNameError: for a method or layer that does not exist.
        OptionError: for a target out of range, or an option or model that the method does not take.
        ValueError: for a picture that cannot be read.
    """
    METHODS[method]  # a typo is reported before the model is copied
    view = ModelView.of(model, grad)
    x = as_input(image, view.preprocessing)
    logits = view.logits(x)[0].double()
    target = check_target(target, view) if target is not None else int(logits.argmax())
    result = attribute(method, view, x, target, **options)
    return Explanation(
        map=_array(result.map),
        method=method,
        target=target,
        probability=logits.softmax(dim=-1)[target].item(),
        image=view.preprocessing.picture(x),
        signed=result.signed,
        layer=result.layer,
        contributions=None if result.contributions is None else _array(result.contributions),
        completeness_target=result.completeness_target,
    )


def check_target(target: int, view: ModelView) -> int:
    """The target as an ``int``, if it is a class of the model.

    Raises:
        OptionError: if it is not.
    """
    try:
        found = -1 if isinstance(target, bool) else operator.index(target)
    except TypeError:
        found = -1
    if not 0 <= found < view.num_classes:
        raise OptionError(f"target must be a class from 0 to {view.num_classes - 1}, got {target!r}")
    return found


def _array(values: Tensor) -> np.ndarray:
    return values.detach().cpu().double().numpy()
