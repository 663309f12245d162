"""``explain``: one picture, one method, one class."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from PIL import Image
from torch import Tensor, nn

from ..errors import MissingExtraError, NotApplicableError, OptionError
from ..files import write_atomically
from ..pictures import Picture
from .images import ImageLike, as_input, images_of
from .methods import EXPLANATIONS, Attribution, check_options, explanation_options
from .model_view import Activation, Gradient, ModelView
from .overlay import at_least, balance, heat_map, overlay, with_caption

SMALLEST_SIDE = 320


@dataclass(frozen=True, eq=False, kw_only=True)
class Explanation(Attribution[np.ndarray]):
    """Where in a picture a class score comes from: an attribution, in float64 arrays, and what was asked.

    Args:
        method: name of the method.
        target: the class.
        probability: of ``target``, by the ``activation``.
        image: the picture as the network saw it.
        versus: the class whose score was taken off, where there is one.
        class_names: names of the classes, for the caption.
        activation: ``softmax`` or ``sigmoid``.
    """

    method: str
    target: int
    probability: float
    image: Picture
    versus: int | None = None
    class_names: Sequence[str] = ()
    activation: Activation = "softmax"

    @property
    def shown(self) -> np.ndarray:
        """The map as pictures show it: where only differences mean something, from its smallest value on."""
        return self.map - self.map.min() if self.relative else self.map

    @property
    def class_token(self) -> float:
        """The class token's share of the score; zero where it has none."""
        return float(self.extras.get("class_token", 0.0))

    @property
    def completeness_gap(self) -> float | None:
        """How far the contributions miss the score minus bias, relative to it."""
        if self.contributions is None or self.completeness_target is None:
            return None
        total = float(self.contributions.sum()) + self.class_token
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

    def caption(self) -> list[str]:
        """What the picture shows, in numbers."""
        where = f" at {self.layer}" if self.layer else ""
        against = "" if self.versus is None else f" versus {self.class_name(self.versus)}"
        p = f"p = {self.probability:.3g}" + (" (sigmoid)" if self.activation == "sigmoid" else "")
        lines = [f"{self.method}{where}, class {self.class_name(self.target)}{against}, {p}"]
        if self.contributions is not None:
            token = f", class token {self.class_token:+.3g}" if "class_token" in self.extras else ""
            total = f"{self.completeness_target:+.3g} (score - bias)"
            lines.append(f"{balance(self.contributions)}{token} = {total}")
        numbers = {name: value for name, value in self.extras.items() if value.ndim == 0 and name != "class_token"}
        if self.relative:
            lines.append(f"values from {self.map.min():.3g}, without colour, to {self.map.max():.3g}")
        elif self.space == "image" and not self.map.any():
            lines.append("the map is zero everywhere")
        if numbers:
            lines.append(", ".join(f"{name.replace('_', ' ')} {float(value):.3g}" for name, value in numbers.items()))
        return lines

    def picture(self, limit: float | None = None) -> Picture:
        """What :meth:`overlay` draws, large enough to be read, with its caption."""
        return with_caption(self.overlay(limit, SMALLEST_SIDE), self.caption())

    def save(self, directory: Path | str, stem: str) -> list[Path]:
        """Write ``stem.png``, the picture with its caption, and ``stem.npz``, the numbers; returns both paths.

        The archive holds ``map``, ``target`` and ``probability``, where the method has them ``contributions`` and
        ``completeness_target``, and the extras under their names.
        """
        picture = self.picture()
        arrays: dict[str, Any] = {"map": self.map, "target": self.target, "probability": self.probability}
        if self.contributions is not None:
            arrays |= {"contributions": self.contributions, "completeness_target": self.completeness_target}
        arrays = {**self.extras, **arrays}
        base = Path(directory)
        return [
            write_atomically(base / f"{stem}.png", lambda file: picture.save(file, format="PNG")),
            write_atomically(base / f"{stem}.npz", lambda file: np.savez_compressed(file, **arrays)),
        ]

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        file = io.BytesIO()
        self.picture().save(file, format="PNG")
        return file.getvalue()


Target = int | str | None


@overload
def explain(
    model: nn.Module | ModelView,
    image: Sequence[ImageLike],
    method: str = ...,
    target: Target | Sequence[Target] = ...,
    **options: Any,
) -> list[Explanation]: ...


@overload
def explain(
    model: nn.Module | ModelView, image: ImageLike, method: str = ..., target: Target = ..., **options: Any
) -> Explanation: ...


