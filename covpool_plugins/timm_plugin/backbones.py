"""What a timm backbone hands to its head, from a run without data.

A backbone is built without its classifier and, where timm allows it, without its pooling. A second-order head takes the
output of its ``forward_head``, or the input where the model keeps all of its head in one module: maps in either order,
or tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from timm.layers import ClNormMlpClassifierHead, NormMlpClassifierHead
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from ..errors import OptionError, ShapeError
from ..pooling.base import InputFormat

# Where the head goes: after what the backbone's forward_head does without its classifier, in place of all of it, or
# in place of it under a name of its own, because the backbone uses the name ``head`` for features.
Place = Literal["after", "instead", "beside"]
FEWEST_POSITIONS = 2
Size = tuple[int, int, int]

# Heads whose norm stands in front of their other layers; MetaFormer's is a plain sequence.
NORM_FIRST = (NormMlpClassifierHead, ClNormMlpClassifierHead, nn.Sequential)

# Modules behind the feature map that a second-order head does not use, by class of the backbone.
UNUSED = {"VGG": ("pre_logits",)}


class HeadInput(NamedTuple):
    """What a second-order head gets from a backbone.

    Attributes:
        place: where the head goes.
        channels: of the maps or tokens.
        input_fmt: ``NCHW``, ``NHWC`` or ``NLC``.
        num_prefix_tokens: class and register tokens in front, ``NLC`` only.
        class_token: whether the first of the prefix tokens is one.
        norm: what the backbone's own head normalises the features by; the new head keeps it.
    """

    place: Place
    channels: int
    input_fmt: InputFormat
    num_prefix_tokens: int
    class_token: bool
    norm: nn.Module | None


def build_unpooled(entrypoint: Callable[..., nn.Module], **arguments: Any) -> nn.Module:
    """The backbone without classifier, and without pooling where its family allows it."""
    try:
        model = entrypoint(num_classes=0, global_pool="", **arguments)
    except AssertionError:  # how timm's families say that they cannot
        model = entrypoint(num_classes=0, **arguments)
    for name in UNUSED.get(type(model).__name__, ()):
        setattr(model, name, nn.Identity())
    return model


def drop_final_norm(model: nn.Module, name: str) -> None:
    """Leave out the norm behind a timm model's last stage, in place.

    Raises:
        OptionError: for a model without one, by its ``name``.
    """
    for owner in (model, getattr(model, "head", None)):
        if isinstance(getattr(owner, "norm", None), nn.Module):
            owner.norm = nn.Identity()  # type: ignore[union-attr, assignment]
            return
    raise OptionError(f"final_norm=False needs a norm behind the last stage, which {name!r} has not")


def head_input(model: nn.Module, name: str, in_chans: int | None = None) -> HeadInput:
    """What the head gets; only shapes are computed.

    Args:
        model: the backbone, of :func:`build_unpooled`.
        name: in messages.
        in_chans: channels of its images; those of its description by default.

    Raises:
        ShapeError: if a covariance cannot be taken of it, naming the shape.
    """
    own = getattr(model, "head", None)
    own = own if isinstance(own, nn.Module) and not isinstance(own, nn.Identity) else None
    pooling_head = own is not None and (hasattr(own, "global_pool") or isinstance(own, ClNormMlpClassifierHead))
    features, unpooled, untouched, head_was_called = _outputs(model, own, input_size(model, in_chans), not pooling_head)
    shape = features if pooling_head else unpooled
    if _layout(model, shape) is None:
        shape, pooling_head = features, True
    layout = _layout(model, shape)
    if layout is None:
        raise ShapeError(f"backbone {name!r} {_described(shape)}; a second-order head takes maps or tokens of an image")
    channels, input_fmt, prefix = layout
    place: Place = "beside" if head_was_called else "instead" if pooling_head or untouched else "after"
    norm = getattr(own, "norm", None) if pooling_head and isinstance(own, NORM_FIRST) else None
    class_token = prefix > 0 and getattr(model, "cls_token", None) is not None
    return HeadInput(place, channels, input_fmt, prefix, class_token, norm)


def _outputs(model: Any, own: nn.Module | None, size: Size, head_too: bool) -> tuple[Any, Any, bool, bool]:
    """Shapes of what ``forward_features`` gives and of what ``forward_head`` makes of it, from one run; whether the two
    are the same tensor; and whether ``forward_features`` calls the module named ``head``."""
    called: list[bool] = []
    hook = own.register_forward_hook(lambda *_: called.append(True)) if own is not None else None

    def run(x: torch.Tensor) -> tuple[Any, Any]:
        features = model.forward_features(x)
        if hook is not None:
            hook.remove()
        is_tensor = isinstance(features, torch.Tensor)
        return features, model.forward_head(features, pre_logits=True) if head_too and is_tensor else features

    features, unpooled = without_data(model, size, run)
    return _shapes(features), _shapes(unpooled), unpooled is features, bool(called)


def without_data(model: nn.Module, size: Size, run: Callable[[torch.Tensor], Any]) -> Any:
    """``run`` with two images of that size, in eval mode; nothing is computed but shapes, where that is possible."""
    parameter = next(model.parameters())
    # Some models keep what they compute, here tensors without data, in buffers and attributes.
    before = [(module, dict(vars(module)), dict(module._buffers)) for module in model.modules()]
    model.eval()
    if parameter.is_meta:  # and buffers need not be, as under Accelerate's init_empty_weights
        for module in model.modules():
            module._buffers.update({name: None if b is None else b.to("meta") for name, b in module._buffers.items()})
    try:
        with torch.no_grad():
            try:
                with FakeTensorMode(allow_non_fake_inputs=True):
                    return run(torch.empty(2, *size, device=parameter.device, dtype=parameter.dtype))
            except DataDependentOutputException:  # a few models look at numbers
                return run(torch.zeros(2, *size, device=parameter.device, dtype=parameter.dtype))
    finally:
        for module, attributes, buffers in before:
            vars(module).update(attributes)
            module._buffers.clear()
            module._buffers.update(buffers)


def input_size(model: nn.Module, in_chans: int | None = None) -> Size:
    """Channels, height and width of the images that the model was built for."""
    channels, height, width = model.pretrained_cfg["input_size"]  # type: ignore[index]
    parts = (getattr(model, "patch_embed", None), getattr(model, "stem", None), model)
    size = next((size for part in parts if (size := getattr(part, "img_size", None))), None)
    if isinstance(size, int):
        height = width = size
    elif size is not None:
        height, width = size
    return in_chans or channels, height, width


def _shapes(output: Any) -> Any:
    if isinstance(output, torch.Tensor):
        return output.shape
    return [_shapes(part) for part in (output.values() if isinstance(output, dict) else output)]


def _layout(model: nn.Module, shape: Any) -> tuple[int, InputFormat, int] | None:
    """Channels, layout and prefix tokens, if these are maps or tokens of more than one position."""
    if not isinstance(shape, torch.Size) or len(shape) not in (3, 4):
        return None
    widths = (getattr(model, "num_features", None), getattr(model, "head_hidden_size", None))
    fmt: InputFormat
    if len(shape) == 3:
        fmt, channels = "NLC", shape[2]
        prefix = getattr(model, "num_prefix_tokens", None)
        prefix = int(hasattr(model, "cls_token")) if prefix is None else prefix
        positions = shape[1] - prefix
    else:
        last = getattr(model, "output_fmt", None) == "NHWC" or (shape[3] in widths and shape[1] not in widths)
        fmt, prefix, channels = "NHWC" if last else "NCHW", 0, shape[3 if last else 1]
        positions = math.prod(shape[1:]) // channels
    return (channels, fmt, prefix) if positions >= FEWEST_POSITIONS else None


def _described(shape: Any) -> str:
    if not isinstance(shape, torch.Size):
        return f"hands {len(shape)} tensors to its head"
    return f"hands its head the shape (B, {', '.join(map(str, shape[1:]))}), which has no positions"
