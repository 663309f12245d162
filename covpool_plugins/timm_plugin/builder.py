"""Any timm backbone with any head."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import timm
from timm.models import (
    get_arch_pretrained_cfgs,
    load_pretrained,
    model_entrypoint,
    resolve_pretrained_cfg,
    split_model_name_tag,
)
from torch import Tensor, nn

from ..errors import OptionError, ShapeError, UnknownNameError
from ..pooling import POOLS
from .head import SecondOrderHead
from .subclass import attach_head, last_map

_logger = logging.getLogger(__name__)

CLASSIFIER = "head.fc"


def create_model(
    backbone: str,
    head: str = "svdpade",
    *,
    pretrained: bool = False,
    num_classes: int = 1000,
    head_kwargs: dict[str, Any] | None = None,
    reduce_channels: int | str | None = "default",
    last_stride: int | None = None,
    global_pool: str | None = None,
    drop_rate: float = 0.0,
    features_only: bool = False,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    **timm_kwargs: Any,
) -> nn.Module:
    """A timm model with a second-order head in place of its pooling and classifier.

    Args:
        backbone: name of a timm model, with or without a tag.
        head: one of :func:`list_heads`.
        pretrained: load weights: timm's for the backbone, or those that ``pretrained_cfg_overlay`` names (a plain
            backbone's or a whole second-order model's; what fits of the head is loaded).
        num_classes: outputs; 0 returns the pooled vector.
        head_kwargs: options of the pool and its matrix method, for example ``dict(vectorize='full', iterations=7)``.
        reduce_channels: short for ``head_kwargs=dict(reduce_channels=...)``; ``None`` or, because ``timm.create_model``
            drops arguments that are ``None``, 0 leaves the reduction out.
        last_stride: 1 removes the stride of the last stage (14x14 positions at 224, as in CVPR 2018); the default
            keeps timm's (7x7, as in ICCV 2021).
        global_pool: '' returns the unpooled map (with ``num_classes=0``); a head's name overrides ``head``.
        drop_rate: dropout before the classifier.
        features_only: timm's feature extractor for the plain backbone.
        timm_kwargs: everything else that ``timm.create_model`` takes.

    Raises:
        UnknownNameError: for an unknown backbone or head.
        OptionError: for an option that head or backbone does not take.
    """
    name, tag = split_model_name_tag(str(backbone))
    if not timm.is_model(name):
        raise UnknownNameError("timm backbone", name, timm.list_models())
    weights = get_arch_pretrained_cfgs(name)
    if tag and f"{name}.{tag}" not in weights:
        raise UnknownNameError("timm weights", backbone, weights)
    pool_type = head if global_pool is None else global_pool
    POOLS[head]  # a typo is reported before the backbone is built
    cfg = resolve_pretrained_cfg(name, pretrained_cfg or tag or None, pretrained_cfg_overlay)
    source = dict(pretrained_cfg=cfg, cache_dir=timm_kwargs.pop("cache_dir", None))
    timm_kwargs |= _stride_arguments(last_stride, timm_kwargs)
    entrypoint = model_entrypoint(name)
    if features_only:
        return entrypoint(pretrained=pretrained, features_only=True, **source, **timm_kwargs)

    model = entrypoint(pretrained=pretrained, num_classes=0, global_pool="", **source, **timm_kwargs)
    if last_stride == 1:
        _remove_added_dilation(model)
    options = _head_options(head_kwargs, reduce_channels)
    new_head = _build_head(model, name, num_classes, pool_type, drop_rate, options)
    attach_head(model, new_head, num_classes)
    model.pretrained_cfg = model.default_cfg = _describe_weights(model.pretrained_cfg, f"{name}_{head}")
    if pretrained and (pretrained_cfg_overlay or not isinstance(pretrained_cfg, (str, type(None)))):
        _load_head(model, cfg, num_classes, source["cache_dir"])
    return model


def _head_options(head_kwargs: Any, reduce_channels: int | str | None) -> dict[str, Any]:
    """Options of the pool, from both places."""
    if not isinstance(head_kwargs, (Mapping, type(None))):
        raise OptionError(f"head_kwargs must be a dictionary of options, got {head_kwargs!r}")
    options = dict(head_kwargs or {})
    if reduce_channels != "default":
        wanted = reduce_channels or None
        if options.setdefault("reduce_channels", wanted) != wanted:
            other = options["reduce_channels"]
            raise OptionError(f"reduce_channels={reduce_channels!r}, but head_kwargs have reduce_channels={other!r}")
    return options


def _build_head(
    model: nn.Module, name: str, num_classes: int, pool_type: str, drop_rate: float, options: dict[str, Any]
) -> SecondOrderHead:
    own_head = getattr(model, "head", None)
    if isinstance(own_head, nn.Module) and not isinstance(own_head, nn.Identity):
        raise OptionError(f"backbone {name!r} has a head of its own ({type(own_head).__name__}), not replaced so far")
    in_chans, *size = model.pretrained_cfg["input_size"]  # type: ignore[index]
    shape = last_map(model, _input_channels(model, in_chans), tuple(size))
    channels: int = model.num_features  # type: ignore[assignment]
    if len(shape) != 4 or shape[1] != channels:
        raise ShapeError(f"backbone {name!r} ends in shape {tuple(shape)}, heads take maps (B, {channels}, H, W)")
    parameter = next(model.parameters())
    factory = dict(device=parameter.device, dtype=parameter.dtype)
    return SecondOrderHead(channels, num_classes, pool_type, drop_rate, options, **factory)  # type: ignore[arg-type]


def _input_channels(model: nn.Module, default: int) -> int:
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    return default if first is None else first.in_channels


def _stride_arguments(last_stride: int | None, timm_kwargs: dict[str, Any]) -> dict[str, Any]:
    if last_stride in (None, 2):
        return {}
    if last_stride != 1 or "output_stride" in timm_kwargs:
        raise OptionError(f"last_stride must be 1, 2 or None, and not beside output_stride, got {last_stride!r}")
    return {"output_stride": 16}


def _remove_added_dilation(model: nn.Module) -> None:
    """timm makes up for a stride it removes by dilation; the GCP networks just drop the stride."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.dilation == (2, 2):
            module.dilation = (1, 1)
            module.padding = tuple(p // 2 for p in module.padding)  # type: ignore[assignment, operator]


def _describe_weights(cfg: dict[str, Any], architecture: str) -> dict[str, Any]:
    return {**cfg, "architecture": architecture, "classifier": CLASSIFIER}


def _load_head(model: nn.Module, cfg: Any, num_classes: int, cache_dir: Any) -> None:
    """Second look at the weights for what fits the head; timm has loaded the backbone and left the rest."""
    wanted = {f"head.{key}": value.shape for key, value in model.head.state_dict().items()}  # type: ignore[union-attr]
    loaded: list[str] = []

    def keep_fitting(state_dict: dict[str, Tensor], _: nn.Module) -> dict[str, Tensor]:
        fitting = {k: v for k, v in state_dict.items() if k in wanted and v.shape == wanted[k]}
        if f"{CLASSIFIER}.weight" not in fitting:  # a bias means nothing without its weight
            fitting.pop(f"{CLASSIFIER}.bias", None)
        loaded.extend(fitting)
        return model.state_dict() | fitting

    description = cfg.to_dict() | {"classifier": None, "first_conv": None}
    load_pretrained(model, description, num_classes, filter_fn=keep_fitting, cache_dir=cache_dir)
    fresh = [k for k in wanted if k not in loaded]
    _logger.info("head: loaded %s; fresh %s", ", ".join(loaded) or "nothing", ", ".join(fresh) or "nothing")
