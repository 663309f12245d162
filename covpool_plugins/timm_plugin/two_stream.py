"""Bilinear models of two timm backbones, by their names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from timm.models import (
    generate_default_cfgs,
    load_pretrained,
    register_model,
    register_notrace_module,
    resolve_pretrained_cfg,
)
from torch import nn

from ..checks import check_flag, check_known
from ..errors import OptionError
from .builder import create_model
from .layer_groups import apart_from_rest
from .streams import SideBySide, Stream, TwoStreamNet, TwoStreamPool
from .subclass import NOT_SAVED, SECOND_ORDER_NAMES, head_name

POOL_OPTIONS = ("reduce_channels", "eps")
NORMALISATION = ("mean", "std")

# For torch.fx leaves: they look at shapes.
for _module in (SideBySide, TwoStreamPool):
    register_notrace_module(_module)


class TwoStreamModel(TwoStreamNet):
    """A :class:`TwoStreamNet` of timm models, with the groups of parameters that timm's optimisers ask for."""

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """For timm's layer decay: the classifier, and all the rest."""
        return apart_from_rest(r"fc\.")

    def new_parameters(self) -> list[nn.Parameter]:
        """The parameters that no pretrained backbone has: those of reductions and classifier."""
        return [*self.global_pool.parameters(), *self.fc.parameters()]

    def no_weight_decay(self) -> set[str]:
        """Parameters that the backbones want without weight decay."""
        streams = dict(zip(("stream_a", "stream_b"), self.streams, strict=False))
        return {f"{name}.{key}" for name, s in streams.items() for key in getattr(s, "no_weight_decay", set)()}


def create_two_stream_model(
    backbone_a: str,
    backbone_b: str | None = None,
    *,
    shared: bool = False,
    pretrained: bool = False,
    num_classes: int = 1000,
    head_kwargs: dict[str, Any] | None = None,
    drop_rate: float = 0.0,
    second_kwargs: dict[str, Any] | None = None,
    **timm_kwargs: Any,
) -> TwoStreamModel:
    """The outer product of the maps of two timm backbones, signed square root, l2, a linear classifier.

    Two equal names give two networks with weights of their own ([D+D]); if both begin with the same pretrained weights,
    only the gradient of the random classifier makes them differ. The finer map is averaged down to the grid of the
    coarser.

    Args:
        backbone_a: name of a timm model, with or without a tag.
        backbone_b: that of the second stream; ``backbone_a`` by default.
        shared: one network for both streams, which is ``create_model(backbone_a, 'bcnn')``.
        pretrained: load timm's weights of both backbones.
        num_classes: outputs; 0 returns the pooled vector.
        head_kwargs: ``reduce_channels``, a number or one for each stream (by default all C₁ C₂ products are taken, as
            published: four million for two ResNet-50), and ``eps`` of the signed root.
        drop_rate: dropout before the classifier.
        second_kwargs: arguments for the second backbone, which override ``timm_kwargs``.
        timm_kwargs: what both backbones take (``last_stride``, ``in_chans``, ``drop_path_rate``, ``device``, ...).

    Returns:
        A model with timm's interface: ``forward_features``, (B, C₁ + C₂, H, W), ``forward_head``, ``get_classifier``,
        ``reset_classifier``, ``num_features``, ``pretrained_cfg``.

    Source: Lin, RoyChowdhury & Maji, "Bilinear CNN Models for Fine-grained Visual Recognition", ICCV 2015.

    Raises:
        UnknownNameError: for an unknown backbone.
        OptionError: for an option that head or backbone does not take, ``shared=True`` with two backbones, or
            pretrained backbones that expect pictures of different mean or deviation.
        ShapeError: for a backbone whose features have no positions.

    Examples:
        >>> options = dict(reduce_channels=(8, 16))
        >>> model = create_two_stream_model("resnet10t", "test_resnet", num_classes=5, head_kwargs=options)
        >>> model(torch.randn(2, 3, 64, 64)).shape
        torch.Size([2, 5])
    """
    check_flag("shared", shared)
    backbone_b = backbone_a if backbone_b is None else backbone_b
    if shared and (backbone_b != backbone_a or second_kwargs):
        second = f"{backbone_b!r} with {dict(second_kwargs or {})}"
        raise OptionError(f"shared=True takes one backbone, got {backbone_a!r} and {second}")
    for option, value in {"head_kwargs": head_kwargs, "second_kwargs": second_kwargs}.items():
        if not isinstance(value, (Mapping, type(None))):
            raise OptionError(f"{option} must be a dictionary of options, got {value!r}")
    options = dict(head_kwargs or {})
    check_known("the pool of two streams", options, POOL_OPTIONS)
    streams = [_stream(backbone_a, pretrained, timm_kwargs)]
    if not shared:
        streams.append(_stream(backbone_b, pretrained, timm_kwargs | dict(second_kwargs or {})))
    # Without tags, and not the names of the second-order models that the streams are.
    architectures = [stream.network.second_order_arguments["backbone"] for stream in streams]  # type: ignore[index]
    cfgs: list[dict[str, Any]] = [
        {**stream.network.pretrained_cfg, "architecture": architecture}  # type: ignore[dict-item]
        for stream, architecture in zip(streams, architectures, strict=True)
    ]
    if pretrained:
        _check_normalisation(cfgs)
    model = TwoStreamModel(*streams, num_classes=num_classes, drop_rate=drop_rate, pool_options=options)
    model.pretrained_cfg = model.default_cfg = _described(cfgs, num_classes)  # type: ignore[assignment]
    model._model_args = dict(  # type: ignore[assignment]  # timm saves them for hubs
        backbone_a=architectures[0],
        backbone_b=architectures[-1],
        shared=shared,
        head_kwargs=options,
        second_kwargs=dict(second_kwargs or {}),
        **{name: value for name, value in timm_kwargs.items() if name not in NOT_SAVED},
    )
    return model


