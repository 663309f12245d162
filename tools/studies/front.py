"""The front of ``tf_efficientnet_lite0`` as a timm model: 40 channels with a stride of 8.

It ends where the features are still those of surfaces and parts. Any head by name goes behind it, as behind every
network of timm: ``create_model("tf_efficientnet_lite0_front", "svdpade")``.
"""

from __future__ import annotations

from typing import Any

import timm
from timm.models import generate_default_cfgs, get_pretrained_cfg, register_model
from torch import nn

FRONT = "tf_efficientnet_lite0_front"
LAST_STAGE = 2  # of the five with features: the last with a stride of 8
_whole = get_pretrained_cfg("tf_efficientnet_lite0").to_dict()  # type: ignore[union-attr]
_kept = ("num_classes", "input_size", "crop_pct", "interpolation", "mean", "std", "first_conv", "classifier")

default_cfgs = generate_default_cfgs({f"{FRONT}.in1k": {name: _whole[name] for name in _kept}})


@register_model
def tf_efficientnet_lite0_front(pretrained: bool = False, **arguments: Any) -> nn.Module:
    """The network up to ``blocks.2``; its weights are the whole one's."""
    model: Any = timm.create_model("tf_efficientnet_lite0", pretrained=pretrained, **arguments)
    model.prune_intermediate_layers([LAST_STAGE], prune_norm=True, prune_head=False)
    return model


def whole_network(backbone: str) -> str:
    """The network whose weights a backbone takes."""
    return backbone.removesuffix("_front")
