"""So-ViT: a vision transformer that classifies its class token and the covariance of its visual tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import resample_abs_pos_embed
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import Bottleneck
from timm.models.resnet import downsample_conv as shortcut
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ..checks import check_classes, check_integer, check_number
from ..errors import OptionError, ShapeError
from ..pooling import POOLS, CrossCovariancePool, create_pool, pool_options

STRIDE = 16
TRAINED_SIZE = 224
STEM_CHANNELS = 64
STAGES = 3
REDUCTION = "conv-bn-relu"


class SoViTSettings(NamedTuple):
    """Sizes of a So-ViT.

    Attributes:
        embed_dim: channels of the tokens.
        depth: blocks.
        num_heads: of the attention.
        mlp_ratio: hidden width of a block's perceptron over ``embed_dim``.
        reduce_channels: of the covariance; the second number is that of the other side of a cross covariance.
    """

    embed_dim: int
    depth: int
    num_heads: int
    mlp_ratio: float
    reduce_channels: tuple[int, int]


SO_VITS = {
    "7": SoViTSettings(256, 7, 4, 2.0, (48, 24)),
    "10": SoViTSettings(256, 10, 4, 2.0, (48, 24)),
    "14": SoViTSettings(384, 14, 6, 3.0, (64, 48)),
    "19": SoViTSettings(448, 19, 7, 3.0, (96, 48)),
}


def check_image_size(x: Tensor, img_size: tuple[int, int]) -> None:
    """Raise unless these are images of that height and width.

    Raises:
        ShapeError: naming both.
    """
    if x.shape[-2] != img_size[0] or x.shape[-1] != img_size[1]:
        raise ShapeError(
            f"So-ViT: built for images of {img_size[0]}x{img_size[1]}, got shape {tuple(x.shape)}; "
            "img_size=(height, width) builds it for others"
        )


torch.fx.wrap("check_image_size")


class VisualTokens(nn.Module):
    """Images (B, in_chans, H, W) to tokens (B, H/16 W/16, embed_dim), rounded up, by convolutions.

    A 3x3 convolution with max-pooling and no activation, three bottlenecks with stride 2 and 256 channels, and a 1x1
    convolution. It takes the place of a vision transformer's ``PatchEmbed``.
    """

    patch_size = (STRIDE, STRIDE)

    def __init__(self, img_size: Any, in_chans: int, embed_dim: int, device: Any, dtype: Any, **unused: Any) -> None:
        super().__init__()
        self.set_input_size(img_size)
        factory: dict[str, Any] = dict(device=device, dtype=dtype)
        self.stem = nn.Conv2d(in_chans, STEM_CHANNELS, 3, padding=1, **factory)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        width = Bottleneck.expansion * STEM_CHANNELS
        stages = []
        for inner in (STEM_CHANNELS, *[width] * (STAGES - 1)):
            stage = Bottleneck(inner, STEM_CHANNELS, 2, shortcut(inner, width, 1, stride=2, **factory), **factory)
            norms: Any = (stage.bn1, stage.bn2, stage.bn3)  # not that of the shortcut
            for norm in norms:
                norm.eps, norm.momentum = 1e-3, 0.01
            stages.append(stage)
        self.stages = nn.Sequential(*stages)
        self.proj = nn.Conv2d(width, embed_dim, 1, **factory)

    def set_input_size(self, img_size: int | Sequence[int] | None, patch_size: None = None) -> None:
        """Expect images of another height and width."""
        if img_size is not None:
            self.img_size = _checked_size(img_size)
        self.grid_size = self.dynamic_feat_size(self.img_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]

    def dynamic_feat_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of tokens for images of that height and width."""
        return math.ceil(img_size[0] / STRIDE), math.ceil(img_size[1] / STRIDE)

    def forward(self, x: Tensor) -> Tensor:
        check_image_size(x, self.img_size)
        x = self.stages(self.pool(self.stem(x)))
        return self.proj(x).flatten(2).transpose(1, 2)


