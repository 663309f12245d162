"""Any timm backbone with any head."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
from timm.models import (
    get_arch_pretrained_cfgs,
    model_entrypoint,
    resolve_pretrained_cfg,
    split_model_name_tag,
)
from torch import nn

from ..checks import check_choice, check_flag, check_number
from ..errors import OptionError, UnknownNameError
from ..pooling import pool_options
from .backbones import HeadInput, drop_final_norm, head_input
from .head import SecondOrderHead, check_pool, takes_frames
from .psrp import add_psrp
from .refusals import suggest_spelling
from .strides import build_with_last_stride
from .subclass import LAYER_GROUPS, SECOND_ORDER_NAMES, attach_head, describe
from .weights import (
    check_backbone_is_loaded,
    check_psrp,
    head_name,
    load_head,
    one_line_errors,
    read_weights,
    without_new,
)

CLASSIFIER = "head.fc"
DEFAULT_CLASSES = 1000
# Options of the pool that follow from the backbone.
SET_BY_BACKBONE = ("in_channels", "input_fmt", "num_prefix_tokens", "device", "dtype")


def create_model(
    backbone: str,
    head: str = "svdpade",
    *,
    pretrained: bool | str | Path = False,
    num_classes: int | None = None,
    head_kwargs: dict[str, Any] | None = None,
    reduce_channels: int | str | None = "default",
    last_stride: int | None = None,
    fuse_class_token: bool = False,
    psrp: bool = False,
    final_norm: bool = True,
    layer_groups: str | None = None,
    hidden_features: Sequence[int] = (),
    frames: int | None = None,
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
        pretrained: load weights: timm's for the backbone, or those of a file or folder (short for
            ``pretrained_cfg_overlay=dict(file=...)``), a plain backbone's or a whole second-order model's; what fits of
            the head is loaded.
        num_classes: outputs; 0 returns the pooled vector. The default is 1000, or that of a given description.
        head_kwargs: options of the pool and its matrix method, for example ``dict(vectorize='full', iterations=7)``.
        reduce_channels: short for ``head_kwargs=dict(reduce_channels=...)``; ``None`` or, because ``timm.create_model``
            drops arguments that are ``None``, 0 leaves the reduction out.
        last_stride: 1 removes the stride of the last stage (14x14 positions at 224, as in CVPR 2018); the default
            keeps timm's (7x7, as in ICCV 2021).
        fuse_class_token: add the logits of the backbone's class token to the second-order ones, as in So-ViT.
        psrp: MP+ of moment probing: a small trained module in every block of a ViT, Swin or ConvNeXt, which changes
            nothing at first; see :class:`covpool_plugins.timm_plugin.psrp.PSRP`.
        final_norm: keep the norm behind the backbone's last stage, if it has one; checkpoints of iSICE (ConvNeXt) and
            moment probing (ConvNeXt, Swin, CLIP) have none there.
        layer_groups: two groups for timm's layer decay, so that ``layer_decay=0.05`` gives the first 20 times the
            learning rate of the second: ``head``, the classifier and all the rest; ``new``, what
            ``model.new_parameters()`` gives, and all that is pretrained. By default timm's groups.
        hidden_features: widths of hidden layers between vector and classifier, ``(4096, 4096)`` for AlexNet and VGG
            trained from scratch in CVPR 2018.
        frames: T of clips: the model takes (B, T, C, H, W), or the frames of clips one after another, (B T, C, H, W),
            and gives one row for a clip. ``temporal`` pools the frames of a clip together; the vectors of the other
            heads (and of ``temporal`` with ``head_kwargs=dict(level='frame')``) are averaged over them.
        global_pool: '' returns the unpooled features (with ``num_classes=0``); a head's name overrides ``head``.
        drop_rate: dropout before the classifier.
        features_only: timm's feature extractor for the plain backbone.
        timm_kwargs: what else the backbone takes (``in_chans``, ``img_size``, ``drop_path_rate``, ``device``, ...).

    Raises:
        UnknownNameError: for an unknown backbone or head.
        OptionError: for an option that head or backbone does not take.
        ShapeError: for a backbone whose features a covariance cannot be taken of.

    Examples:
        >>> model = create_model("resnet10t", "isqrt", num_classes=5, reduce_channels=8, head_kwargs=dict(iterations=7))
        >>> model(torch.randn(2, 3, 64, 64)).shape
        torch.Size([2, 5])
        >>> model.reset_classifier(3, "svdpade")
        >>> model(torch.randn(2, 3, 64, 64)).shape
        torch.Size([2, 3])
    """
    name, tag = _known_backbone(backbone)
    if isinstance(pretrained, (str, Path)):
        pretrained_cfg_overlay = {**(pretrained_cfg_overlay or {}), "file": str(pretrained)}
    check_pool(head)  # a typo is reported before the backbone is built
    if global_pool:
        check_pool(global_pool)
    check_choice("layer_groups", layer_groups, LAYER_GROUPS)
    check_flag("psrp", psrp)
    check_flag("final_norm", final_norm)
    saved = timm_kwargs.get("pretrained_model_args") or {}
    options = _head_options(head_kwargs, saved.get("head_kwargs"), reduce_channels)
    if saved and num_classes and not global_pool:
        global_pool = None  # timm's save_for_hf has written that of the backbone
    pool_type = head if global_pool is None else global_pool
    frames = _frames(frames, options, pool_type or head)
    check_number("drop_rate", drop_rate, "[0, 1)")
    cfg = resolve_pretrained_cfg(name, pretrained_cfg or tag or None, pretrained_cfg_overlay)
    has_description = pretrained_cfg_overlay or not isinstance(pretrained_cfg, (str, type(None)))
    if num_classes is None:
        num_classes = int(cfg.num_classes) if has_description and cfg.num_classes is not None else DEFAULT_CLASSES
    own_weights = bool(pretrained and has_description and cfg.has_weights)
    if has_description and not cfg.has_weights:
        # timm's scripts hand over the description of our model, which has no weights: then the backbone's are meant.
        cfg = resolve_pretrained_cfg(name, tag or None, pretrained_cfg_overlay)
    source = dict(pretrained=bool(pretrained), pretrained_cfg=cfg, cache_dir=timm_kwargs.pop("cache_dir", None))
    weights = read_weights(cfg, source["cache_dir"]) if own_weights else None
    if weights is not None:
        check_psrp(weights, psrp, str(cfg.file or cfg.hf_hub_id or cfg.url))
        # timm is strict about the keys if the numbers of classes agree, and a backbone without classifier has none.
        classes = cfg.num_classes or DEFAULT_CLASSES
        changes: dict[str, Any] = dict(num_classes=classes, state_dict=without_new(weights), source=None)
        source["pretrained_cfg"] = replace(cfg, **changes)
    with _readable_options(timm_kwargs, name, pool_type or head), one_line_errors(cfg if own_weights else None):
        if features_only:
            model = model_entrypoint(name)(features_only=True, **source, **timm_kwargs)
            model.pretrained_cfg |= dict(state_dict=cfg.state_dict, source=cfg.source)
            return model
        model = build_with_last_stride(model_entrypoint(name), name, last_stride, {**source, **timm_kwargs})
    if psrp:
        add_psrp(model, name)
    if not final_norm:
        drop_final_norm(model, name)
    features = head_input(model, name, timm_kwargs.get("in_chans"))
    parameter = next(model.parameters())
    new_head = SecondOrderHead(
        features.channels,
        num_classes,
        pool_type,
        drop_rate,
        options,
        input_fmt=features.input_fmt,
        num_prefix_tokens=features.num_prefix_tokens,
        fuse_class_token=_class_token(fuse_class_token, features, name),
        norm=features.norm,
        own_pool_type=head,
        hidden_features=hidden_features,
        frames=frames,
        device=parameter.device,
        dtype=parameter.dtype,
    )
    attach_head(model, name, new_head, features.place)
    model.layer_groups = layer_groups  # type: ignore[assignment]
    model.second_order_arguments = dict(  # type: ignore[assignment]
        backbone=name,
        last_stride=last_stride,
        fuse_class_token=fuse_class_token,
        psrp=psrp,
        final_norm=final_norm,
        layer_groups=layer_groups,
        hidden_features=list(hidden_features),
        frames=frames,
        **timm_kwargs,
    )
    model.pretrained_cfg = model.default_cfg = _description(model, cfg)  # type: ignore[assignment]
    describe(model)
    if pretrained:
        place = str(cfg.file or cfg.hf_hub_id or cfg.url or name)
        if weights is not None:
            check_backbone_is_loaded(model, weights, place)
        load_head(model, weights or {}, place, _plain_classifier(new_head, cfg))
    return model