def explain(
    model: nn.Module | ModelView,
    image: ImageLike | Sequence[ImageLike],
    method: str = "contribution",
    target: Target | Sequence[Target] = None,
    *,
    versus: int | str | None = None,
    grad: Gradient = "exact",
    activation: Activation | None = None,
    class_names: Sequence[str] = (),
    **options: Any,
) -> Explanation | list[Explanation]:
    """Explain a class score of a timm or MMPretrain classifier.

    Args:
        model: the classifier, which is left as it is; for several calls, build a :class:`ModelView` once. See
            :meth:`ModelView.of` for the wrappers that are taken off.
        image: a file; a picture; an array (H, W) or (H, W, C) of uint8, or of floats in [0, 1]; a tensor of uint8
            (C, H, W); or a normalised input (C, H, W) or (1, C, H, W) in floating point. A model with one input channel
            sees pictures in grey. A list, or a batch (B, ...) of arrays or tensors, gives a list of explanations.
        method: one of :func:`list_explanations`.
        target: the class, by its number, from -1 down from the last, or by its name; the default is the one with the
            highest score. A list has one for each image; of one image it gives an explanation of every class in it.
        versus: explain by how much the score of ``target`` exceeds that of this class, instead of the score itself.
        grad, activation, class_names: of :meth:`ModelView.of`; a view has its own.
        options: options of the method, for example ``layer`` for ``grad_cam``.

    Returns:
        The explanation, or a list of them for several images or targets.

    Raises:
        UnknownNameError: for a method, layer or class that does not exist.
        OptionError: for a target out of range, as many targets as there are not images, or an option that the method
            does not take or that is out of range.
        NotApplicableError: for a model that the method says nothing about, or values that are not finite.
        ShapeError: for an array or tensor that is no image.
        ValueError: for a picture that cannot be read.

    Examples:
        >>> model = covpool_plugins.create_model("test_resnet", num_classes=3, reduce_channels=8)
        >>> explanation = explain(model, torch.randn(1, 3, 64, 64), "contribution", target=1)
        >>> explanation.map.shape, explanation.completeness_gap < 1e-4
        ((2, 2), True)
        >>> [e.target for e in explain(model, torch.randn(2, 3, 64, 64), target=[0, -1])]
        [0, 2]
    """
    check_options(method, options)  # before the model is copied
    view = ModelView.of(model, grad, activation, class_names)
    images, several = images_of(image)
    inputs = [as_input(single, view.preprocessing) for single in images]
    targets: list[Any] = list(target) if isinstance(target, (list, tuple)) else [target] * len(inputs)
    if isinstance(target, (list, tuple)) and not several:
        inputs, several = inputs * len(targets), True
    if not inputs or len(targets) != len(inputs):
        raise OptionError(f"target must be one class or one for each of {len(inputs)} images, got {len(targets)}")
    explanations = [
        explain_input(view, x, method, label, versus, **options) for x, label in zip(inputs, targets, strict=True)
    ]
    return explanations if several else explanations[0]


def explain_input(
    view: ModelView, x: Tensor, method: str, target: Target = None, versus: int | str | None = None, **options: Any
) -> Explanation:
    """:func:`explain` for one input (1, C, H, W) and one class."""
    logits = view.forward_pass(x).logits[0]
    if not logits.isfinite().all():
        raise NotApplicableError("the model's class scores for this picture are not finite")
    label = int(logits.argmax()) if target is None else view.class_number(target)
    other = None if versus is None else view.class_number(versus, "versus")
    if other == label:
        raise OptionError(f"versus must be another class than the target, got {versus!r} for both")
    if "versus" in explanation_options(method):
        attribution = EXPLANATIONS[method](view, x, label, versus=other, **options)
    else:
        with view.against(other):
            attribution = EXPLANATIONS[method](view, x, label, **options)
    if not attribution.map.isfinite().all():
        raise NotApplicableError(f"{method}: the map has values that are not finite")
    return Explanation(
        **{name: _arrays(value) for name, value in vars(attribution).items()},
        method=method,
        target=label,
        probability=view.probabilities(logits)[label].item(),
        image=view.preprocessing.picture(x),
        versus=other,
        activation=view.activation,
        class_names=view.class_names,
    )


def explain_over_picture(view: ModelView, x: Tensor, method: str, target: Target = None, **options: Any) -> Explanation:
    """:func:`explain_input`, for what needs a map that lies over the picture.

    Raises:
        NotApplicableError: for a method without such a map, or whose extra is not installed.
    """
    try:
        explanation = explain_input(view, x, method, target, **options)
    except MissingExtraError as error:
        raise NotApplicableError(str(error)) from None
    if explanation.space != "image":
        raise NotApplicableError(f"{method} makes a {explanation.space}, no map of the picture")
    return explanation


def _arrays(value: Any) -> Any:
    """Tensors as arrays, floating point ones in float64; what is no tensor stays what it is."""
    if isinstance(value, Mapping):
        return {name: _arrays(entry) for name, entry in value.items()}
    if not isinstance(value, Tensor):
        return value
    array = value.detach().cpu()
    return (array.double() if array.is_floating_point() else array).numpy()
