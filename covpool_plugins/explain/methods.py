"""The table of explanation methods, the ranges of their options, and ``explain``.

A method is a function ``(view, passed, target, *, option=default, ...) -> Explanation`` with its row in the table:

    def my_method(view: ModelView, passed: ForwardPass, target: int, *, steps: int = 5) -> Explanation: ...

    EXPLANATIONS.add("my_method", ExplanationMethod(my_method, steps=check_integer))

``view`` is the :class:`ModelView` of the model, ``passed`` what it computes of the input ``passed.x`` (1, C, H, W), and
``target`` the class. A row has a check for each option. A method that needs the pool or one linear classifier raises
``NotApplicableError`` for a model without them. Asked for a class versus another, it gets a view whose class scores are
differences; one that has to know both classes takes a keyword ``versus``, which is no option.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, overload

import numpy as np
import torch
from torch import nn

from ..checks import check_integer, check_known
from ..errors import MissingExtraError, NotApplicableError, OptionError
from ..tables import Table
from .explanation import Explanation
from .images import ImageLike, as_input, images_of
from .model_view import Activation, ForwardPass, Gradient, ModelView

LARGEST_SEED = 2**63 - 1
# Raises OptionError, naming the option (the first argument), unless the value (the second) is allowed.
Check = Callable[[str, Any], None]


class ExplanationMethod:
    """A row of the table: the function of a method, and a check for each of its options.

    Args:
        function: ``(view, passed, target, *, option=default, ...) -> Explanation``.
        options: for the name of each option a function ``(name, value)`` that raises ``OptionError`` for a bad value.

    Examples:
        >>> def brightness(view, passed, target):
        ...     return Explanation(passed.x[0].mean(dim=0), signed=False)
        ...
        >>> ExplanationMethod(brightness).options
        {}
    """

    def __init__(self, function: Callable[..., Explanation], **options: Check) -> None:
        self.function, self.options = function, options


EXPLANATIONS: Table[ExplanationMethod] = Table("explanation method")


def check_seed(option: str, value: Any) -> None:
    """For seeds of torch's random numbers."""
    check_integer(option, value, 0)
    if value > LARGEST_SEED:
        raise OptionError(f"{option} must be at most {LARGEST_SEED}, got {value!r}")


def check_layer(option: str, value: Any) -> None:
    """For the name of a layer, ``None`` for the default; the model knows which there are."""
    if not isinstance(value, str | None):
        raise OptionError(f"{option} must be the name of a layer, got {value!r}")


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
    return list(EXPLANATIONS[name].options)


def with_options(methods: Sequence[str] | Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Names of methods, or a mapping from names to options, as a mapping; layers are checked with the model.

    Raises:
        UnknownNameError: for a method that is not in the table.
        OptionError: for no method at all; for an option, naming the method, its value and what is allowed.
    """
    if isinstance(methods, str) or not methods:
        raise OptionError(f"methods must be a list of names, got {methods!r}")
    pairs = methods.items() if isinstance(methods, Mapping) else [(name, {}) for name in methods]
    for name, options in pairs:
        check_options(name, options)
    return {name: dict(options) for name, options in pairs}


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Raise as :func:`with_options` does."""
    checks = EXPLANATIONS[name].options
    check_known(f"explanation method {name!r}", options, checks)
    for option, value in options.items():
        checks[option](f"{name}: {option}", value)


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


@torch.inference_mode(False)  # whatever the caller's mode is: maps need gradients
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
            sees pictures in grey. A list, or a batch (B, ...) of arrays or tensors, gives a list of explanations, and
            so does a clip (1, T, C, H, W): one for each frame by itself, as the model of clips averages them.
        method: one of :func:`list_explanations`.
        target: the class, by its number, from -1 down from the last, or by its name; the default is the one with the
            highest score. A list has one for each image; of one image it gives an explanation of every class in it.
        versus: explain by how much the score of ``target`` exceeds that of this class, instead of the score itself.
        grad, activation, class_names: of :meth:`ModelView.of`; not with a view, which has its own.
        options: options of the method, for example ``layer`` for ``grad_cam``.

    Returns:
        The explanation, or a list of them for several images or targets.

    Raises:
        UnknownNameError: for a method, layer or class that does not exist.
        OptionError: for an input of a size that the model does not take, a target out of range, as many targets as
            there are not images, or an option that the method does not take or that is out of range.
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
    inputs = [view.first_pass(as_input(single, view.preprocessing)) for single in images]
    targets: list[Any] = list(target) if isinstance(target, (list, tuple)) else [target] * len(inputs)
    if isinstance(target, (list, tuple)) and not several:
        inputs, several = inputs * len(targets), True
    if not inputs or len(targets) != len(inputs):
        raise OptionError(f"target must be one class or one for each of {len(inputs)} images, got {len(targets)}")
    explanations = [
        explain_input(view, passed, method, label, versus, **options)
        for passed, label in zip(inputs, targets, strict=True)
    ]
    return explanations if several else explanations[0]


def explain_input(
    view: ModelView,
    passed: ForwardPass,
    method: str,
    target: Target = None,
    versus: int | str | None = None,
    **options: Any,
) -> Explanation:
    """:func:`explain` for one input, by what the model computes of it, and one class."""
    logits = passed.logits[0]
    if not logits.isfinite().all():
        raise NotApplicableError("the model's class scores for this picture are not finite")
    label = int(logits.argmax()) if target is None else view.class_number(target)
    other = None if versus is None else view.class_number(versus, "versus")
    if other == label:
        raise OptionError(f"versus must be another class than the target, got {versus!r} for both")
    row, asked, x = EXPLANATIONS[method], view, passed.x
    if "versus" in inspect.signature(row.function).parameters:
        options["versus"] = other
    elif other is not None:
        asked = view.against(other)
        passed = asked.forward_pass(x)
    try:
        explanation = row.function(asked, passed, label, **options)
        if not np.isfinite(explanation.map).all():
            raise NotApplicableError("the map has values that are not finite")
    except NotApplicableError as error:
        raise NotApplicableError(f"{method}: {error}") from error
    return replace(
        explanation,
        method=method,
        target=label,
        probability=view.probabilities(logits)[label].item(),
        image=view.preprocessing.picture(x),
        versus=other,
        activation=view.activation,
        class_names=view.class_names,
    )


def explain_over_picture(
    view: ModelView, passed: ForwardPass, method: str, target: Target = None, **options: Any
) -> Explanation:
    """:func:`explain_input`, for what needs a map that lies over the picture.

    Raises:
        NotApplicableError: for a method without such a map, or whose extra is not installed.
    """
    try:
        explanation = explain_input(view, passed, method, target, **options)
    except MissingExtraError as error:
        raise NotApplicableError(str(error)) from None
    if explanation.space != "image":
        raise NotApplicableError(f"{method} makes a {explanation.space}, no map of the picture")
    return explanation