SECOND_ORDER_NAMES.add("two_stream")
default_cfgs = generate_default_cfgs({"two_stream": dict(input_size=(3, 224, 224), num_classes=1000, classifier="fc")})


@register_model
def two_stream(
    pretrained: bool = False,
    backbone_a: str = "resnet18",
    backbone_b: str | None = None,
    global_pool: str | None = None,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    pretrained_model_args: dict[str, Any] | None = None,
    cache_dir: str | None = None,
    **kwargs: Any,
) -> TwoStreamModel:
    """A model of two timm backbones, for scripts and hub folders; see :func:`create_two_stream_model`.

    ``pretrained`` loads the backbones' weights, or those of the whole model where a description names them.
    """
    cfg = resolve_pretrained_cfg("two_stream", pretrained_cfg, pretrained_cfg_overlay)
    if not kwargs.get("num_classes") and cfg.has_weights:
        kwargs.setdefault("num_classes", cfg.num_classes)
    model = create_two_stream_model(backbone_a, backbone_b, pretrained=pretrained and not cfg.has_weights, **kwargs)
    if global_pool is not None:
        model.reset_classifier(model.num_classes, global_pool)
    if pretrained and cfg.has_weights:
        own: Any = model.pretrained_cfg
        names = {key: own[key] for key in ("classifier", "first_conv")}
        described = {**own, **cfg.to_dict(remove_null=True), **names}
        load_pretrained(model, described, model.num_classes, kwargs.get("in_chans") or 3, cache_dir=cache_dir)
    return model


def _stream(backbone: str, pretrained: bool, kwargs: dict[str, Any]) -> Stream:
    """A backbone that gives its unpooled features, behind the norm of its own head where it has one."""
    model = create_model(backbone, "gap", pretrained=pretrained, num_classes=0, global_pool="", **kwargs)
    head: Any = model.get_submodule(head_name(model))
    return Stream(model, head.in_features, **head.layout)


def _check_normalisation(cfgs: list[dict[str, Any]]) -> None:
    for key in NORMALISATION:
        values = [tuple(cfg[key]) for cfg in cfgs]
        if len(set(values)) > 1:
            raise OptionError(
                f"pretrained streams must expect pictures of the same {key}, got {values[0]} of "
                f"{cfgs[0]['architecture']!r} and {values[1]} of {cfgs[1]['architecture']!r}"
            )


def _described(cfgs: list[dict[str, Any]], num_classes: int) -> dict[str, Any]:
    """timm's description of the first stream, with the names of the whole."""
    first_convs = []
    for letter, cfg in zip("ab", cfgs, strict=False):
        names = cfg.get("first_conv") or ()
        first_convs += [f"stream_{letter}.{name}" for name in ((names,) if isinstance(names, str) else names)]
    names = {"architecture": "two_stream", "classifier": "fc", "first_conv": tuple(first_convs) or None}
    return {**cfgs[0], **names, "num_classes": num_classes}
