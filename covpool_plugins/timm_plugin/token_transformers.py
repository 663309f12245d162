"""Transformers that classify the class token and a second-order vector of the others: So-ViT, SoT, those of DropCov.

They are timm's vision transformer on tokens by convolutions, with the head of this package and ``fuse_class_token``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import HybridEmbed, resample_abs_pos_embed
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.densenet import DenseBlock, DenseTransition
from timm.models.resnet import Bottleneck, downsample_conv
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from ..checks import check_choice, check_integer
from ..errors import OptionError, ShapeError, one_line
from ..pooling import POOLS, CrossCovariancePool, pool_options
from .builder import create_model
from .head import check_pool
from .weights import rename_so_vit

GRID = (14, 14)  # of the position embedding, for images of 224x224
STEM_CHANNELS = 64


def resnet_tokens(in_chans: int, **factory: Any) -> nn.Sequential:
    """A 3x3 convolution, max-pooling, three bottlenecks with stride 2 and 256 channels."""
    layers: dict[str, nn.Module] = _stem(in_chans, **factory)
    width = Bottleneck.expansion * STEM_CHANNELS
    stages = []
    for inner in (STEM_CHANNELS, width, width):
        stage = Bottleneck(inner, STEM_CHANNELS, 2, downsample_conv(inner, width, 1, stride=2, **factory), **factory)
        norms: Any = (stage.bn1, stage.bn2, stage.bn3)  # not that of the shortcut
        for norm in norms:
            norm.eps, norm.momentum = 1e-3, 0.01
        stages.append(stage)
    return nn.Sequential(OrderedDict(**layers, stages=nn.Sequential(*stages)))


def densenet_tokens(in_chans: int, **factory: Any) -> nn.Sequential:
    """A 3x3 convolution, max-pooling, three dense blocks of six layers without norms, each with its transition."""
    layers: dict[str, nn.Module] = _stem(in_chans, **factory)
    stages: list[nn.Module] = []
    width = STEM_CHANNELS
    for _ in range(3):
        block = DenseBlock(6, width, bn_size=2, growth_rate=16, norm_layer=lambda *_, **__: nn.ReLU(), **factory)  # type: ignore[arg-type]
        transition = DenseTransition(width + 6 * 16, 2 * STEM_CHANNELS, nn.BatchNorm2d, **factory)
        stages += [block, transition]
        width = 2 * STEM_CHANNELS
    return nn.Sequential(OrderedDict(**layers, stages=nn.Sequential(*stages)))


def _stem(in_chans: int, **factory: Any) -> dict[str, nn.Module]:
    stem = nn.Conv2d(in_chans, STEM_CHANNELS, 3, padding=1, **factory)
    return dict(stem=stem, pool=nn.MaxPool2d(3, stride=2, padding=1))


STEMS: dict[str, Callable[..., nn.Sequential]] = {"resnet": resnet_tokens, "densenet": densenet_tokens}


def check_image_size(x: Tensor, img_size: tuple[int, int]) -> None:
    """Raise unless these are images of that height and width.

    Raises:
        ShapeError: naming both.
    """
    if (x.shape[-2], x.shape[-1]) != tuple(img_size):
        raise ShapeError(
            f"built for images of {img_size[0]}x{img_size[1]}, got shape {tuple(x.shape)}; "
            "img_size=(height, width) builds it for others"
        )


torch.fx.wrap("check_image_size")  # a leaf for any tracer


class ConvTokens(HybridEmbed):
    """timm's embedding of feature maps, which checks the size of images."""

    def forward(self, x: Tensor) -> Tensor:
        if self.strict_img_size:
            check_image_size(x, self.img_size)  # type: ignore[arg-type]
        return super().forward(x)


