"""So-ViT: a vision transformer that classifies its class token and the covariance of its visual tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..checks import check_choice, check_flag, check_integer, check_number
from ..errors import OptionError, ShapeError
from .backbone import Backbone
from .resnet_cifar import Bottleneck
from .token_head import TokenHead
from .transformer import TransformerBlock

STRIDE = 16
TRAINED_SIZE = 224
STEM_CHANNELS = 64
STAGES = 3
OUTPUT_FORMATS = ("NCHW", "NLC")


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
    convolution.
    """

    def __init__(self, in_chans: int, embed_dim: int, img_size: tuple[int, int], **factory: Any) -> None:
        super().__init__()
        self.img_size = img_size
        self.patch_size = (STRIDE, STRIDE)
        self.grid_size = (math.ceil(img_size[0] / STRIDE), math.ceil(img_size[1] / STRIDE))
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.stem = nn.Conv2d(in_chans, STEM_CHANNELS, 3, padding=1, **factory)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        width = Bottleneck.expansion * STEM_CHANNELS
        stages = [Bottleneck(width if index else STEM_CHANNELS, STEM_CHANNELS, 2, **factory) for index in range(STAGES)]
        for stage in stages:
            for norm in (stage.bn1, stage.bn2, stage.bn3):  # not that of the shortcut
                norm.eps, norm.momentum = 1e-3, 0.01
        self.stages = nn.Sequential(*stages)
        self.proj = nn.Conv2d(width, embed_dim, 1, **factory)

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


