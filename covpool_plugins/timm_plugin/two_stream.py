"""Bilinear models with two streams: two networks and the outer product of their maps.

Source: Lin, RoyChowdhury & Maji, "Bilinear CNN Models for Fine-grained Visual Recognition", ICCV 2015.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from timm.models import (
    generate_default_cfgs,
    load_pretrained,
    register_model,
    register_notrace_module,
    resolve_pretrained_cfg,
)
from torch import Tensor, nn
from torch.nn import functional as F

from ..checks import check_choice, check_classes, check_flag, check_integer, check_known, check_number
from ..errors import OptionError, ShapeError
from ..pooling import BilinearPool, Pool
from ..pooling.base import InputFormat
from .builder import create_model
from .head import Unpooled
from .psrp import PART_OF_KEYS
from .subclass import NOT_SAVED, SECOND_ORDER_NAMES, apart_from_rest
from .weights import head_name


class Stream(NamedTuple):
    """A network without pooling and classifier.

    Attributes:
        network: images (B, in_chans, H, W) to maps or tokens.
        channels: of these.
        input_fmt: their layout, ``NCHW``, ``NHWC`` or ``NLC``.
        num_prefix_tokens: class and register tokens in front, ``NLC`` only.
    """

    network: nn.Module
    channels: int
    input_fmt: InputFormat = "NCHW"
    num_prefix_tokens: int = 0


class SideBySide(nn.Module):
    """The maps of the streams on one grid, concatenated along the channels: (B, C₁ + C₂, H, W).

    The finer grid is averaged down to the coarser (``adaptive_avg_pool2d``), height and width separately. Tokens have
    no grid to resize: the other stream must have as many positions, which are taken row by row.

    Raises:
        ShapeError: from ``forward``, for tokens and another number of positions.
    """

    def __init__(self, streams: Sequence[Stream]) -> None:
        super().__init__()
        self.layouts = nn.ModuleList(
            Pool(s.channels, pool_type="bilinear", input_fmt=s.input_fmt, num_prefix_tokens=s.num_prefix_tokens)
            for s in streams
        )

    def forward(self, *outputs: Tensor) -> Tensor:
        maps = [layout.to_maps(x) for layout, x in zip(self.layouts, outputs, strict=True)]  # type: ignore[operator]
        if len({x.shape[2:] for x in maps}) > 1:
            maps = self._resized(maps)
        return torch.cat(maps, dim=1)

    def _resized(self, maps: list[Tensor]) -> list[Tensor]:
        if any(layout.input_fmt == "NLC" for layout in self.layouts):
            counts = [x[0, 0].numel() for x in maps]
            if len(set(counts)) > 1:
                raise ShapeError(
                    f"two streams with tokens need as many positions each, got {counts[0]} and {counts[1]}"
                )
            return [x.flatten(2).unsqueeze(-1) for x in maps]
        grid = (min(x.shape[2] for x in maps), min(x.shape[3] for x in maps))
        return [x if x.shape[2:] == grid else F.adaptive_avg_pool2d(x, grid) for x in maps]


class TwoStreamPool(nn.Module):
    """Maps (B, C₁ + C₂, H, W) to their bilinear vectors (B, R₁ R₂), see :class:`BilinearPool`.

    Args:
        channels: (C₁, C₂); with (C,) the only map stands for both.
        reduce_channels: (R₁, R₂), or one number for both, behind a 1x1 convolution, batch norm and ReLU; ``None``
            takes all channels, as published.
        eps: of the signed root.

    Raises:
        OptionError: for an option out of its range.
    """

    pool_type = "bilinear"

    def __init__(
        self,
        channels: Sequence[int],
        *,
        reduce_channels: int | Sequence[int] | None = None,
        eps: float = 1e-8,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        widths = reduce_channels if isinstance(reduce_channels, Sequence) else [reduce_channels] * len(channels)
        if len(widths) != len(channels):
            raise OptionError(f"reduce_channels must be one number or {len(channels)}, got {reduce_channels!r}")
        self.channels = list(channels)
        self.inputs = nn.ModuleList(
            Pool(count, pool_type="bilinear", reduce_channels=width, device=device, dtype=dtype)
            for count, width in zip(channels, widths, strict=True)
        )
        self.bilinear = BilinearPool(*(pool.channels for pool in self.inputs), eps=eps)  # type: ignore[arg-type]
        self.out_features = self.bilinear.out_features

    def forward(self, x: Tensor) -> Tensor:
        parts = x.split(self.channels, dim=1)
        features = [pool.features(part) for pool, part in zip(self.inputs, parts, strict=True)]  # type: ignore[operator]
        return self.bilinear.represent(*features)


class TwoStreamNet(nn.Module):
    """Two networks, the bilinear pool of their maps, dropout and a linear classifier; it behaves like a timm model.

    ``forward_features`` gives the maps of both streams in one tensor, (B, C₁ + C₂, H, W), see :class:`SideBySide`.

    Args:
        first: the first stream.
        second: the second; by default the first stands for both and shares all weights, which is the pool ``bcnn`` of
            one network, with one forward pass.
        num_classes: outputs; 0 returns the pooled vector.
        drop_rate: dropout before the classifier.
        pool_options: of :class:`TwoStreamPool`: ``reduce_channels`` and ``eps``.

    Attributes:
        num_features: channels of the maps, C₁ + C₂.
        head_hidden_size: length of the pooled vector.

    Raises:
        OptionError: for an argument out of its range.
    """

    def __init__(
        self,
        first: Stream,
        second: Stream | None = None,
        *,
        num_classes: int = 1000,
        drop_rate: float = 0.0,
        pool_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_number("drop_rate", drop_rate, "[0, 1)")
        streams = [first] if second is None else [first, second]
        self.stream_a = first.network
        self.stream_b = None if second is None else second.network
        self.side_by_side = SideBySide(streams)
        self.channels = tuple(stream.channels for stream in streams)
        self.num_features = sum(self.channels)
        self.pool_options = dict(pool_options or {})
        self.dropout = nn.Dropout(drop_rate)
        self.global_pool: TwoStreamPool | Unpooled = Unpooled()
        self.reset_classifier(num_classes, "bilinear")

    @property
    def streams(self) -> list[nn.Module]:
        """The networks: one if they are shared."""
        return [stream for stream in (self.stream_a, self.stream_b) if stream is not None]

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) to the maps of both streams, (B, C₁ + C₂, H', W')."""
        return self.side_by_side(*(stream(x) for stream in self.streams))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The maps of both streams to the logits (B, num_classes), or to what enters the classifier."""
        x = self.global_pool(x)
        if not self.global_pool.pool_type:
            return x
        x = self.dropout(x)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def get_classifier(self, name_only: bool = False) -> nn.Module | str:
        """The classifier, or its name."""
        return "fc" if name_only else self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """New classifier on the device and in the dtype of the weights; the pool stays unless another one is named.

        Args:
            num_classes: outputs; 0 returns the pooled vector.
            global_pool: ``bilinear``, or the empty string for the maps, which needs ``num_classes=0``; ``None`` keeps
                what is there, and puts the pool back where there is none and classes are asked for.

        Raises:
            OptionError: for anything else.
        """
        check_integer("num_classes", num_classes, 0)
        pool_type = self.global_pool.pool_type or "bilinear" * bool(num_classes) if global_pool is None else global_pool
        check_choice("global_pool", pool_type, ("bilinear", ""))
        check_classes(num_classes, pool_type)
        reference = next(self.parameters(), torch.empty(0))
        factory: dict[str, Any] = dict(device=reference.device, dtype=reference.dtype)
        if pool_type != self.global_pool.pool_type:
            self.global_pool = TwoStreamPool(self.channels, **self.pool_options, **factory) if pool_type else Unpooled()
        width: Any = self.global_pool.out_features if pool_type else self.num_features
        self.num_classes, self.head_hidden_size = num_classes, width
        self.fc: nn.Module = nn.Linear(width, num_classes, **factory) if num_classes else nn.Identity()
        self.train(self.training)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Switch gradient checkpointing of the streams on or off."""
        for stream in self.streams:
            stream.set_grad_checkpointing(enable)  # type: ignore[operator]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """For timm's layer decay: the classifier, and all the rest."""
        return apart_from_rest(r"fc\.")

    def new_parameters(self) -> list[nn.Parameter]:
        """The parameters that no pretrained backbone has: those of reductions, classifier and ``psrp``."""
        added = [p for name, p in self.named_parameters() if PART_OF_KEYS in name]
        return [*added, *self.global_pool.parameters(), *self.fc.parameters()]

    def no_weight_decay(self) -> set[str]:
        """Parameters that the backbones want without weight decay."""
        streams = dict(zip(("stream_a", "stream_b"), self.streams, strict=False))
        return {f"{name}.{key}" for name, s in streams.items() for key in getattr(s, "no_weight_decay", set)()}


# For torch.fx leaves: they look at shapes.
for _module in (SideBySide, TwoStreamPool):
    register_notrace_module(_module)


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
) -> TwoStreamNet:
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
    check_known("the pool of two streams", options, ("reduce_channels", "eps"))
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
    model = TwoStreamNet(*streams, num_classes=num_classes, drop_rate=drop_rate, pool_options=options)
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
) -> TwoStreamNet:
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
    for option in ("head", "pretrained", "num_classes", "global_pool", "features_only"):
        if option in kwargs:
            raise OptionError(f"a stream gives unpooled maps and takes no {option}, got {kwargs[option]!r}")
    model = create_model(backbone, "gap", pretrained=pretrained, num_classes=0, global_pool="", **kwargs)
    head: Any = model.get_submodule(head_name(model))
    return Stream(model, head.in_features, **head.layout)


def _check_normalisation(cfgs: list[dict[str, Any]]) -> None:
    for key in ("mean", "std"):
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
