"""The registered models: every head on these backbones, named ``<timm backbone>_<head>``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from timm.models import generate_default_cfgs, get_pretrained_cfg, register_model
from torch import nn

from .builder import CLASSIFIER, create_model
from .head import list_heads

BACKBONES_WITH_EVERY_HEAD = ("resnet18", "resnet50")

__all__: list[str] = []
default_cfgs: dict[str, Any] = {}


def registered_models() -> Iterator[tuple[str, str, str]]:
    """(model name, backbone, head) of every registered model."""
    for backbone in BACKBONES_WITH_EVERY_HEAD:
        for head in list_heads():
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
    cfg = replace(cfg, classifier=CLASSIFIER, tag=None, url="", file=None, hf_hub_id=None, hf_hub_filename=None)
    return generate_default_cfgs({name: cfg})[name]


def _register_all() -> None:
    for name, backbone, head in registered_models():
        default_cfgs[name] = _description(name, backbone)  # register_model reads it: first this, then that
        globals()[name] = register_model(_entrypoint(name, backbone, head))


_register_all()