def sinusoids(count: int, dim: int) -> Tensor:
    """Position embedding (1, count, dim) in float32: sines in the even channels, cosines in the odd ones.

    Source: Vaswani et al., "Attention Is All You Need", NeurIPS 2017, section 3.5.
    """
    channel = torch.arange(dim, dtype=torch.float64)
    rate = 10000 ** (-2 * (channel // 2) / dim)
    angle = torch.arange(count, dtype=torch.float64).unsqueeze(1) * rate
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos()).float().unsqueeze(0)


class TokenHead(nn.Module):
    """Logits of the second-order pooled visual tokens plus those of the class token.

    The pool stands behind the reduction of So-ViT. Of two numbers for ``reduce_channels`` the cross covariance takes
    both, any other pool the first; pools without a reduction ignore it. Keys are those of the original's classifiers:
    two linear layers, where :class:`SecondOrderHead` has one for vector and token together.

    Args:
        in_features: channels of the tokens.
        num_classes: outputs of both classifiers; 0 leaves them out.
        global_pool: name of the pool; the empty string leaves pooling out, which needs ``num_classes=0``.
        reduce_channels: after the reduction; ``None`` leaves it out.
        pool_options: of the pool and of its matrix method; they go before ``reduce_channels``.
        drop_rate: dropout of the pooled vector.

    Attributes:
        fc: classifier of the pooled vector.
        cls_fc: classifier of the class token.
        num_features: length of the pooled vector and of the class token together.

    Raises:
        UnknownNameError, OptionError: for an argument out of its range.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        global_pool: str = "mpa",
        reduce_channels: int | Sequence[int] | None = None,
        pool_options: dict[str, Any] | None = None,
        drop_rate: float = 0.0,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.reduce_channels = reduce_channels
        self.pool_options = dict(pool_options or {})
        self.dropout = nn.Dropout(drop_rate)
        self.global_pool: str | None = None
        self.reset(num_classes, global_pool, **factory)

    def reset(self, num_classes: int, global_pool: str | None = None, device: Any = None, dtype: Any = None) -> None:
        """New classifiers; the pool and what it has learned stay unless ``global_pool`` names another one.

        Raises:
            UnknownNameError, OptionError: for an argument out of its range.
        """
        name = self.global_pool if global_pool is None else global_pool
        factory = dict(device=device, dtype=dtype)
        check_classes(num_classes, name or "")
        if name != self.global_pool:
            self.pool = self._pool(name, factory) if name else nn.Identity()
            self.global_pool = name
        width = int(self.pool.out_features) if name else 0  # type: ignore[arg-type]
        self.num_classes, self.num_features = num_classes, width + self.in_features
        self.fc: nn.Module = nn.Linear(width, num_classes, **factory) if num_classes else nn.Identity()
        self.cls_fc: nn.Module = nn.Linear(self.in_features, num_classes, **factory) if num_classes else nn.Identity()
        self.train(self.training)

    def _pool(self, name: str, factory: dict[str, Any]) -> nn.Module:
        channels = self.reduce_channels
        if isinstance(channels, Sequence) and POOLS[name] is not CrossCovariancePool:
            channels = channels[0]
        options: dict[str, Any] = {"reduce_channels": channels, **self.pool_options}
        if options["reduce_channels"] is not None:
            options = {"reduction": REDUCTION, **options}
        known = pool_options(name, of_parts=False)
        options = {key: value for key, value in options.items() if key in known or key in self.pool_options}
        return create_pool(name, self.in_features, input_fmt="NLC", num_prefix_tokens=1, **options, **factory)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        if not self.global_pool:
            return x
        vector, token = self.dropout(self.pool(x)), x[:, 0]
        if pre_logits or not self.num_classes:
            return torch.cat([vector, token], dim=1)
        return self.fc(vector) + self.cls_fc(token)


class SoViT(VisionTransformer):
    """So-ViT: timm's vision transformer on tokens by convolutions, and the sum of two classifiers: one of the class
    token, one of the second-order pooled visual tokens.

    ``head.fc`` classifies the pooled vector, ``head.cls_fc`` the class token. The position embedding is fixed; for
    images of another size it is that of 224x224 resized, and so is that of a checkpoint for another size.

    Args:
        num_classes: outputs; 0 returns the pooled vector, followed by the class token.
        in_chans: channels of the images.
        img_size: height and width of the images, or one number for both.
        global_pool: one of :func:`covpool_plugins.list_pools`: ``mpa`` (ICLR 2022), ``isqrt``, ``svpn`` or, with the
            cross covariance of the paper, ``crosscov``; or the empty string for the normalised tokens, class token
            first, which needs ``num_classes=0``.
        embed_dim, depth, num_heads, mlp_ratio, reduce_channels: see :class:`SoViTSettings`.
        head_kwargs: options of the pool and of its matrix method, for example ``dict(vectorize='full')``.
        drop_rate: dropout of the pooled vector.
        options: of timm's ``VisionTransformer``: ``pos_drop_rate``, ``proj_drop_rate``, ``attn_drop_rate``,
            ``drop_path_rate``, ``device``, ``dtype``.

    Source: Xie, Zeng, Wang, Zhang & Li, "So-ViT: Mind Visual Tokens for Vision Transformer", arXiv 2104.10935, 2021;
    with the root of the covariance in Song, Sebe & Wang, "Fast Differentiable Matrix Square Root", ICLR 2022.

    Raises:
        OptionError, UnknownNameError: for an argument out of its range.
        ShapeError: in ``forward``, for images of another size.
    """

    cls_token: nn.Parameter
    pos_embed: Any  # a buffer here
    patch_embed: VisualTokens  # type: ignore[assignment]
    head: TokenHead  # type: ignore[assignment]

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        img_size: int | Sequence[int] = TRAINED_SIZE,
        global_pool: str = "mpa",
        embed_dim: int = SO_VITS["7"].embed_dim,
        depth: int = SO_VITS["7"].depth,
        num_heads: int = SO_VITS["7"].num_heads,
        mlp_ratio: float = SO_VITS["7"].mlp_ratio,
        reduce_channels: int | Sequence[int] = SO_VITS["7"].reduce_channels,
        head_kwargs: dict[str, Any] | None = None,
        drop_rate: float = 0.0,
        **options: Any,
    ) -> None:
        check_integer("depth", depth)
        check_number("mlp_ratio", mlp_ratio, "(0, inf)")
        if embed_dim % num_heads:
            raise OptionError(f"num_heads must divide embed_dim={embed_dim}, got {num_heads}")
        for option, rate in options.items():
            if option.endswith("drop_rate") or option == "drop_path_rate":
                check_number(option, rate, "[0, 1]")
        super().__init__(
            _checked_size(img_size),
            STRIDE,
            in_chans,
            num_classes=0,
            global_pool="",
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            qkv_bias=False,
            norm_layer=partial(nn.LayerNorm, eps=1e-5),
            embed_layer=VisualTokens,  # type: ignore[arg-type]
            **options,
        )
        side = TRAINED_SIZE // STRIDE
        positions = _resized(sinusoids(1 + side**2, embed_dim), (side, side), self.patch_embed.grid_size)
        factory: dict[str, Any] = dict(device=self.cls_token.device, dtype=self.cls_token.dtype)
        del self.pos_embed
        self.register_buffer("pos_embed", positions.to(**factory))
        self.num_classes = num_classes
        self.head = TokenHead(embed_dim, num_classes, global_pool, reduce_channels, head_kwargs, drop_rate, **factory)
        self.head_hidden_size = self.head.num_features
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        for module in self.head.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        self.register_load_state_dict_pre_hook(_resize_positions)

    @property
    def drop_rate(self) -> float:
        """Dropout of the pooled vector."""
        return self.head.dropout.p

    @drop_rate.setter
    def drop_rate(self, rate: float) -> None:
        self.head.dropout.p = rate

    def get_classifier(self, name_only: bool = False) -> tuple[nn.Module, nn.Module] | tuple[str, str]:  # type: ignore[override]
        """The classifiers of the pooled vector and of the class token, or their names."""
        return ("head.fc", "head.cls_fc") if name_only else (self.head.fc, self.head.cls_fc)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """New classifiers, and a new pool where ``global_pool`` names another one; see :meth:`TokenHead.reset`."""
        self.head.reset(num_classes, global_pool, self.cls_token.device, self.cls_token.dtype)
        self.num_classes = num_classes
        self.head_hidden_size = self.head.num_features

    def new_parameters(self) -> list[nn.Parameter]:
        """The parameters of the head."""
        return list(self.head.parameters())

    def set_input_size(self, img_size: Any = None, patch_size: Any = None) -> None:
        """Expect images of another height and width."""
        super().set_input_size(img_size, patch_size)
        positions = self.pos_embed.detach()  # a parameter now, if its size has changed
        del self.pos_embed
        self.register_buffer("pos_embed", positions)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Normalised tokens to the logits (B, num_classes), or to what enters the two classifiers."""
        return self.head(x, pre_logits)


def _resized(positions: Tensor, grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """Position embedding (1, 1 + h w, dim) of a class token and a grid of tokens, for another grid."""
    if grid == new_grid:
        return positions
    return resample_abs_pos_embed(positions, list(new_grid), list(grid), num_prefix_tokens=1)


def _resize_positions(model: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Make a checkpoint for square images of another size fit."""
    saved, embed = state_dict.get(f"{prefix}pos_embed"), model.get_submodule("patch_embed")
    if isinstance(saved, Tensor) and saved.ndim == 3:
        side = math.isqrt(saved.shape[1] - 1)
        if side * side == saved.shape[1] - 1 != embed.num_patches:
            grid: Any = embed.grid_size
            state_dict[f"{prefix}pos_embed"] = _resized(saved, (side, side), grid)


def _checked_size(img_size: int | Sequence[int]) -> tuple[int, int]:
    sides = list(img_size) if isinstance(img_size, Sequence) else [img_size, img_size]
    if len(sides) != 2:
        raise OptionError(f"img_size must be one or two positive integers, got {img_size!r}")
    for side in sides:
        check_integer("img_size", side)
    return int(sides[0]), int(sides[1])


__all__ = [f"so_vit_{_arch}" for _arch in SO_VITS]
# register_model reads this when it decorates a function below.
default_cfgs = generate_default_cfgs(
    {
        name: dict(
            url="",
            num_classes=1000,
            input_size=(3, TRAINED_SIZE, TRAINED_SIZE),
            crop_pct=0.9,
            interpolation="bicubic",
            mean=IMAGENET_DEFAULT_MEAN,
            std=IMAGENET_DEFAULT_STD,
            fixed_input_size=True,
            pool_size=None,
            first_conv="patch_embed.stem",
            classifier=("head.fc", "head.cls_fc"),
        )
        for name in __all__
    }
)


def _entrypoint(name: str, settings: SoViTSettings) -> Callable[..., SoViT]:
    def build(pretrained: bool = False, **kwargs: Any) -> SoViT:
        features = dict(out_indices=kwargs.pop("out_indices", 3), feature_cls="getter")
        return build_model_with_cfg(SoViT, name, pretrained, feature_cfg=features, **{**settings._asdict(), **kwargs})

    build.__name__ = build.__qualname__ = name
    return build


for _arch, _settings in SO_VITS.items():
    globals()[f"so_vit_{_arch}"] = register_model(_entrypoint(f"so_vit_{_arch}", _settings))