def resized_positions(pos_embed: Tensor, grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """Position embedding (1, 1 + h w, dim) of a class token and a grid of tokens, for another grid."""
    if grid == new_grid:
        return pos_embed
    token, tokens = pos_embed[:, :1], pos_embed[:, 1:]
    maps = tokens.transpose(1, 2).reshape(1, -1, *grid).float()
    resized = F.interpolate(maps, new_grid, mode="bicubic", antialias=True)
    return torch.cat([token, resized.flatten(2).transpose(1, 2).to(pos_embed.dtype)], dim=1)


class SoViT(Backbone):
    """So-ViT: tokens by convolutions, a transformer, and the sum of two classifiers: one of the class token, one of the
    second-order pooled visual tokens.

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
        pos_drop_rate, proj_drop_rate, attn_drop_rate: dropout of the tokens, of the outputs of the blocks' linear
            layers, and of the attention.
        drop_path_rate: stochastic depth of the last block; it grows from zero in equal steps.

    Source: Xie, Zeng, Wang, Zhang & Li, "So-ViT: Mind Visual Tokens for Vision Transformer", arXiv 2104.10935, 2021;
    with the root of the covariance in Song, Sebe & Wang, "Fast Differentiable Matrix Square Root", ICLR 2022.

    Raises:
        OptionError, UnknownNameError: for an argument out of its range.
        ShapeError: in ``forward``, for images of another size.
    """

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
        pos_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        size = _checked_size(img_size)
        check_integer("depth", depth)
        _check_widths(embed_dim, num_heads, mlp_ratio)
        rates = dict(proj_drop_rate=proj_drop_rate, attn_drop_rate=attn_drop_rate, drop_path_rate=drop_path_rate)
        for option, rate in (("pos_drop_rate", pos_drop_rate), *rates.items()):
            check_number(option, rate, "[0, 1]")
        info: list[dict[str, Any]] = [
            dict(num_chs=embed_dim, reduction=STRIDE, module=f"blocks.{index}") for index in range(depth)
        ]
        super().__init__(in_chans, drop_rate, info)
        self.stages = tuple((stage["module"],) for stage in info)
        factory: dict[str, Any] = dict(device=device, dtype=dtype)
        self.embed_dim = embed_dim
        self.num_prefix_tokens = 1
        self.patch_embed = VisualTokens(in_chans, embed_dim, size, **factory)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim, **factory))
        trained = (TRAINED_SIZE // STRIDE, TRAINED_SIZE // STRIDE)
        positions = resized_positions(
            sinusoids(1 + trained[0] * trained[1], embed_dim), trained, self.patch_embed.grid_size
        )
        self.pos_embed: Tensor
        self.register_buffer("pos_embed", positions.to(device=device, dtype=self.cls_token.dtype))
        self.pos_drop = nn.Dropout(pos_drop_rate)
        blocks = []
        for index in range(depth):
            rates["drop_path_rate"] = drop_path_rate * index / max(depth - 1, 1)
            blocks.append(TransformerBlock(embed_dim, num_heads, mlp_ratio, **rates, **factory))
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(embed_dim, **factory)
        self.num_classes = num_classes
        self.head = TokenHead(
            embed_dim, num_classes, global_pool, reduce_channels, head_kwargs, drop_rate=drop_rate, **factory
        )
        self.head_hidden_size = self.head.num_features
        SoViT.init_weights(self)  # a subclass may mean something else by that

    def init_weights(self) -> None:
        """Truncated normal numbers for linear layers and class token; convolutions keep torch's initialisation."""
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of the parameters of the tokens' stem and of every block; the last norm goes with the last block."""
        return dict(stem=r"^cls_token|^patch_embed", blocks=[(r"^blocks\.(\d+)", None), (r"^norm", (99999,))])

    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay should leave alone, beyond biases and norms."""
        return {"cls_token"}

    def get_classifier(self, name_only: bool = False) -> tuple[nn.Module, nn.Module] | tuple[str, str]:  # type: ignore[override]
        """The classifiers of the pooled vector and of the class token, or their names."""
        return ("head.fc", "head.cls_fc") if name_only else (self.head.fc, self.head.cls_fc)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """New classifiers, and a new pool where ``global_pool`` names another one; see :meth:`TokenHead.reset`."""
        self.head.reset(num_classes, global_pool, self.cls_token.device, self.cls_token.dtype)
        self.num_classes = num_classes
        self.head_hidden_size = self.head.num_features

    def embed(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) to tokens (B, 1 + N, embed_dim) with their positions, class token first."""
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        return self.pos_drop(x + self.pos_embed)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) to normalised tokens (B, 1 + N, embed_dim), class token first."""
        x = self.embed(x)
        if self.grad_checkpointing:
            for block in self.blocks:
                x = self._run_block(block, x)
        else:
            x = self.blocks(x)
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Normalised tokens to the logits (B, num_classes), or to what enters the two classifiers."""
        return self.head(x, pre_logits)

    def forward_intermediates(  # type: ignore[override]
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Any] | tuple[Tensor, list[Any]]:
        """The tokens behind some blocks.

        Args:
            x: images (B, in_chans, H, W).
            indices: blocks, negative ones from the end; an integer for that many last ones; all by default.
            return_prefix_tokens: pairs with the class token (B, 1, embed_dim).
            norm: normalise them by the last norm.
            stop_early: do not compute the blocks behind the last one chosen.
            output_fmt: ``NCHW`` for maps, ``NLC`` for tokens without the class token.
            intermediates_only: return just the list.

        Returns:
            The last tokens computed, normalised, and the list of the chosen ones, in the order of the blocks.

        Raises:
            OptionError: for a block that does not exist, or another ``output_fmt``.
        """
        check_choice("output_fmt", output_fmt, OUTPUT_FORMATS)
        check_flag("return_prefix_tokens", return_prefix_tokens)
        chosen = self._stage_indices(indices)
        x = self.embed(x)
        intermediates: list[Any] = []
        for index, block in enumerate(self.blocks[: max(chosen) + 1] if stop_early else self.blocks):
            x = self._run_block(block, x)
            if index in chosen:
                tokens = self.norm(x) if norm else x
                spatial = tokens[:, 1:]
                if output_fmt == "NCHW":
                    spatial = self.to_maps(spatial)
                intermediates.append((spatial, tokens[:, :1]) if return_prefix_tokens else spatial)
        return intermediates if intermediates_only else (self.norm(x), intermediates)

    def to_maps(self, tokens: Tensor) -> Tensor:
        """Visual tokens (B, N, embed_dim) as maps (B, embed_dim, H/16, W/16)."""
        return tokens.transpose(1, 2).unflatten(2, self.patch_embed.grid_size)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the blocks behind the last one chosen, the norm and the head as asked; return the chosen ones."""
        chosen = self._stage_indices(indices)
        self.blocks = self.blocks[: max(chosen) + 1]
        self.stages = self.stages[: max(chosen) + 1]
        if prune_norm:
            self.norm = nn.Identity()  # type: ignore[assignment]
        if prune_head:
            self.reset_classifier(0, "")
        return chosen

    def _run_block(self, block: nn.Module, x: Tensor) -> Tensor:
        if self.grad_checkpointing:
            return checkpoint(block, x, use_reentrant=False)  # type: ignore[return-value]
        return block(x)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *context: Any) -> None:
        # A checkpoint for square images of another size.
        saved = state_dict.get(f"{prefix}pos_embed")
        if isinstance(saved, Tensor) and saved.ndim == 3:
            side = math.isqrt(saved.shape[1] - 1)
            if side * side == saved.shape[1] - 1 != self.patch_embed.num_patches:
                state_dict[f"{prefix}pos_embed"] = resized_positions(saved, (side, side), self.patch_embed.grid_size)
        super()._load_from_state_dict(state_dict, prefix, *context)


def _checked_size(img_size: int | Sequence[int]) -> tuple[int, int]:
    sides = list(img_size) if isinstance(img_size, Sequence) else [img_size, img_size]
    if len(sides) != 2:
        raise OptionError(f"img_size must be one or two positive integers, got {img_size!r}")
    for side in sides:
        check_integer("img_size", side)
    return int(sides[0]), int(sides[1])


def _check_widths(embed_dim: int, num_heads: int, mlp_ratio: float) -> None:
    check_integer("embed_dim", embed_dim)
    check_integer("num_heads", num_heads)
    check_number("mlp_ratio", mlp_ratio, "(0, inf)")
    if embed_dim % num_heads:
        raise OptionError(f"num_heads must divide embed_dim={embed_dim}, got {num_heads}")
