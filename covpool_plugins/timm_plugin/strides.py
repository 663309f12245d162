"""The last stage without its stride: 14x14 positions at 224 instead of 7x7, as the networks of iSQRT-COV have it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..checks import check_choice
from ..errors import OptionError
from .backbones import build_unpooled, input_size, without_data

REFUSALS = (AssertionError, NotImplementedError, TypeError, RuntimeError)


def build_with_last_stride(
    entrypoint: Callable[..., nn.Module], name: str, last_stride: int | None, arguments: dict[str, Any]
) -> nn.Module:
    """The unpooled backbone, for ``last_stride=1`` with twice as many positions in each direction.

    For a stride that ``output_stride`` removes timm adds dilation, which is undone: the GCP networks just drop the
    stride. Where a family has no ``output_stride``, its last pooling between stages is removed.

    Raises:
        OptionError: for another ``last_stride``, beside ``output_stride``, or for a backbone that keeps its stride.
    """
    check_choice("last_stride", last_stride, (None, 1, 2))
    if last_stride == 1 and "output_stride" in arguments:
        raise OptionError(
            f"last_stride=1 stands for an output_stride, got output_stride={arguments['output_stride']!r} too"
        )
    if last_stride != 1:
        return build_unpooled(entrypoint, **arguments)
    try:
        model = build_unpooled(entrypoint, output_stride=16, **arguments)
        _remove_added_dilation(model)
    except REFUSALS:
        model = build_unpooled(entrypoint, **arguments)
        if not _drop_last_pooling(model, arguments.get("in_chans")):
            raise OptionError(f"backbone {name!r} has no last stride to remove, got last_stride=1") from None
    return model


def _remove_added_dilation(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.dilation == (2, 2):
            module.dilation = (1, 1)
            if not isinstance(module.padding, str):
                module.padding = tuple(p // 2 for p in module.padding)  # type: ignore[assignment]


def _drop_last_pooling(model: nn.Module, in_chans: int | None) -> bool:
    """Remove the pooling whose output has the size of the last map; return whether there is one."""
    sizes: dict[str, torch.Size] = {}
    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: sizes.update({name: output.shape[2:]}))
        for name, module in model.named_modules()
        if isinstance(module, (nn.MaxPool2d, nn.AvgPool2d)) and module.stride in (2, (2, 2))
    ]
    forward: Any = model.forward_features
    last = without_data(model, input_size(model, in_chans), forward)
    for hook in hooks:
        hook.remove()
    names = [name for name, size in sizes.items() if isinstance(last, torch.Tensor) and size == last.shape[2:]]
    if len(names) != 1:
        return False
    parent, _, child = names[0].rpartition(".")
    setattr(model.get_submodule(parent), child, nn.Identity())
    stages: Any = getattr(model, "feature_info", None) or []
    coarsest = max((stage["reduction"] for stage in stages), default=0)
    for stage in stages:
        if stage["reduction"] == coarsest:
            stage["reduction"] = coarsest // 2
    return True
