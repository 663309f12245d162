"""The registered models, named ``<timm backbone>_<head>``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from timm.models import generate_default_cfgs, get_pretrained_cfg, register_model
from torch import nn

from . import own_backbones
from .builder import CLASSIFIER, SECOND_ORDER_NAMES, create_model
from .head import list_heads

BACKBONES_WITH_EVERY_HEAD = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
# The papers' other backbones, and today's common ones.
BACKBONES = (
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

assert own_backbones  # registered before they are looked up
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
        (BACKBONES, COMMON_HEADS),
        (BILINEAR_BACKBONES, BILINEAR_HEADS),
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


def _description(name: str, backbone: str) -> Any:
    """The backbone's description without its weights: those are no weights of the whole model."""
    cfg = get_pretrained_cfg(backbone)
    assert cfg is not None
    nowhere = dict.fromkeys(("tag", "file", "state_dict", "hf_hub_id", "hf_hub_filename"))
    cfg = replace(cfg, classifier=CLASSIFIER, url="", source=None, **nowhere)  # type: ignore[arg-type]
    return generate_default_cfgs({name: cfg})[name]


def _register_all() -> None:
    for name, backbone, head in registered_models():
        SECOND_ORDER_NAMES.add(name)
        default_cfgs[name] = _description(name, backbone)  # register_model reads it: first this, then that
        globals()[name] = register_model(_entrypoint(name, backbone, head))


_register_all()
