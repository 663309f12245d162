"""Moment probing: first- and second-order moments of the features of a frozen backbone."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..checks import check_choice, check_flag, check_integer, is_integer
from ..errors import OptionError
from ..linalg.tensors import autocast_off, product
from ..tables import About
from .base import POOLS, TOKEN_FORMATS, Pool, widened
from .positions import count_positions, mean_over_positions, only, reduced_positions, squared_size

FirstOrder = Literal["mean", "token"]
FIRST_ORDERS: tuple[str, ...] = get_args(FirstOrder)
DEFAULT_CHANNELS, DEFAULT_HEADS, DEFAULT_CONVOLUTIONS = 512, 4, 2
KERNEL, STRIDE = 3, 2
EPS_OF_NORM, EPS_OF_FIRST_NORM, EPS_OF_COLUMNS = 1e-5, 1e-6, 1e-12


class MomentPool(Pool):
    """The mean or the class token, and multi-head convolutional cross-covariances (MHC³), concatenated.

    The linear classifier behind it is the mean of the authors' two, one for each moment: two linear layers are one of
    the concatenation. From features of d channels at M positions the second moment is made in these steps:

    * h heads of w = d / h channels, contiguous ones for tokens, every h-th for maps;
    * a layer norm over the channels of a head, which the heads share;
    * from each head the mean over its positions *and* channels is subtracted, one number;
    * Z_j = X_j X_{j+1}ᵀ / M (w, w), for neighbouring heads: h - 1 matrices;
    * every column of Z_j is divided by its length;
    * the matrices are channels of 3x3 convolutions of stride 2, without padding and bias, GELU between them.

    With d = 512, h = 4 and two convolutions, as published, these are 3 · 31² = 2883 numbers. ``features`` is
    (B, in_channels + d, M): what the first moment is the mean of, above what the second is made of.

    Args:
        in_channels: channels of the input.
        heads: h, at least two, a divisor of d; 4 by default, or the greatest common divisor of 4 and d.
        convolutions: how many; two by default, or fewer where the matrices are too small. Each leaves (w - 1) // 2 rows
            and columns; none leaves the matrices as they are.
        first_order: ``mean`` over the positions, or ``token``, the first of the prefix tokens.
        first_norm: a layer norm of the first moment, which the authors have for ConvNeXt; with ``positions`` of every
            position before the mean, which they have for CLIP and Swin: their second moment is of features in front
            of the backbone's final norm.
        interleaved: whether head j has the channels j, j + h, j + 2 h, ...; by default for maps.
        skip_first: leave the first position out of the second moment, as the authors' code does for Swin.
        shared: ``reduce_channels`` (d, 512 by default), ``reduction`` (``affine``, a 1x1 convolution with bias, by
            default), ``input_fmt`` and the others of :class:`Pool`.

    Source: Gao, Wang, Lin, Zhu, Hu & Zhou, "Tuning Pre-trained Model via Moment Probing", ICCV 2023; the steps are
    those of the authors' code.

    Examples:
        >>> MomentPool(768, input_fmt="NLC", num_prefix_tokens=1, first_order="token")(torch.randn(2, 50, 768)).shape
        torch.Size([2, 3651])
    """

    default_reductions = ("affine", "affine")
    shown = ("heads", "interleaved", "first_order")

    def __init__(
        self,
        in_channels: int,
        *,
        heads: int | None = None,
        convolutions: int | None = None,
        first_order: FirstOrder = "mean",
        first_norm: bool | Literal["positions"] = False,
        interleaved: bool | None = None,
        skip_first: bool = False,
        reduce_channels: int | str | None = "default",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **shared: Any,
    ) -> None:
        check_choice("moment: first_order", first_order, FIRST_ORDERS)
        check_choice("moment: first_norm", first_norm, (False, True, "positions"))
        check_flag("moment: skip_first", skip_first)
        factory: dict[str, Any] = dict(device=device, dtype=dtype)
        width = DEFAULT_CHANNELS if reduce_channels == "default" else reduce_channels
        super().__init__(in_channels, pool_type="moment", reduce_channels=width, **shared, **factory)
        heads = math.gcd(DEFAULT_HEADS, self.channels) if heads is None else heads
        if not is_integer(heads, 2) or self.channels % heads:
            raise OptionError(
                f"moment: heads must be a divisor of the {self.channels} channels from 2 on, got {heads!r}"
            )
        if first_order == "token" and self.num_prefix_tokens < 1:
            raise OptionError(f"moment: first_order='token' needs num_prefix_tokens >= 1, got {self.num_prefix_tokens}")
        if interleaved is None:
            interleaved = self.input_fmt not in TOKEN_FORMATS
        check_flag("moment: interleaved", interleaved)
        self.heads, self.interleaved = heads, interleaved
        self.first_order = first_order
        self.first_norm: nn.Module = nn.Identity()
        self.norm_of_positions, self.skip_first = first_norm == "positions", skip_first
        if first_norm:
            eps = EPS_OF_NORM if self.norm_of_positions else EPS_OF_FIRST_NORM
            self.first_norm = nn.LayerNorm(in_channels, eps=eps, **factory)
        self.norm = nn.LayerNorm(self.channels // heads, eps=EPS_OF_NORM, **factory)
        sides = _sides(self.channels // heads, convolutions)
        pairs = heads - 1
        self.convolutions = nn.ModuleList(
            nn.Conv2d(pairs, pairs, KERNEL, stride=STRIDE, bias=False, **factory) for _ in sides[1:]
        )
        self.out_features = in_channels + pairs * sides[-1] ** 2

    def features(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        maps = self.to_maps(x)
        projected = reduced_positions(self.reduction, maps, mask)
        first = only(maps.flatten(2), mask)
        if self.first_order == "token":
            # As if every position were the class token, whose mean is the token.
            first = only(x[:, 0].unsqueeze(-1).expand_as(first), mask)
        return torch.cat([first, projected], dim=1)

    def represent(self, X: Tensor, mask: Tensor | None = None) -> Tensor:
        return torch.cat(self._moments(X, mask), dim=1).to(X.dtype)

    def entries(self, X: Tensor, mask: Tensor | None = None) -> Tensor:
        """The second moment times the squared size of what it is made of, which its norms take away."""
        first, second = self._moments(X, mask)
        factor = squared_size(*self._projected(X, mask))
        return torch.cat([first, second * factor], dim=1)

    def _projected(self, X: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What the second moment is of, and which of its positions count."""
        start = int(self.skip_first)
        return X[:, self.in_channels :, start:], None if mask is None else mask[:, start:]

    def _moments(self, X: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        wide = widened(X)
        first = wide[:, : self.in_channels]
        with autocast_off(X.device.type):
            if self.norm_of_positions and isinstance(self.first_norm, nn.LayerNorm):
                first = only(_layer_norm(first.transpose(1, 2), self.first_norm).transpose(1, 2), mask)
            mean = mean_over_positions(first, mask).squeeze(-1)
            if not self.norm_of_positions and isinstance(self.first_norm, nn.LayerNorm):
                mean = _layer_norm(mean, self.first_norm)
            Z = F.normalize(self.cross_covariances(*self._projected(wide, mask)), dim=2, eps=EPS_OF_COLUMNS)
            return mean, self.convolve(Z).flatten(1)

    def cross_covariances(self, X: Tensor, mask: Tensor | None = None) -> Tensor:
        """Z (B, h - 1, w, w) for features (B, d, M)."""
        if self.interleaved:
            heads = X.unflatten(1, (-1, self.heads)).permute(0, 2, 3, 1)
        else:
            heads = X.unflatten(1, (self.heads, -1)).transpose(2, 3)
        heads = _layer_norm(heads, self.norm)
        heads = heads.transpose(2, 3)  # (B, h, w, M)
        mask = None if mask is None else mask.unsqueeze(1)
        heads = only(heads - mean_over_positions(heads, mask).mean(2, keepdim=True), mask)
        return product(heads[:, :-1], heads[:, 1:].transpose(2, 3)) / count_positions(heads, mask)

    def convolve(self, Z: Tensor) -> Tensor:
        """The cross-covariances (B, h - 1, w, w) after the convolutions, in the precision they come in."""
        for index, (weight,) in enumerate(conv.parameters() for conv in self.convolutions):
            # The parameters may be of half precision; the covariances never are. As a product, for the backward pass of
            # a convolution may be autocast.
            side = (Z.shape[-1] - KERNEL) // STRIDE + 1
            patches = F.unfold(F.gelu(Z) if index else Z, KERNEL, stride=STRIDE).transpose(1, 2)
            rows = product(patches.flatten(0, 1), weight.to(Z.dtype).flatten(1).T)
            Z = rows.reshape(-1, side, side, len(weight)).permute(0, 3, 1, 2)
        return Z

    def varying(self, X: Tensor) -> Tensor:
        return X[:, self.in_channels :]


def _layer_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    return F.layer_norm(x, norm.normalized_shape, norm.weight.to(x.dtype), norm.bias.to(x.dtype), norm.eps)


def _sides(width: int, convolutions: int | None) -> list[int]:
    """Rows of the matrices in front of each convolution, and behind the last."""
    if convolutions is not None:
        check_integer("moment: convolutions", convolutions, 0)
    sides = [width]
    while sides[-1] >= KERNEL and len(sides) <= (DEFAULT_CONVOLUTIONS if convolutions is None else convolutions):
        sides.append((sides[-1] - KERNEL) // STRIDE + 1)
    if convolutions is not None and len(sides) <= convolutions:
        raise OptionError(f"moment: heads of {width} channels leave nothing for {convolutions} convolutions")
    return sides


POOLS.add(
    "moment",
    MomentPool,
    About("mean or class token, and convolved cross-covariances of groups of channels", "exact", "ICCV 2023"),
)