def sinusoids(count: int, dim: int) -> Tensor:
    """Position embedding (1, count, dim) in float32: sines in the even channels, cosines in the odd ones.

    Source: Vaswani et al., "Attention Is All You Need", NeurIPS 2017, section 3.5.
    """
    channel = torch.arange(dim, dtype=torch.float64)
    rate = 10000 ** (-2 * (channel // 2) / dim)
    angle = torch.arange(count, dtype=torch.float64).unsqueeze(1) * rate
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos()).float().unsqueeze(0)


# What these networks leave no choice of.
FIXED = (
    *("patch_size", "qkv_bias", "norm_layer", "embed_layer"),
    *("pos_embed", "class_token", "reg_tokens", "no_embed_class"),
)


def check_img_size(img_size: Any) -> None:
    """Raise unless these are height and width of images, or one number for both.

    Raises:
        OptionError: naming the value.
    """
    sides = img_size if isinstance(img_size, (list, tuple)) else [img_size, img_size]
    if len(sides) != 2:
        raise OptionError(f"img_size must be one or two positive integers, got {img_size!r}")
    for side in sides:
        check_integer("img_size", side)


class TokenTransformer(VisionTransformer):
    """timm's vision transformer on tokens by convolutions, with a position embedding that is not learned.

    For images of another size than 224x224 the position embedding is resized.

    Args:
        stem: one of ``STEMS``, which makes maps that are 16 times smaller than the images.
        in_chans, img_size, device, dtype: of the images and the weights.
        options: of timm's ``VisionTransformer``: ``embed_dim``, ``depth``, ``num_heads``, ``mlp_ratio``,
            ``drop_path_rate`` and so on.

    Raises:
        OptionError: for an ``img_size`` that is none, and what timm's ``VisionTransformer`` asserts.
        TypeError: for an option that timm's ``VisionTransformer`` has and these networks have not.
        ShapeError: from ``forward``, for images of another size.
    """

    pos_embed: Any  # a buffer here

    def __init__(
        self, stem: str, in_chans: int = 3, img_size: Any = 224, device: Any = None, dtype: Any = None, **options: Any
    ) -> None:
        check_img_size(img_size)
        for option in FIXED:
            if option in options:
                raise TypeError(f"{type(self).__name__}.__init__() got an unexpected keyword argument {option!r}")
        factory: dict[str, Any] = dict(device=device, dtype=dtype)
        try:
            super().__init__(
                img_size,
                patch_size=1,
                in_chans=in_chans,
                qkv_bias=False,
                norm_layer=partial(nn.LayerNorm, eps=1e-5),
                embed_layer=partial(ConvTokens, backbone=STEMS[stem](in_chans, **factory)),
                **factory,
                **options,
            )
        except AssertionError as error:  # to `build_unpooled` it would say that the pooling has to stay
            given = ", ".join(f"{name}={value!r}" for name, value in options.items())
            raise OptionError(f"no transformer of {given}: {one_line(error)}") from None
        nn.init.trunc_normal_(self.cls_token, std=0.02)  # type: ignore[arg-type]
        positions = sinusoids(1 + GRID[0] * GRID[1], self.embed_dim)
        grid: Any = self.patch_embed.grid_size
        self._keep_positions(resample_abs_pos_embed(positions, grid, list(GRID)).to(self.pos_embed))
        self.register_load_state_dict_pre_hook(_rename)

    def set_input_size(self, img_size: Any = None, patch_size: Any = None) -> None:
        """Expect images of another height and width."""
        check_choice("patch_size", patch_size, (None,))
        if img_size is not None:
            check_img_size(img_size)
        super().set_input_size(img_size, patch_size)
        self._keep_positions(self.pos_embed.detach())

    def no_weight_decay(self) -> set[str]:
        """Parameters that want no weight decay."""
        return super().no_weight_decay() - {"pos_embed"}

    def _keep_positions(self, positions: Tensor) -> None:
        del self.pos_embed  # timm's parameter
        self.register_buffer("pos_embed", positions)


def _rename(_: nn.Module, weights: dict[str, Any], prefix: str, *__: Any) -> None:
    rename_so_vit(weights, prefix)


class TokenModel(NamedTuple):
    """A transformer and its head.

    Attributes:
        network: arguments of :class:`TokenTransformer`.
        pool: name of the pool.
        options: of the pool.
    """

    network: dict[str, Any]
    pool: str
    options: dict[str, Any]


def _network(stem: str, embed_dim: int, depth: int, num_heads: int, mlp_ratio: float) -> dict[str, Any]:
    return dict(stem=stem, embed_dim=embed_dim, depth=depth, num_heads=num_heads, mlp_ratio=mlp_ratio)


def _sot(embed_dim: int, depth: int, num_heads: int, mlp_ratio: float, h: int, w: int, **options: Any) -> TokenModel:
    """With cross-covariances of h heads of w channels."""
    network = _network("densenet", embed_dim, depth, num_heads, mlp_ratio)
    return TokenModel(network, "crosscov", dict(reduce_channels=h * w, heads=h, **options))


def _so_vit(embed_dim: int, depth: int, num_heads: int, mlp_ratio: float, *reduce_channels: int) -> TokenModel:
    """With the covariance of so many channels, or with the cross-covariance of both numbers of channels."""
    network = _network("resnet", embed_dim, depth, num_heads, mlp_ratio)
    return TokenModel(network, "mpa", dict(reduce_channels=reduce_channels, reduction="conv-bn-relu"))


DROPCOV: dict[str, Any] = dict(normalization="none", token_dropout=0.2, entry_dropout=0.5)
MODELS = {
    # Xie et al., "So-ViT: Mind Visual Tokens for Vision Transformer", arXiv 2104.10935, first version; with the root of
    # the covariance in Song, Sebe & Wang, "Fast Differentiable Matrix Square Root", ICLR 2022.
    "so_vit_7": _so_vit(256, 7, 4, 2.0, 48, 24),
    "so_vit_10": _so_vit(256, 10, 4, 2.0, 48, 24),
    "so_vit_14": _so_vit(384, 14, 6, 3.0, 64, 48),
    "so_vit_19": _so_vit(448, 19, 7, 3.0, 96, 48),
    # Xie et al., "SoT: Delving Deeper into Classification Head for Transformer", arXiv 2104.10935.
    "sot_tiny": _sot(240, 12, 4, 2.5, 6, 14),
    "sot_small": _sot(384, 14, 6, 3.5, 6, 24, entry_dropout=0.5),
    "sot_base": _sot(528, 24, 8, 3.0, 6, 38, entry_dropout=0.7),
    # Wang et al., "DropCov: A Simple yet Effective Method for Improving Deep Architectures", NeurIPS 2022.
    "dropcov_deit_tiny": _sot(240, 12, 4, 2.5, 6, 14, **DROPCOV),
    "dropcov_deit_small": _sot(384, 12, 6, 4.0, 6, 24, **DROPCOV),
    "dropcov_deit_base": _sot(768, 12, 12, 4.0, 12, 24, **DROPCOV),
    "dropcov_t2t_vit_14": _sot(384, 14, 6, 3.0, 6, 24, **DROPCOV),
}
__all__ = list(MODELS)
# register_model reads this when it decorates a function below. No weights have been published.
default_cfgs = generate_default_cfgs(
    {
        name: dict(
            url="",
            num_classes=1000,
            input_size=(3, 224, 224),
            fixed_input_size=True,
            pool_size=None,
            crop_pct=0.9,
            interpolation="bicubic",
            mean=IMAGENET_DEFAULT_MEAN,
            std=IMAGENET_DEFAULT_STD,
            first_conv="patch_embed.backbone.stem",
            classifier="head",
        )
        for name in MODELS
    }
)


def _pool_options(pool: str, defaults: dict[str, Any], kwargs: dict[str, Any], given: Any) -> dict[str, Any]:
    """Those of a pool: the network's own where it takes them, under what the call names; ``kwargs`` lose theirs."""
    check_pool(pool)
    if not isinstance(given, Mapping):
        raise OptionError(f"head_kwargs must be a dictionary of options, got {given!r}")
    known = pool_options(pool, of_parts=False)
    if "reduce_channels" in kwargs:
        defaults = {**defaults, "reduce_channels": kwargs.pop("reduce_channels") or None}
    options = {name: value for name, value in defaults.items() if name in known} | dict(given)
    channels = options.get("reduce_channels")
    if isinstance(channels, (list, tuple)) and POOLS[pool] is not CrossCovariancePool:
        options["reduce_channels"] = channels[0]
    if channels is None and "reduction" not in given:
        options.pop("reduction", None)
    return options


def _entrypoint(name: str, row: TokenModel) -> Callable[..., nn.Module]:
    def build(
        pretrained: bool = False,
        global_pool: str | None = None,
        head_kwargs: dict[str, Any] | None = None,
        fuse_class_token: bool = True,
        **kwargs: Any,
    ) -> nn.Module:
        if global_pool == "" or kwargs.get("features_only"):
            features: Any = dict(out_indices=kwargs.pop("out_indices", 3), feature_cls="getter")
            arguments = {**row.network, "num_classes": 0, **kwargs, "global_pool": ""}
            filters: Any = dict(pretrained_filter_fn=checkpoint_filter_fn, feature_cfg=features)
            return build_model_with_cfg(TokenTransformer, name, pretrained, **filters, **arguments)
        pool = global_pool or row.pool
        options = _pool_options(pool, row.options, kwargs, head_kwargs or {})
        model: Any = create_model(
            name, pool, pretrained=pretrained, fuse_class_token=fuse_class_token, head_kwargs=options, **kwargs
        )
        if isinstance(model.head.fc, nn.Linear) and not pretrained:
            nn.init.trunc_normal_(model.head.fc.weight, std=0.02)
            nn.init.zeros_(model.head.fc.bias)
        return model

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"A :class:`TokenTransformer` with the head ``{row.pool}`` and the class token beside it."
    return build


for _name, _row in MODELS.items():
    globals()[_name] = register_model(_entrypoint(_name, _row))