class UnknownOptionError(OptionError, TypeError):
    """An option that the backbone does not take; a ``TypeError`` too, as timm's models raise it."""


@contextmanager
def _readable_options(given: Collection[str], name: str, pool_type: str) -> Iterator[None]:
    """An error that names the option, and the one that was probably meant, for what the backbone does not take."""
    try:
        yield
    except TypeError as error:
        found = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if found is None or found[1] not in given:
            raise
        option, of_pool = found[1], pool_options(pool_type)
        close = difflib.get_close_matches(option, [*inspect.signature(create_model).parameters, *of_pool], n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        if option in of_pool:
            hint = f"; of pool {pool_type!r} it is one: head_kwargs=dict({option}=...)"
        raise UnknownOptionError(f"backbone {name!r} has no option {option!r}{hint}") from None


def _known_backbone(backbone: str) -> tuple[str, str]:
    """Name and tag of a timm model that is none of ours."""
    if ":" in str(backbone):
        raise OptionError(f"create_model takes the name of a backbone; use timm.create_model for {backbone!r}")
    name, tag = split_model_name_tag(str(backbone))
    if not timm.is_model(name) or name in SECOND_ORDER_NAMES:
        suggest_spelling(name)
        plain = [known for known in timm.list_models() if known not in SECOND_ORDER_NAMES]
        raise UnknownNameError("timm backbone", name, plain)
    weights = get_arch_pretrained_cfgs(name)
    if tag and f"{name}.{tag}" not in weights:
        raise UnknownNameError("timm weights", backbone, weights)
    return name, tag


def _head_options(head_kwargs: Any, saved: Any, reduce_channels: int | str | None) -> dict[str, Any]:
    """Options of the pool: those of the call, in two places, over those that a hub folder was saved with."""
    if not isinstance(head_kwargs, (Mapping, type(None))):
        raise OptionError(f"head_kwargs must be a dictionary of options, got {head_kwargs!r}")
    for option in SET_BY_BACKBONE:
        if option in (head_kwargs or {}):
            raise OptionError(f"head_kwargs have {option!r}, which follows from the backbone")
    options = {} if head_kwargs == saved else dict(head_kwargs or {})
    if reduce_channels != "default":
        width = reduce_channels or None
        if options.setdefault("reduce_channels", width) != width:
            other = options["reduce_channels"]
            raise OptionError(f"reduce_channels={reduce_channels!r}, but head_kwargs have reduce_channels={other!r}")
    return dict(saved or {}) | options


def _frames(frames: int | None, options: dict[str, Any], pool_type: str) -> int | None:
    """Frames of a clip: an argument, or an option of the pool, which moves out of the options."""
    if "frames" not in options or not takes_frames(pool_type):
        return frames
    own = options.pop("frames")
    if frames not in (None, own):
        raise OptionError(f"frames={frames!r}, but head_kwargs have frames={own!r}")
    return own


def _plain_classifier(head: SecondOrderHead, cfg: Any) -> str | None:
    """The plain backbone's classifier, which average pooling can go on with if no norm stands between the two."""
    usable = head.pool_type == "gap" and isinstance(head.norm, nn.Identity) and isinstance(cfg.classifier, str)
    return cfg.classifier if usable else None


def _class_token(fuse: bool, features: HeadInput, name: str) -> bool:
    check_flag("fuse_class_token", fuse)
    if fuse and not features.class_token:
        raise OptionError(f"fuse_class_token needs a backbone with a class token, got {name!r}")
    return fuse


def _description(model: nn.Module, cfg: Any) -> dict[str, Any]:
    own = dict(classifier=f"{head_name(model)}.fc", num_classes=cfg.num_classes)
    return {**model.pretrained_cfg, "state_dict": cfg.state_dict, "source": cfg.source, **own}  # type: ignore[dict-item]
