"""Moment probing: first- and second-order moments of the features of a frozen backbone."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..checks import check_choice, check_integer, is_integer
from ..errors import OptionError
from ..linalg import smaller_covariance
from ..linalg.tensors import autocast_off
from ..tables import About
from .base import POOLS, Pool, Spectrum, widened
from .positions import counted, mean_over_positions, only, reduced_positions

FirstOrder = Literal["mean", "token"]
FIRST_ORDERS: tuple[str, ...] = get_args(FirstOrder)
DEFAULT_HEADS = 16


class MomentPool(Pool):
    """The mean or the class token, and multi-head convolutional cross-covariances (MHC³), concatenated.

    As in the paper, the first-order moment is what linear probing uses, the mean of the tokens or the class token; the
    second-order one is a multi-head convolutional cross-covariance; a linear classifier follows. The paper's method
    section was not at hand: **the details are this project's own**, and the authors' checkpoints do not fit:

    * the features are reduced to d channels, by the reductions of the other pools, and split into h heads;
    * Z_j = X_j X_{j+1}ᵀ / M, d/h x d/h, the covariance of the head j with the next one, the last with the first;
    * the h matrices are channels of ``convolutions`` 3x3 convolutions h -> h of stride 2, with GELU between them;
    * d = 768, h = 16 and two convolutions: 2304 numbers, with which a probe of ViT-B/16 on 1000 classes has
      3.67 million parameters (the authors report 3.65 million).

    ``features`` is (B, in_channels + d, M): what the first moment is the mean of, above what the second is made of.

    Args:
        in_channels: channels of the input.
        heads: h, a divisor of d; 16 by default, or the greatest common divisor of 16 and d.
        convolutions: how many, 0 for the plain cross-covariances; each halves the matrices.
        first_order: ``mean`` over the positions, or ``token``, the first of the prefix tokens.
        centered: subtract the mean over the positions from the heads.
        shared: ``reduce_channels`` (d, 768 by default), ``reduction``, ``input_fmt`` and the others of :class:`Pool`.

    Source: Gao, Wang, Lin, Zhu, Hu & Zhou, "Tuning Pre-trained Model via Moment Probing", ICCV 2023.

    Raises:
        OptionError: for an option outside its range.

    Examples:
        >>> MomentPool(64, reduce_channels=32, heads=4)(torch.randn(2, 64, 7, 7)).shape
        torch.Size([2, 80])
    """

    default_channels = 768

    def __init__(
        self,
        in_channels: int,
        *,
        heads: int | None = None,
        convolutions: int = 2,
        first_order: FirstOrder = "mean",
        centered: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **shared: Any,
    ) -> None:
        check_integer("moment: convolutions", convolutions, 0)
        check_choice("moment: first_order", first_order, FIRST_ORDERS)
        super().__init__(in_channels, pool_type="moment", device=device, dtype=dtype, **shared)
        heads = math.gcd(DEFAULT_HEADS, self.channels) if heads is None else heads
        if not is_integer(heads) or self.channels % heads:
            raise OptionError(f"moment: heads must be a divisor of the {self.channels} channels, got {heads!r}")
        if first_order == "token" and self.num_prefix_tokens < 1:
            raise OptionError(f"moment: first_order='token' needs num_prefix_tokens >= 1, got {self.num_prefix_tokens}")
        width = self.channels // heads
        for _ in range(convolutions):
            width = (width + 1) // 2
        self.out_features = in_channels + heads * width**2
        self.heads = heads
        self.first_order = first_order
        self.centered = centered
        self.convolutions = nn.ModuleList(
            nn.Conv2d(heads, heads, kernel_size=3, stride=2, padding=1, device=device, dtype=dtype)
            for _ in range(convolutions)
        )

    def features(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        maps = self.to_maps(x)
        first = only(maps.flatten(2), mask)
        if self.first_order == "token":
            # As if every position were the class token, whose mean is the token.
            first = only(x[:, 0].unsqueeze(-1).expand_as(first), mask)
        return torch.cat([first, reduced_positions(self.reduction, maps, mask)], dim=1)

    def represent(self, X: Tensor, mask: Tensor | None = None) -> Tensor:
        wide = widened(X)
        with autocast_off(X.device.type):
            mean = mean_over_positions(wide[:, : self.in_channels], mask).squeeze(-1)
            heads = wide[:, self.in_channels :]
            if mask is not None:
                heads = counted(heads, mask, self.centered)
            second = self.convolve(self.cross_covariances(heads, centered=mask is None and self.centered)).flatten(1)
            return torch.cat([mean, second], dim=1).to(X.dtype)

    def cross_covariances(self, X: Tensor, centered: bool) -> Tensor:
        """Z (B, h, d/h, d/h) for features (B, d, M)."""
        heads = X.unflatten(1, (self.heads, -1))
        if centered:
            heads = heads - heads.mean(-1, keepdim=True)
        return heads @ heads.roll(-1, dims=1).transpose(-2, -1) / X.shape[-1]

    def convolve(self, Z: Tensor) -> Tensor:
        """The cross-covariances (B, h, n, n) after the convolutions, in the precision they come in."""
        for index, conv in enumerate(self.convolutions):
            Z = nn.functional.gelu(Z) if index else Z
            # The parameters may be of half precision; the covariances never are.
            weight, bias = (parameter.to(Z.dtype) for parameter in conv.parameters())
            Z = nn.functional.conv2d(Z, weight, bias, stride=2, padding=1)
        return Z

    @torch.no_grad()
    def spectrum(self, x: Tensor) -> Spectrum:
        """Eigenvalues of the covariance of the reduced features, and what they tell of its condition."""
        X = self.features(x)[:, self.in_channels :]
        return Spectrum.of(torch.linalg.eigvalsh(smaller_covariance(X.double())))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, heads={self.heads}, first_order={self.first_order!r}"


POOLS.add(
    "moment",
    MomentPool,
    About("mean or class token, and convolved cross-covariances of groups of channels", "exact", "ICCV 2023"),
)
