"""Deconvolution and guided backpropagation, by TorchRay.

TorchRay replaces ``torch.relu`` and ``torch.relu_`` while its context lasts. That misses ``Tensor.relu``,
``functional.relu_`` and ReLU6, and it makes an in-place ReLU one that is not, which changes networks that read its
input again. So its rules are brought to all of them by a function mode, and the values stay those of the network.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..errors import NotApplicableError, require_extra
from .backprop import disposable
from .explanation import Explanation
from .methods import EXPLANATIONS, ExplanationMethod
from .model_view import ForwardPass, ModelView


def deconvnet(view: ModelView, passed: ForwardPass, target: int) -> Explanation:
    """Size of the deconvolved signal at every pixel, the largest over the channels, (H, W).

    A ReLU passes the positive part of the signal, wherever the activations are. All else, the head with its
    normalisation included, passes the gradient; so do other activations, where a network mixes them with ReLUs.

    Raises:
        NotApplicableError: for a model without a ReLU on the maps in front of its pool.

    Source: Zeiler & Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014.
    """
    return _rectified("deconvnet", "DeConvNetReLU", view, passed.x, target)


def guided_backprop(view: ModelView, passed: ForwardPass, target: int) -> Explanation:
    """Size of the guided gradient at every pixel, the largest over the channels, (H, W).

    A ReLU passes the positive part of the signal where it is active. All else, the head with its normalisation
    included, passes the gradient; so do other activations, where a network mixes them with ReLUs.

    Raises:
        NotApplicableError: for a model without a ReLU on the maps in front of its pool.

    Source: Springenberg et al., "Striving for Simplicity: The All Convolutional Net", ICLR workshop 2015.
    """
    return _rectified("guided_backprop", "GuidedBackpropReLU", view, passed.x, target)


def _rectified(method: str, rule: str, view: ModelView, x: Tensor, target: int) -> Explanation:
    torchray: Any = require_extra(f"torchray.attribution.{method}", "explain")
    rectifiers, own = Rectifiers(getattr(torchray, rule).apply), disposable(view)
    counts: list[int] = []
    if own.pool_site is not None:
        own.pool_site.register_forward_pre_hook(lambda *_: counts.append(rectifiers.on_maps))
    with torch.enable_grad():
        saliency = getattr(torchray, method)
        values = saliency(own.model, own.to_model(x).clone(), target, context_builder=lambda: rectifiers)
    if [*counts, rectifiers.on_maps][0] == 0:
        raise NotApplicableError(
            f"{method} changes the gradient at ReLUs, and this model has none on the maps in front of its pool: "
            "the map would be the plain gradient; take the method 'gradient'"
        )
    return Explanation(values[0, 0].detach(), signed=False)


class Rectifiers(TorchFunctionMode):
    """ReLUs with another gradient, however they are called, also in place; ReLU6 is a ReLU and a limit.

    Args:
        relu: differentiable function with the values of a ReLU.
    """

    def __init__(self, relu: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.relu = relu
        self.on_maps = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        called = RECTIFIERS.get(func.__name__)
        # Without gradients it is a forward or backward pass inside an autograd function that has its own rule.
        if called is None or not torch.is_grad_enabled():
            return func(*args, **(kwargs or {}))
        x, low, high, inplace = called(*args, **(kwargs or {}))
        if low != 0:
            return func(*args, **(kwargs or {}))
        self.on_maps += sum(size > 1 for size in x.shape[1:]) > 1
        rectified = self.relu(x.clone() if inplace else x)
        if high is not None:
            rectified = rectified.clamp(max=high)
        return x.copy_(rectified) if inplace else rectified


Call = tuple[Tensor, float, float | None, bool]


def _relu(input: Tensor, inplace: bool = False) -> Call:
    return input, 0.0, None, inplace


def _relu_in_place(input: Tensor) -> Call:
    return input, 0.0, None, True


def _relu6(input: Tensor, inplace: bool = False) -> Call:
    return input, 0.0, 6.0, inplace


def _hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Call:
    return input, min_val, max_val, inplace


# By name: the function, the method and the one in torch.nn.functional share it.
RECTIFIERS: dict[str, Callable[..., Call]] = {
    "relu": _relu,
    "relu_": _relu_in_place,
    "relu6": _relu6,
    "hardtanh": _hardtanh,
}


EXPLANATIONS.add("deconvnet", ExplanationMethod(deconvnet))
EXPLANATIONS.add("guided_backprop", ExplanationMethod(guided_backprop))
