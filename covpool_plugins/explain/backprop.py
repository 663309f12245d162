"""The score's gradient at the pixels and at the maps of a layer, and what is made of it.

Methods with the option ``layer`` take the name of a stage of the view; the default is the last map of the backbone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from ..checks import check_choice, check_integer, check_number
from ..errors import NotApplicableError
from .explanation import Explanation
from .images import blur
from .methods import EXPLANATIONS, ExplanationMethod, check_layer, check_seed
from .model_view import ForwardPass, ModelView

DEGENERATE = 1e-4
BATCH = 8  # inputs in one forward and backward pass
Baseline = Literal["mean", "black", "blur"]


def gradient(view: ModelView, passed: ForwardPass, target: int) -> Explanation:
    """Size of the score's gradient at every pixel, the largest over the channels, (H, W).

    Source: Simonyan, Vedaldi & Zisserman, "Deep Inside Convolutional Networks", ICLR workshop 2014.
    """
    return _sizes(pixel_gradients(view, view.to_model(passed.x), target))


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
    copies = (x + size * torch.randn(x.shape, generator=random, dtype=torch.float32).to(x) for _ in range(samples))
    return _sizes(_weighted_gradient(view, copies, x.new_full((samples,), 1 / samples), target, "smooth_grad"))


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
        "black": lambda x: view.preprocessing.normalized(torch.zeros_like(x)),
        "blur": blur,
    }
    start = starts[baseline](x)
    places, weights = gauss_points(points)
    path = (start + place * (x - start) for place in places)
    mean = _weighted_gradient(view, path, x.new_tensor(weights), target, "integrated_gradients")
    shares = ((x - start) * mean).sum(dim=1)[0]
    whole = (view.logits(x) - view.logits(start))[0, target].item()
    return Explanation(shares, signed=True, completeness_target=whole)


def grad_cam(view: ModelView, passed: ForwardPass, target: int, *, layer: str | None = None) -> Explanation:
    """Grad-CAM on the grid of a layer, (H, W).

    A covariance does not change when a constant is added to the features, so the gradients at its input sum to zero
    over the positions: Grad-CAM weights there are rounding errors, and their normalised map looks plausible. Such a
    layer, with nothing non-linear between it and a centred covariance, is refused.

    Args:
        layer: a stage; the default is the last one that is not degenerate. That is the last map of the backbone where
            the channel reduction has a ReLU.

    Source: Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization",
    ICCV 2017.
    """
    view.known_pool()
    ratio = 0.0
    for name in reversed(view.shallow_stages) if layer is None else [layer]:
        maps, grad = maps_and_gradients(view, passed.x, target, name)
        ratio = _mean_gradient_ratio(grad)
        if ratio >= DEGENERATE:
            values = (grad.mean(dim=(2, 3), keepdim=True) * maps).sum(dim=1).relu()
            return Explanation(values[0], signed=False, layer=name)
    if layer is None:
        raise NotApplicableError("the model has no layer with a map at which Grad-CAM is defined")
    raise NotApplicableError(
        f"at layer {layer!r} the map would show rounding errors: nothing non-linear lies between it and the "
        f"covariance, so its gradients sum to zero ({ratio:.1e}); take an earlier layer, or name none"
    )


def grad_cam_plus_plus(view: ModelView, passed: ForwardPass, target: int, *, layer: str | None = None) -> Explanation:
    """Grad-CAM with a weight for each position of a channel, from the positive gradients, (H, W).

    Its weights do not vanish in front of a centred covariance. They assume that the score is the exponential of one
    that is linear in the maps, as the source does.

    Source: Chattopadhyay, Sarkar, Howlader & Balasubramanian, "Grad-CAM++: Generalized Gradient-based Visual
    Explanations for Deep Convolutional Networks", WACV 2018, eq. 10 and 19.
    """
    layer = layer_or_last(view, layer)
    maps, grad = maps_and_gradients(view, passed.x, target, layer)
    divisor = 2 * grad.square() + maps.sum(dim=(2, 3), keepdim=True) * grad**3
    shares = torch.where(divisor == 0, 0.0, grad.square() / torch.where(divisor == 0, 1.0, divisor))
    weights = (shares * grad.relu()).sum(dim=(2, 3), keepdim=True)
    return Explanation((weights * maps).sum(dim=1).relu()[0], signed=False, layer=layer)


def layer_cam(view: ModelView, passed: ForwardPass, target: int, *, layer: str | None = None) -> Explanation:
    """Activation times positive gradient, summed over the channels, on the grid of a layer (H, W).

    Source: Jiang, Zhang, Hou, Cheng & Wei, "LayerCAM: Exploring Hierarchical Class Activation Maps for Localization",
    TIP 2021.
    """
    layer = layer_or_last(view, layer)
    maps, grad = maps_and_gradients(view, passed.x, target, layer)
    return Explanation((grad.relu() * maps).sum(dim=1).relu()[0], signed=False, layer=layer)


def linear_approx(view: ModelView, passed: ForwardPass, target: int, *, layer: str | None = None) -> Explanation:
    """Activation times gradient, summed over the channels, on the grid of a layer (H, W).

    Unlike Grad-CAM it does not average the gradient over the positions, so it is also defined right in front of a
    centred covariance. The covariance is blind to a constant added to the features there; this map is not, the
    method ``contribution`` is.

    Source: Kindermans et al., "Investigating the influence of noise and distractors on the interpretation of neural
    networks", NIPS workshop 2016; at a layer: Olah et al., "The Building Blocks of Interpretability", Distill 2018.
    """
    layer = layer_or_last(view, layer)
    maps, grad = maps_and_gradients(view, passed.x, target, layer)
    return Explanation((maps * grad).sum(dim=1)[0], signed=True, layer=layer)


def deconvnet(view: ModelView, passed: ForwardPass, target: int) -> Explanation:
    """Size of the deconvolved signal at every pixel, the largest over the channels, (H, W).

    A ReLU passes the positive part of the signal, wherever the activations are. All else, the head with its
    normalisation included, passes the gradient; so do other activations, where a network mixes them with ReLUs.

    Source: Zeiler & Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014.
    """
    return _rectified(view, passed.x, target, Rectifiers(guided=False))


def guided_backprop(view: ModelView, passed: ForwardPass, target: int) -> Explanation:
    """As :func:`deconvnet`, but a ReLU passes the positive part of the signal only where it is active, (H, W).

    Source: Springenberg et al., "Striving for Simplicity: The All Convolutional Net", ICLR workshop 2015.
    """
    return _rectified(view, passed.x, target, Rectifiers(guided=True))


def layer_or_last(view: ModelView, layer: str | None) -> str:
    """The layer, or the last map of the backbone.

    Raises:
        NotApplicableError: for a model without a layer that can be probed.
    """
    view.known_pool()
    if layer is None and not view.shallow_stages:
        raise NotApplicableError("the model has no layer with a map that can be probed")
    return view.shallow_stages[-1] if layer is None else layer


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
    with cut(view.stage(layer)) as leaves, torch.enable_grad():
        score = view.model(view.to_model(x).clone())[0, target]
    maps = leaves[-1]
    return view.as_maps(maps.detach(), x), view.as_maps(torch.autograd.grad(score, maps)[0], x)


@contextmanager
def cut(stage: nn.Module) -> Iterator[list[Tensor]]:
    """Within it, what a stage gives is a leaf, where the graph begins; they are listed as they are made."""
    leaves: list[Tensor] = []

    @torch.no_grad()
    def begin(_: Any, args: Any, output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_(True))
        return leaves[-1]

    with stage.register_forward_hook(begin):
        yield leaves


def gauss_points(count: int) -> tuple[list[float], list[float]]:
    """Points and weights of Gauss-Legendre quadrature on [0, 1]."""
    points, weights = np.polynomial.legendre.leggauss(count)
    return ((points + 1) / 2).tolist(), (weights / 2).tolist()


def _sizes(grad: Tensor) -> Explanation:
    return Explanation(grad[0].abs().amax(dim=0), signed=False)


def _weighted_gradient(view: ModelView, inputs: Iterator[Tensor], weights: Tensor, target: int, name: str) -> Tensor:
    """The sum of the gradients at inputs (1, C, H, W), each with its weight, in batches under a progress bar."""
    total = torch.zeros(())
    with tqdm(total=len(weights), desc=name, unit="input", leave=False, disable=None) as bar:
        for part in weights.split(BATCH):
            grad = pixel_gradients(view, torch.cat(list(islice(inputs, len(part)))), target)
            total = (part.view(-1, 1, 1, 1) * grad).sum(dim=0, keepdim=True) + total
            bar.update(len(part))
    return total


def _mean_gradient_ratio(grad: Tensor) -> float:
    """Norm of the gradient (B, C, H, W) averaged over the positions, against its root mean square over them.

    One for no gradient at all: that is an honest zero.
    """
    size = grad.square().sum(dim=1).mean().sqrt()
    return (grad.mean(dim=(2, 3)).norm() / size).item() if size > 0 else 1.0


class Rectifiers(TorchFunctionMode):
    """ReLUs with another backward pass, however they are called, also in place; ReLU6 is a ReLU and a limit.

    Args:
        guided: whether the signal ends where the ReLU is not active; its negative part always does.
    """

    def __init__(self, guided: bool) -> None:
        super().__init__()
        self.guided = guided
        self.on_maps = 0
        self.active = True

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        called = RECTIFIERS.get(func.__name__)
        # Without gradients it is a forward or backward pass inside an autograd function that has its own rule.
        if called is None or not self.active or not torch.is_grad_enabled():
            return func(*args, **(kwargs or {}))
        x, low, high, inplace = called(*args, **(kwargs or {}))
        if low != 0:
            return func(*args, **(kwargs or {}))
        self.on_maps += sum(size > 1 for size in x.shape[1:]) > 1
        first = x.clone() if inplace else x
        rectified = first.relu() if self.guided else first + (first.relu() - first).detach()
        if rectified.requires_grad:
            rectified.register_hook(lambda signal: signal.clamp(min=0))
        if high is not None:
            rectified = rectified.clamp(max=high)
        return x.copy_(rectified) if inplace else rectified


# From a call to its input, its limits and whether it works in place. By name: the function, the method and the one in
# torch.nn.functional share it.
RECTIFIERS: dict[str, Callable[..., tuple[Tensor, float, float | None, bool]]] = {
    "relu": lambda input, inplace=False: (input, 0.0, None, inplace),
    "relu_": lambda input: (input, 0.0, None, True),
    "relu6": lambda input, inplace=False: (input, 0.0, 6.0, inplace),
    "hardtanh": lambda input, min_val=-1.0, max_val=1.0, inplace=False: (input, min_val, max_val, inplace),
}


def _rectified(view: ModelView, x: Tensor, target: int, rectifiers: Rectifiers) -> Explanation:
    """The head passes its own gradient, but for the ReLUs of the pool's reduction.

    Raises:
        NotApplicableError: for a model without a ReLU on the maps in front of its pool.
    """
    counts: list[int] = []

    def at_pool(module: nn.Module, args: Any) -> None:
        counts.append(rectifiers.on_maps)
        rectifiers.active = False

    def switch(*_: Any) -> None:
        rectifiers.active = not rectifiers.active

    with ExitStack() as hooks, rectifiers:
        for name, module in view.pool_site.named_modules() if view.pool_site is not None else ():
            if not name:
                hooks.enter_context(module.register_forward_pre_hook(at_pool))
            elif name == "reduction" or name.rpartition(".")[0] == "reductions":
                hooks.enter_context(module.register_forward_pre_hook(switch))
                hooks.enter_context(module.register_forward_hook(switch))
        grad = pixel_gradients(view, view.to_model(x), target)
    if [*counts, rectifiers.on_maps][0] == 0:
        raise NotApplicableError(
            "it changes the gradient at ReLUs, and this model has none on the maps in front of its pool: "
            "the map would be the plain gradient; take the method 'gradient'"
        )
    return _sizes(grad)


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
for layered in (grad_cam, grad_cam_plus_plus, layer_cam, linear_approx):
    EXPLANATIONS.add(layered.__name__, ExplanationMethod(layered, layer=check_layer))
EXPLANATIONS.add("deconvnet", ExplanationMethod(deconvnet))
EXPLANATIONS.add("guided_backprop", ExplanationMethod(guided_backprop))
