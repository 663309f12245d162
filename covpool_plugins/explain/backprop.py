"""The score's gradient at the pixels and at the maps of a layer, and what is made of it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..checks import check_choice, check_integer, check_number
from ..errors import NotApplicableError
from .explanation import Explanation
from .images import blur
from .methods import EXPLANATIONS, ExplanationMethod, check_seed, checked_with_the_model
from .model_view import ForwardPass, ModelView

DEGENERATE = 1e-4
BATCH = 8  # inputs in one forward and backward pass
Baseline = Literal["mean", "black", "blur"]


def gradient(view: ModelView, passed: ForwardPass, target: int) -> Explanation:
    """Size of the score's gradient at every pixel, the largest over the channels, (H, W).

    Source: Simonyan, Vedaldi & Zisserman, "Deep Inside Convolutional Networks", ICLR workshop 2014.
    """
    grad = pixel_gradients(view, view.to_model(passed.x), target)
    return Explanation(grad[0].abs().amax(dim=0), signed=False)


def smooth_grad(
    view: ModelView, passed: ForwardPass, target: int, *, samples: int = 25, noise: float = 0.15, seed: int = 0
) -> Explanation:
    """The gradient averaged over noisy copies of the input, its size at every pixel, (H, W).

    Args:
        samples: copies, each a forward and backward pass.
        noise: standard deviation of the noise, as a part of the range of the input's values.
        seed: of the noise; no other random numbers are drawn or changed.

    Source: Smilkov, Thorat, Kim, Viégas & Wattenberg, "SmoothGrad: removing noise by adding noise", 2017.
    """
    x = view.to_model(passed.x)
    random = torch.Generator("cpu").manual_seed(seed)
    size = noise * (x.max() - x.min()).item()
    total = torch.zeros_like(x)
    for count in _parts(samples, "smooth_grad"):
        drawn = torch.randn((count, *x.shape[1:]), generator=random, dtype=torch.float32)
        total += pixel_gradients(view, x + size * drawn.to(x), target).sum(dim=0, keepdim=True)
    return Explanation((total / samples)[0].abs().amax(dim=0), signed=False)


def integrated_gradients(
    view: ModelView, passed: ForwardPass, target: int, *, points: int = 32, baseline: Baseline = "mean"
) -> Explanation:
    """(x - x₀) · ∫ ∂s/∂x(x₀ + t (x - x₀)) dt over 0 <= t <= 1, summed over the channels, (H, W).

    The shares sum to the score of the picture less that of the baseline x₀, up to the error of the quadrature, which is
    the completeness gap.

    Args:
        points: of the Gauss-Legendre quadrature, each a forward and backward pass.
        baseline: ``mean``, the mean colour of the preprocessing; ``black``; or ``blur``, the picture blurred.

    Source: Sundararajan, Taly & Yan, "Axiomatic Attribution for Deep Networks", ICML 2017.
    """
    x = view.to_model(passed.x)
    starts: dict[str, Callable[[Tensor], Tensor]] = {
        "mean": torch.zeros_like,
        "black": view.preprocessing.black,
        "blur": blur,
    }
    start = starts[baseline](x)
    total, done = torch.zeros_like(x), 0
    places, weights = x.new_tensor(gauss_points(points)).view(-1, 2, 1, 1, 1).unbind(1)
    for count in _parts(points, "integrated_gradients"):
        part = slice(done, done + count)
        grad = pixel_gradients(view, start + places[part] * (x - start), target)
        total += (weights[part] * grad).sum(dim=0, keepdim=True)
        done += count
    shares = ((x - start) * total).sum(dim=1)[0]
    whole = (view.logits(x) - view.logits(start))[0, target].item()
    return Explanation(shares, signed=True, contributions=shares, completeness_target=whole)


def grad_cam(view: ModelView, passed: ForwardPass, target: int, *, layer: str | None = None) -> Explanation:
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
    view.known_pool()
    ratio = 0.0
    for name in reversed(view.shallow_stages) if layer is None else [layer]:
        maps, grad = maps_and_gradients(view, passed.x, target, name)
        ratio = mean_gradient_ratio(grad)
        if ratio >= DEGENERATE:
            values = (grad.mean(dim=(2, 3), keepdim=True) * maps).sum(dim=1).relu()
            return Explanation(values[0], signed=False, layer=name)
    if layer is None:
        raise NotApplicableError("grad_cam: the model has no layer with a map at which Grad-CAM is defined")
    raise NotApplicableError(
        f"grad_cam: at layer {layer!r} the map would show rounding errors: nothing non-linear lies between it and the "
        f"covariance, so its gradients sum to zero ({ratio:.1e}); take an earlier layer, or name none"
    )


def grad_cam_plus_plus(view: ModelView, passed: ForwardPass, target: int, *, layer: str | None = None) -> Explanation:
    """Grad-CAM with a weight for each position of a channel, from the positive gradients, (H, W).

    Its weights do not vanish in front of a centred covariance. They assume that the score is the exponential of one
    that is linear in the maps, as the source does.

    Args:
        layer: name of a stage of the view; the default is the last map of the backbone.

    Raises:
        UnknownNameError: for an unknown layer.
        NotApplicableError: for a model without a layer that can be probed, where none is named.

    Source: Chattopadhyay, Sarkar, Howlader & Balasubramanian, "Grad-CAM++: Generalized Gradient-based Visual
    Explanations for Deep Convolutional Networks", WACV 2018, eq. 10 and 19.
    """
    layer = last_layer(view, "grad_cam_plus_plus") if layer is None else layer
    maps, grad = maps_and_gradients(view, passed.x, target, layer)
    divisor = 2 * grad.square() + maps.sum(dim=(2, 3), keepdim=True) * grad**3
    shares = torch.where(divisor == 0, 0.0, grad.square() / torch.where(divisor == 0, 1.0, divisor))
    weights = (shares * grad.relu()).sum(dim=(2, 3), keepdim=True)
    return Explanation((weights * maps).sum(dim=1).relu()[0], signed=False, layer=layer)


def layer_cam(view: ModelView, passed: ForwardPass, target: int, *, layer: str | None = None) -> Explanation:
    """Activation times positive gradient, summed over the channels, on the grid of a layer (H, W).

    Fine layers have sharp maps.

    Args:
        layer: name of a stage of the view; the default is the last map of the backbone.

    Raises:
        UnknownNameError: for an unknown layer.
        NotApplicableError: for a model without a layer that can be probed, where none is named.

    Source: Jiang, Zhang, Hou, Cheng & Wei, "LayerCAM: Exploring Hierarchical Class Activation Maps for Localization",
    TIP 2021.
    """
    layer = last_layer(view, "layer_cam") if layer is None else layer
    maps, grad = maps_and_gradients(view, passed.x, target, layer)
    return Explanation((grad.relu() * maps).sum(dim=1).relu()[0], signed=False, layer=layer)


def linear_approx(view: ModelView, passed: ForwardPass, target: int, *, layer: str | None = None) -> Explanation:
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
    maps, grad = maps_and_gradients(view, passed.x, target, layer)
    return Explanation((maps * grad).sum(dim=1)[0], signed=True, layer=layer)


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


def pixel_gradients(view: ModelView, x: Tensor, target: int) -> Tensor:
    """Gradients of a class score at inputs x (B, C, H, W)."""
    pixels = x.clone().requires_grad_(True)
    with torch.enable_grad():
        return torch.autograd.grad(view.model(pixels)[:, target].sum(), pixels)[0]


def maps_and_gradients(view: ModelView, x: Tensor, target: int, layer: str) -> tuple[Tensor, Tensor]:
    """The maps (1, C, H, W) of a stage, and the gradients of a class score there.

    Raises:
        UnknownNameError: for an unknown layer.
        NotApplicableError: for a model without a pool that we know.
    """
    view.stage(layer)
    own, leaves = disposable(view), []

    @torch.no_grad()
    def cut(_: Any, args: Any, output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_(True))
        return leaves[-1]

    own.stage(layer).register_forward_hook(cut)
    with torch.enable_grad():
        score = own.model(own.to_model(x).clone())[0, target]
    maps = leaves[-1]
    return view.as_maps(maps.detach(), x), view.as_maps(torch.autograd.grad(score, maps)[0], x)


def gauss_points(count: int) -> list[tuple[float, float]]:
    """Points and weights of Gauss-Legendre quadrature on [0, 1]."""
    points, weights = np.polynomial.legendre.leggauss(count)
    return [(float(p + 1) / 2, float(w) / 2) for p, w in zip(points, weights, strict=True)]


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


def _parts(count: int, name: str) -> Iterator[int]:
    """The sizes of batches of ``count`` inputs, under a progress bar."""
    with tqdm(total=count, desc=name, unit="input", leave=False, disable=None) as bar:
        for first in range(0, count, BATCH):
            size = min(BATCH, count - first)
            yield size
            bar.update(size)


EXPLANATIONS.add("gradient", ExplanationMethod(gradient))
EXPLANATIONS.add(
    "smooth_grad",
    ExplanationMethod(
        smooth_grad, samples=check_integer, noise=partial(check_number, interval="[0, 1]"), seed=check_seed
    ),
)
EXPLANATIONS.add(
    "integrated_gradients",
    ExplanationMethod(
        integrated_gradients, points=check_integer, baseline=partial(check_choice, allowed=get_args(Baseline))
    ),
)
for function in (grad_cam, grad_cam_plus_plus, layer_cam, linear_approx):
    EXPLANATIONS.add(function.__name__, ExplanationMethod(function, layer=checked_with_the_model))
