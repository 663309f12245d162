"""Excitation backpropagation, plain and contrastive, as a gradient.

The method is made for networks of non-negative activations and linear layers, and the head of a second-order model is
none: its features are signed and its classifier reads a normalised covariance. So the excitation of a class starts at
the input F of the head, where p = (F ∘ ∂s/∂F)₊, normalised to the sum 1, tells which activations speak for the class
score s to first order. From there on a neuron y = g(Σ_k w_k a_k) with activations a >= 0 passes its excitation p on in
shares,

    p_j = a_j w_j⁺ / Z · p    with    Z = Σ_k w_k⁺ a_k,    so that    Σ_j p_j = p.

In the ratio r = p / y of excitation to activation that reads r_j = w_j⁺ (y / Z) r: the gradient of Z · (y / Z) where
the factor y / Z is held at its value. So every function gets that gradient and keeps its own value, automatic
differentiation does the rest, and activation times gradient is the excitation, at every layer. What only picks or
moves activations (a ReLU, max pooling, a concatenation) has the right gradient as it is.

* A batch norm is one linear function with the convolution in front of it: its weights are scaled by a factor whose
  size cancels in the shares, and whose sign does not. The convolution may lie further back, behind average poolings
  and concatenations, as in DenseNet.
* A sum shares its excitation by the positive parts of its summands.
* A gate, a factor with fewer values than what it multiplies, passes nothing to its own inputs.
* Biases get no share. A neuron without excitatory input (Z = 0) is active by its bias alone; its excitation ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..errors import NotApplicableError
from .backprop import RECTIFIERS, cut, layer_or_last
from .explanation import Explanation
from .methods import EXPLANATIONS, ExplanationMethod, check_layer
from .model_view import ForwardPass, ModelView

SMALLEST = 1e-20

# Class scores (num_classes,) to the number whose excitation is taken.
Score = Callable[[Tensor], Tensor]
# The excitatory input Z of a linear function whose output channels are scaled by factors of the given signs (C,).
Excitation = Callable[[Tensor], Tensor]


def excitation_backprop(view: ModelView, passed: ForwardPass, target: int, *, layer: str | None = None) -> Explanation:
    """Probability that an activation excites the class, summed over the channels, on the grid of a layer (H, W).

    The sum is 1, less what neurons had that are active by their bias alone; it is among the extras as ``mass``.

    Args:
        layer: name of a stage of the view; the default is the last one on the next finer grid than that of the pool.

    Source: Zhang, Lin, Brandt, Shen & Sclaroff, "Top-down Neural Attention by Excitation Backprop", ECCV 2016.
    """
    layer = _default_layer(view, passed.x) if layer is None else layer
    values = _excitation(view, passed.x, layer, lambda scores: scores[target])
    return Explanation(values, signed=False, layer=layer, extras={"mass": values.sum()})


def contrastive_excitation_backprop(
    view: ModelView, passed: ForwardPass, target: int, *, layer: str | None = None, versus: int | None = None
) -> Explanation:
    """Excitation of the class less that of another, or of all others, on the grid of a layer (H, W).

    Both have the sum 1 at the input of the head, where they are subtracted, so that the map sums to zero.

    Args:
        layer: as of :func:`excitation_backprop`, from the same source.
        versus: the class that is subtracted; the default is everything but the target: log Σ exp of their scores.
    """
    if view.num_classes == 1:
        raise NotApplicableError("the model has one class, and so nothing to contrast it with")

    def others(scores: Tensor) -> Tensor:
        if versus is not None:
            return scores[versus]
        return torch.cat([scores[:target], scores[target + 1 :]]).logsumexp(dim=0)

    layer = _default_layer(view, passed.x) if layer is None else layer
    values = _excitation(view, passed.x, layer, lambda scores: scores[target], others)
    return Explanation(values, signed=True, layer=layer)


@torch.enable_grad()
def _excitation(view: ModelView, x: Tensor, layer: str, score: Score, contrast: Score | None = None) -> Tensor:
    """The excitation of a score, less that of another, at a layer (H, W)."""
    stage, rules = view.stage(layer), ExcitationRules()
    head_inputs: list[Tensor] = []  # where the backbone's graph ends, and where the head's begins

    def end(_: Any, args: Any) -> Any:
        rules.ended = True
        head_inputs.extend((args[0], args[0].detach().requires_grad_(True)))
        return (head_inputs[1], *args[1:])

    assert view.pool_site is not None
    with cut(stage) as activations, view.pool_site.register_forward_pre_hook(end), rules:
        scores = view.model(view.to_model(x))[0]
    features, head_features = head_inputs
    if (features < 0).any():
        raise NotApplicableError("the method shares activations, and the pool of this model takes negative values")
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
    return torch.where((features > 0) & (total > 0), positive / total, 0).to(features.dtype)


def _default_layer(view: ModelView, x: Tensor) -> str:
    """The last of the shallowest stages on the next finer grid than the pool's; the last stage where no grid is finer.

    Deeper stages lie on branches, which a part of the excitation passes by. In front of a pool of another layout than
    NCHW it is the last stage, too: there the sizes of maps are not known before.
    """
    last = layer_or_last(view, None)
    if view.known_pool().input_fmt != "NCHW":
        return last
    positions: dict[str, int] = {}

    def remember(name: str, output: Tensor) -> None:
        positions.pop(name, None)
        if name == last or not (output < 0).any():
            positions[name] = output.shape[2:].numel()

    with ExitStack() as hooks:
        for name, stage in view.stages.items():
            hooks.enter_context(stage.register_forward_hook(lambda *call, name=name: remember(name, call[-1])))
        view.logits(x)
    finer = {name: count for name, count in positions.items() if count > positions[last]}
    coarsest = [name for name, count in finer.items() if count == min(finer.values())]
    return min(reversed(coarsest), key=lambda name: name.count("."), default=last)


# What picks or moves activations. By name: a function, its method and its form in place share it.
PASSING = frozenset(
    {"relu", "max_pool2d", "max_pool2d_with_indices", "adaptive_max_pool2d", "dropout", "dropout2d", "clone", "to"}
    | {"flatten", "reshape", "view", "permute", "transpose", "movedim", "unsqueeze", "squeeze", "expand", "contiguous"}
    | {"chunk", "split", "narrow", "getitem", "get", "pad", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle"}
)


class ExcitationRules(TorchFunctionMode):
    """While it lasts, gradients are ratios of excitation to activation; a function without a rule refuses its own."""

    def __init__(self) -> None:
        super().__init__()
        self.ended = False
        self._excitations: dict[int, tuple[Tensor, int, Excitation]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.ended or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        name = func.__name__.strip("_")
        rule = RULES.get(name)
        if rule is not None and any(t.requires_grad for t in _tensors(args)):
            return rule(self, func, *args, **kwargs)
        result = func(*args, **kwargs)
        return result if name in PASSING else self.refuse(result, name)

    def refuse(self, result: Any, name: str) -> Any:
        """The result, with an error where an excitation arrives at it."""

        def stop(_: Tensor) -> None:
            raise NotApplicableError(
                f"there is no rule for {name} behind the layer: the method explains networks of convolutions with "
                "batch norm, ReLU, pooling, sums, gates and concatenations, at layers behind a ReLU"
            )

        for tensor in _tensors([result]):
            if tensor.requires_grad:
                tensor.register_hook(stop)
        return result

    def remember(self, output: Tensor, excitation: Excitation) -> Tensor:
        """Note the linear function that an output is, for a batch norm behind it."""
        self._excitations[id(output)] = (output, output._version, excitation)
        return output

    def excitation(self, x: Tensor) -> Excitation | None:
        """The linear function that x is; ``None`` for signed values that are none that we know."""
        _, version, excitation = self._excitations.get(id(x), (x, -1, None))
        if excitation is not None and version == x._version:
            return excitation
        return None if (x < 0).any() else lambda sign: x * _by_channel(sign, x).clamp(min=0)


def _conv2d(
    rules: ExcitationRules, func: Any, input: Tensor, weight: Tensor, bias: Any = None, *args: Any, **kwargs: Any
) -> Tensor:
    active = input.clamp(min=0)

    def excitation(sign: Tensor) -> Tensor:
        return func(active, (weight * sign.view(-1, 1, 1, 1)).clamp(min=0), None, *args, **kwargs)

    value = func(input, weight, bias, *args, **kwargs)
    return rules.remember(_with_gradient_of(excitation(weight.new_ones(len(weight))), value), excitation)


def _batch_norm(
    rules: ExcitationRules, func: Any, input: Tensor, mean: Any, var: Any, weight: Any = None, *args: Any, **kwargs: Any
) -> Tensor:
    value = func(input, mean, var, weight, *args, **kwargs)
    excitation = rules.excitation(input)
    if excitation is None:
        return rules.refuse(value, "batch norm of signed values other than a convolution's")
    sign = input.new_ones(input.shape[1]) if weight is None else weight.sign()
    return _with_gradient_of(excitation(sign), value)


def _average(rules: ExcitationRules, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    value = func(input, *args, **kwargs)
    output = _with_gradient_of(func(input.clamp(min=0), *args, **kwargs), value)
    known = rules.excitation(input)
    if known is None or output.ndim != input.ndim:
        return output
    return rules.remember(output, lambda sign: func(known(sign), *args, **kwargs))


def _cat(rules: ExcitationRules, func: Any, tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    output = func(tensors, dim)
    known = [rules.excitation(tensor) for tensor in tensors] if dim == 1 else [None]
    if any(excitation is None for excitation in known):
        return output
    sizes = [tensor.shape[1] for tensor in tensors]

    def excitation(sign: Tensor) -> Tensor:
        return func([input_of(part) for input_of, part in zip(known, sign.split(sizes), strict=True) if input_of], 1)

    return rules.remember(output, excitation)


def _add(rules: ExcitationRules, func: Any, input: Tensor, other: Any, **kwargs: Any) -> Any:
    if kwargs or not isinstance(input, Tensor) or not isinstance(other, Tensor) or input.shape != other.shape:
        return rules.refuse(func(input, other, **kwargs), "a sum with a constant or a factor")
    first = input.clone()  # what is summed in place is needed for the shares
    shared = _with_gradient_of(first.clamp(min=0) + other.clamp(min=0), first + other)
    return input.copy_(shared) if func.__name__ == "add_" else shared


def _mul(rules: ExcitationRules, func: Any, input: Any, other: Any, **kwargs: Any) -> Any:
    if not isinstance(input, Tensor) or not isinstance(other, Tensor):
        return func(input, other, **kwargs)
    if input.numel() == other.numel():
        return rules.refuse(func(input, other, **kwargs), "the product of two maps")
    gate_first = input.numel() < other.numel()
    return func(input.detach(), other, **kwargs) if gate_first else func(input, other.detach(), **kwargs)


def _capped(rules: ExcitationRules, func: Any, *args: Any, **kwargs: Any) -> Tensor:
    """A ReLU with an upper limit, at which the excitation passes on."""
    input, low, high, inplace = RECTIFIERS[func.__name__](*args, **kwargs)
    first = input.clone()
    value = first.clamp(low, high)
    if low != 0:
        return rules.refuse(value, func.__name__)
    capped = _with_gradient_of(first.clamp(min=0), value)
    return input.copy_(capped) if inplace else capped


RULES: dict[str, Callable[..., Any]] = {
    "conv2d": _conv2d,
    "batch_norm": _batch_norm,
    "avg_pool2d": _average,
    "adaptive_avg_pool2d": _average,
    "mean": _average,
    "interpolate": _average,
    "cat": _cat,
    "add": _add,
    "mul": _mul,
    "hardtanh": _capped,
    "relu6": _capped,
}


def _with_gradient_of(excitation: Tensor, value: Tensor) -> Tensor:
    """The value, with the gradient of the excitatory input times a constant that brings it to the value."""
    with torch.no_grad():
        factor = torch.where(excitation > SMALLEST, value / excitation, 0)
    scaled = excitation * factor
    return value.detach() + (scaled - scaled.detach())


def _by_channel(sign: Tensor, x: Tensor) -> Tensor:
    return sign.view(1, -1, *[1] * (x.ndim - 2))


def _tensors(values: Any) -> list[Tensor]:
    """Tensors among values, also in lists of them."""
    tensors: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            tensors.append(value)
        elif isinstance(value, (list, tuple)):
            tensors += _tensors(value)
    return tensors


EXPLANATIONS.add("excitation_backprop", ExplanationMethod(excitation_backprop, layer=check_layer))
EXPLANATIONS.add(
    "contrastive_excitation_backprop",
    ExplanationMethod(contrastive_excitation_backprop, layer=check_layer),
)
