"""Gradient, Grad-CAM and activation times gradient, and what all of TorchRay's backpropagation methods need."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..errors import NotApplicableError, require_extra
from .methods import EXPLANATIONS, Attribution
from .model_view import ModelView

DEGENERATE = 1e-4


def gradient(view: ModelView, x: Tensor, target: int) -> Attribution:
    """Size of the score's gradient at every pixel, the largest over the channels, (H, W).

    Source: Simonyan, Vedaldi & Zisserman, "Deep Inside Convolutional Networks", ICLR workshop 2014.
    """
    picture = view.to_model(x).clone().requires_grad_(True)
    with torch.enable_grad():
        score = view.model(picture)[0, target]
    return Attribution(torch.autograd.grad(score, picture)[0][0].abs().amax(dim=0), signed=False)


def grad_cam(view: ModelView, x: Tensor, target: int, *, layer: str | None = None) -> Attribution:
    """Grad-CAM on the grid of a layer, (H, W).

    A covariance does not change when a constant is added to the features, so the gradients at its input sum to zero
    over the positions: Grad-CAM weights there are rounding errors, and their normalised map looks plausible. Such a
    layer is refused.

    Args:
        layer: name of a stage of the view; the default is the last one that is not degenerate. That is the last map of
            the backbone where the channel reduction has a ReLU.

    Raises:
        UnknownNameError: for an unknown layer.
        NotApplicableError: for a layer with nothing non-linear between it and a centred covariance, or a model without
            another one.

    Source: Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization",
    ICCV 2017.
    """
    ratios: list[float] = []

    def remember_ratio(maps: Tensor, grad: Tensor) -> None:
        ratios.append(mean_gradient_ratio(grad))

    view.known_pool()
    for name in reversed(view.shallow_stages) if layer is None else [layer]:
        values = saliency("grad_cam", disposable(view), x, target, name, remember_ratio)
        if ratios[-1] >= DEGENERATE:
            return Attribution(values, signed=False, layer=name)
    if layer is None:
        raise NotApplicableError("grad_cam: the model has no layer with a map at which Grad-CAM is defined")
    raise NotApplicableError(
        f"grad_cam: at layer {layer!r} the map would show rounding errors: nothing non-linear lies between it and the "
        f"covariance, so its gradients sum to zero ({ratios[-1]:.1e}); take an earlier layer, or name none"
    )


def linear_approx(view: ModelView, x: Tensor, target: int, *, layer: str | None = None) -> Attribution:
    """Activation times gradient, summed over the channels, on the grid of a layer (H, W).

    Unlike Grad-CAM it does not average the gradient over the positions, so it is also defined right in front of a
    centred covariance. The covariance is blind to a constant added to the features there; this map is not, the
    method ``contribution`` is.

    Args:
        layer: name of a stage of the view; the default is the last map of the backbone.

    Raises:
        UnknownNameError: for an unknown layer.
        NotApplicableError: for a model without a layer that can be probed, where none is named.

    Source: Kindermans et al., "Investigating the influence of noise and distractors on the interpretation of neural
    networks", NIPS workshop 2016; at a layer: Olah et al., "The Building Blocks of Interpretability", Distill 2018.
    """
    layer = last_layer(view, "linear_approx") if layer is None else layer
    return Attribution(saliency("linear_approx", disposable(view), x, target, layer), signed=True, layer=layer)


def last_layer(view: ModelView, method: str) -> str:
    """The last map of the backbone.

    Raises:
        NotApplicableError: for a model without a layer that can be probed.
    """
    view.known_pool()
    if not view.shallow_stages:
        raise NotApplicableError(f"{method}: the model has no layer with a map that can be probed")
    return view.shallow_stages[-1]


def mean_gradient_ratio(grad: Tensor) -> float:
    """Norm of the gradient (B, C, H, W) averaged over the positions, against its root mean square over them.

    One for no gradient at all: that is an honest zero.
    """
    size = grad.square().sum(dim=1).mean().sqrt()
    return (grad.mean(dim=(2, 3)).norm() / size).item() if size > 0 else 1.0


def disposable(view: ModelView) -> ModelView:
    """A view whose modules are copies that hold the same weights: what a method leaves on them goes with them."""
    shared = [*view.model.parameters(), *view.model.buffers()]
    memo: dict[int, Any] = {id(tensor): tensor for tensor in shared}
    model = copy.deepcopy(view.model, memo)
    return replace(
        view,
        model=model,
        pool=memo.get(id(view.pool), view.pool),
        pool_site=None if view.pool_site is None else memo[id(view.pool_site)],
        classifier=None if view.classifier is None else memo[id(view.classifier)],
        stages={name: memo[id(stage)] for name, stage in view.stages.items()},
    )


def saliency(
    method: str,
    view: ModelView,
    x: Tensor,
    target: int,
    layer: str | None = None,
    inspect: Callable[[Tensor, Tensor], None] | None = None,
    **options: Any,
) -> Tensor:
    """The map (H, W) of one of TorchRay's backpropagation methods.

    Args:
        method: name of the method and of its file in TorchRay.
        view: the model, :func:`disposable`.
        x: input (1, 3, H, W).
        target: the class.
        layer: the stage whose map is explained; the default is the input.
        inspect: sees the map and its gradient, both (1, C, H, W), before TorchRay makes the saliency of them.
        options: further arguments of TorchRay's function.

    Raises:
        UnknownNameError: for an unknown layer.
        NotApplicableError: for a layer of a model without a pool that we know.
    """
    torchray = require_extra(f"torchray.attribution.{method}", "explain")
    if layer is not None:
        rule = getattr(torchray, f"gradient_to_{method}_saliency")

        def on_maps(probed: Tensor) -> Tensor:
            assert probed.grad is not None
            maps, grad = (view.as_maps(tensor, x) for tensor in (probed.detach(), probed.grad))
            if inspect is not None:
                inspect(maps, grad)
            maps.grad = grad
            return rule(maps)

        options |= {"saliency_layer": view.stage(layer), "gradient_to_saliency": on_maps}
    with torch.enable_grad():
        values = getattr(torchray, method)(view.model, view.to_model(x).clone(), target, **options)
    return values[0, 0].detach()


EXPLANATIONS.add("gradient", gradient)
EXPLANATIONS.add("grad_cam", grad_cam)
EXPLANATIONS.add("linear_approx", linear_approx)
