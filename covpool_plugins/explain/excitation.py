"""Excitation backpropagation, plain and contrastive, from a signal at the input of the head.

The method is made for networks of non-negative activations and linear layers, and the head of a second-order model is
none: its features are signed and its classifier reads a normalised covariance. So the excitation of a class starts at
the input F of the head, where p = (F ∘ ∂s/∂F)₊, normalised to the sum 1, tells which activations speak for the class
score s to first order. From there on the rules of the method hold, see ``excitation_rules``. TorchRay's context is not
used: it knows neither batch norm that is folded into a convolution nor the sums of timm and MMPretrain.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import NotApplicableError
from .backprop import disposable, last_layer
from .excitation_rules import ExcitationRules
from .explanation import Explanation
from .methods import EXPLANATIONS, ExplanationMethod, checked_with_the_model
from .model_view import ForwardPass, ModelView

# Class scores (num_classes,) to the number whose excitation is taken.
Score = Callable[[Tensor], Tensor]


def excitation_backprop(view: ModelView, passed: ForwardPass, target: int, *, layer: str | None = None) -> Explanation:
    """Probability that an activation excites the class, summed over the channels, on the grid of a layer (H, W).

    The sum is 1, less what neurons had that are active by their bias alone; it is among the extras as ``mass``.

    Args:
        layer: name of a stage of the view; the default is the last one on the next finer grid than that of the pool.

    Raises:
        UnknownNameError: for an unknown layer.
        NotApplicableError: for a model that calls a function without a rule behind the layer, or whose pool takes
            negative values.

    Source: Zhang, Lin, Brandt, Shen & Sclaroff, "Top-down Neural Attention by Excitation Backprop", ECCV 2016.
    """
    method = "excitation_backprop"
    layer = _default_layer(view, passed.x, method) if layer is None else layer
    values = _excitation(view, passed.x, layer, method, lambda scores: scores[target])
    return Explanation(values, signed=False, layer=layer, extras={"mass": values.sum()})


def contrastive_excitation_backprop(
    view: ModelView, passed: ForwardPass, target: int, *, layer: str | None = None, versus: int | None = None
) -> Explanation:
    """Excitation of the class less that of another, or of all others, on the grid of a layer (H, W).

    Both have the sum 1 at the input of the head, where they are subtracted, so that the map sums to zero.

    Args:
        layer: name of a stage of the view; the default is the last one on the next finer grid than that of the pool.
        versus: the class that is subtracted; the default is everything but the target: log Σ exp of their scores.

    Raises:
        UnknownNameError: for an unknown layer.
        NotApplicableError: for a model that calls a function without a rule behind the layer, whose pool takes negative
            values, or that has one class.

    Source: Zhang, Lin, Brandt, Shen & Sclaroff, "Top-down Neural Attention by Excitation Backprop", ECCV 2016.
    """
    method = "contrastive_excitation_backprop"
    if view.num_classes == 1:
        raise NotApplicableError(f"{method}: the model has one class, and so nothing to contrast it with")

    def others(scores: Tensor) -> Tensor:
        if versus is not None:
            return scores[versus]
        return torch.cat([scores[:target], scores[target + 1 :]]).logsumexp(dim=0)

    layer = _default_layer(view, passed.x, method) if layer is None else layer
    return Explanation(
        _excitation(view, passed.x, layer, method, lambda s: s[target], others), signed=True, layer=layer
    )


@torch.enable_grad()
def _excitation(
    view: ModelView, x: Tensor, layer: str, method: str, score: Score, contrast: Score | None = None
) -> Tensor:
    """The excitation of a score, less that of another, at a layer (H, W)."""
    view.stage(layer)
    own, rules = disposable(view), ExcitationRules(method)
    activations: list[Tensor] = []  # at the layer, where the graph begins
    head_inputs: list[Tensor] = []  # where the backbone's graph ends, and where the head's begins

    @torch.no_grad()
    def begin(_: Any, args: Any, output: Tensor) -> Tensor:
        activations.append(output.detach().requires_grad_(True))
        return activations[-1]

    def end(_: Any, args: Any) -> Any:
        rules.ended = True
        head_inputs.extend((args[0], args[0].detach().requires_grad_(True)))
        return (head_inputs[1], *args[1:])

    assert own.pool_site is not None
    own.stage(layer).register_forward_hook(begin)
    own.pool_site.register_forward_pre_hook(end)
    with rules:
        scores = own.model(own.to_model(x))[0]
    features, head_features = head_inputs
    if (features < 0).any():
        raise NotApplicableError(f"{method} shares activations, and the pool of this model takes negative values")
    ratio = _ratio(score(scores), head_features)
    if contrast is not None:
        ratio = ratio - _ratio(contrast(scores), head_features)
    (ratios,) = torch.autograd.grad(features, activations[-1], ratio)
    return view.as_maps(activations[-1].detach() * ratios, x).sum(dim=1)[0]


def _ratio(score: Tensor, features: Tensor) -> Tensor:
    """Ratio of excitation to activation at the features; the excitation sums to one, or is zero where none excites."""
    (gradient,) = torch.autograd.grad(score, features, retain_graph=True)
    positive = gradient.clamp(min=0)
    total = (features.detach() * positive).sum(dtype=torch.float64)
    return (
        torch.where(features > 0, positive / total, 0).to(features.dtype) if total > 0 else torch.zeros_like(positive)
    )


def _default_layer(view: ModelView, x: Tensor, method: str) -> str:
    """The last of the shallowest stages on the next finer grid than the pool's; the last stage where no grid is finer.

    Deeper stages lie on branches, which a part of the excitation passes by. In front of a pool of another layout than
    NCHW it is the last stage, too: there the sizes of maps are not known before.
    """
    last, own = last_layer(view, method), disposable(view)
    if view.known_pool().input_fmt != "NCHW":
        return last
    positions: dict[str, int] = {}

    def remember(name: str) -> Any:
        def hook(_: Any, args: Any, output: Tensor) -> None:
            positions.pop(name, None)
            if name == last or not (output < 0).any():
                positions[name] = view.as_maps(output, x).shape[2:].numel()

        return hook

    for name, stage in own.stages.items():
        stage.register_forward_hook(remember(name))
    own.logits(x)
    finer = {name: count for name, count in positions.items() if count > positions[last]}
    if not finer:
        return last
    coarsest = [name for name, count in finer.items() if count == min(finer.values())]
    return min(reversed(coarsest), key=lambda name: name.count("."))


EXPLANATIONS.add("excitation_backprop", ExplanationMethod(excitation_backprop, layer=checked_with_the_model))
EXPLANATIONS.add(
    "contrastive_excitation_backprop",
    ExplanationMethod(contrastive_excitation_backprop, layer=checked_with_the_model, versus=checked_with_the_model),
)
