"""Fewer channels before second-order pooling."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn

from ..checks import check_integer, is_integer
from ..errors import OptionError
from ..tables import Table

DEFAULT_CHANNELS = 256
REDUCTIONS: Table[type[nn.Module]] = Table("reduction")


class ConvReduction(nn.Sequential):
    """1x1 convolution, batch norm, ReLU: the reduction of iSQRT-COV (CVPR 2018) and SVD-Padé (ICCV 2021)."""

    def __init__(self, in_channels: int, out_channels: int, **factory: Any) -> None:
        conv = nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False, **factory)
        if not conv.weight.is_meta:
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        norm = nn.BatchNorm2d(out_channels, **factory)
        super().__init__(OrderedDict(conv=conv, norm=norm, act=nn.ReLU(inplace=True)))


class LinearReduction(nn.Sequential):
    """Linear layer and layer norm over the channels: the reduction for tokens."""

    def __init__(self, in_channels: int, out_channels: int, **factory: Any) -> None:
        linear = nn.Linear(in_channels, out_channels, **factory)
        super().__init__(OrderedDict(linear=linear, norm=nn.LayerNorm(out_channels, **factory)))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class TwoStageReduction(nn.Sequential):
    """1x1 convolution, batch norm, ReLU to 256 channels and once more to the final ones: the reduction of TACP."""

    def __init__(self, in_channels: int, out_channels: int, **factory: Any) -> None:
        first = ConvReduction(in_channels, DEFAULT_CHANNELS, **factory)
        super().__init__(OrderedDict(first=first, second=ConvReduction(DEFAULT_CHANNELS, out_channels, **factory)))


class Projection(nn.Conv2d):
    """1x1 convolution without bias, norm or activation: a linear projection that all positions share."""

    def __init__(self, in_channels: int, out_channels: int, **factory: Any) -> None:
        super().__init__(in_channels, out_channels, kernel_size=1, bias=False, **factory)
        if not self.weight.is_meta:
            nn.init.normal_(self.weight, std=in_channels**-0.5)


def reduced_channels(in_channels: int, reduce_channels: int | str | None, default: int | None = None) -> int:
    """Channels after the reduction: all of them for ``None``, and at most ``default`` for "default".

    Raises:
        OptionError: unless they are positive integers, or ``None``.
    """
    check_integer("in_channels", in_channels)
    if reduce_channels is None or reduce_channels == "default":
        return min(in_channels, (reduce_channels and default) or in_channels)
    if not isinstance(reduce_channels, int) or not is_integer(reduce_channels):
        raise OptionError(f"reduce_channels must be a positive integer or None, got {reduce_channels!r}")
    return reduce_channels


REDUCTIONS.add("conv-bn-relu", ConvReduction)
REDUCTIONS.add("linear-ln", LinearReduction)
REDUCTIONS.add("conv-bn-relu-twice", TwoStageReduction)
REDUCTIONS.add("projection", Projection)
