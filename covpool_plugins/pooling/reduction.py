"""Fewer channels before second-order pooling."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn

from ..tables import Table

REDUCTIONS: Table[type[nn.Module]] = Table("reduction")


@REDUCTIONS.register("conv-bn-relu")
class ConvReduction(nn.Sequential):
    """1x1 convolution, batch norm, ReLU: the reduction of iSQRT-COV (CVPR 2018) and SVD-Padé (ICCV 2021)."""

    def __init__(self, in_channels: int, out_channels: int, **factory: Any) -> None:
        conv = nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False, **factory)
        if not conv.weight.is_meta:
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        norm = nn.BatchNorm2d(out_channels, **factory)
        super().__init__(OrderedDict(conv=conv, norm=norm, act=nn.ReLU(inplace=True)))


@REDUCTIONS.register("linear-ln")
class LinearReduction(nn.Sequential):
    """Linear layer and layer norm over the channels: the reduction for tokens."""

    def __init__(self, in_channels: int, out_channels: int, **factory: Any) -> None:
        linear = nn.Linear(in_channels, out_channels, **factory)
        super().__init__(OrderedDict(linear=linear, norm=nn.LayerNorm(out_channels, **factory)))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
