"""The registered models, named ``<timm backbone>_<head>``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from timm.models import register_model
from torch import nn

from . import own_backbones, token_transformers  # noqa: F401  registered before they are looked up
from .builder import CLASSIFIER, create_model
from .head import list_heads
from .subclass import SECOND_ORDER_NAMES
from .weights import description_without_weights

BACKBONES_WITH_EVERY_HEAD = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
# The papers' other backbones, and today's common ones.
BACKBONES_WITH_COMMON_HEADS = (
    "alexnet",
    "vgg16_bn",
    "densenet121",
    "inception_v3",
    "resnet18_cifar",
    "resnext50_32x4d",
    "efficientnet_b0",
    "regnety_032",
    "convnext_tiny",
    "swin_tiny_patch4_window7_224",
    "vit_small_patch16_224",
    "deit_small_patch16_224",
    "so_vit_7",
    "so_vit_10",
    "so_vit_14",
    "so_vit_19",
)
COMMON_HEADS = ("svdpade", "isqrt", "mpa", "seb")
# What the bilinear papers fine-tune.
BILINEAR_BACKBONES = ("vgg16",)
BILINEAR_HEADS = ("bcnn", "cbp")
# What moment probing keeps frozen.
PROBED_BACKBONES = (
    "vit_small_patch16_224",
    "vit_base_patch16_224",
    "vit_base_patch16_clip_224",
    "swin_base_patch4_window7_224",
    "convnext_base",
)

__all__: list[str] = []
default_cfgs: dict[str, Any] = {}


def registered_models() -> Iterator[tuple[str, str, str]]:
    """(model name, backbone, head) of every registered model.

    Examples:
        >>> ("resnet50_svdpade", "resnet50", "svdpade") in registered_models()
        True
    """
    for backbones, heads in (
        (BACKBONES_WITH_EVERY_HEAD, list_heads()),
        (BACKBONES_WITH_COMMON_HEADS, COMMON_HEADS),
        (BILINEAR_BACKBONES, BILINEAR_HEADS),
        (PROBED_BACKBONES, ("moment",)),
    ):
        for backbone in backbones:
            for head in heads:
                yield f"{backbone}_{head}", backbone, head


def _entrypoint(name: str, backbone: str, head: str) -> Callable[..., nn.Module]:
    def build(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return create_model(backbone, head, pretrained=pretrained, **kwargs)

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"timm's ``{backbone}`` with the ``{head}`` head; see :func:`covpool_plugins.create_model`."
    return build


def _register_all() -> None:
    for name, backbone, head in registered_models():
        SECOND_ORDER_NAMES.add(name)
        default_cfgs[name] = description_without_weights(name, backbone, classifier=CLASSIFIER)  # for register_model
        globals()[name] = register_model(_entrypoint(name, backbone, head))


_register_all()
SECOND_ORDER_NAMES.add("second_order")


@register_model
def second_order(
    pretrained: bool = False, backbone: str = "resnet18", head: str = "svdpade", **kwargs: Any
) -> nn.Module:
    """Any timm backbone with any head, for scripts and hub folders: most combinations have no name of their own.

    ``--model second_order --model-kwargs backbone=resnet10t head=isqrt reduce_channels=128``
    """
    return create_model(backbone, head, pretrained=pretrained, **kwargs)
