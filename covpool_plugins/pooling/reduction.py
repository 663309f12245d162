"""Fewer channels before second-order pooling."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..checks import check_integer, is_integer
from ..errors import OptionError
from ..tables import Table

DEFAULT_CHANNELS = 256
REDUCTIONS: Table[Callable[..., nn.Module]] = Table("reduction")


def conv_bn_relu(in_channels: int, out_channels: int, **factory: Any) -> nn.Sequential:
    """1x1 convolution, batch norm, ReLU: the reduction of iSQRT-COV (CVPR 2018) and SVD-Padé (ICCV 2021)."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False, **factory)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    norm = nn.BatchNorm2d(out_channels, **factory)
    return nn.Sequential(OrderedDict(conv=conv, norm=norm, act=nn.ReLU(inplace=True)))


def conv_bn_relu_twice(in_channels: int, out_channels: int, **factory: Any) -> nn.Sequential:
    """The same to 256 channels, and once more to the final ones: the reduction of TACP (NeurIPS 2021)."""
    first = conv_bn_relu(in_channels, DEFAULT_CHANNELS, **factory)
    return nn.Sequential(OrderedDict(first=first, second=conv_bn_relu(DEFAULT_CHANNELS, out_channels, **factory)))


class LinearReduction(nn.Sequential):
    """Linear layer and layer norm over the channels: the reduction for tokens."""

    def __init__(self, in_channels: int, out_channels: int, **factory: Any) -> None:
        linear = nn.Linear(in_channels, out_channels, **factory)
        super().__init__(OrderedDict(linear=linear, norm=nn.LayerNorm(out_channels, **factory)))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def projection(in_channels: int, out_channels: int, **factory: Any) -> nn.Conv2d:
    """1x1 convolution without bias, norm or activation: a linear projection that all positions share."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False, **factory)
    nn.init.normal_(conv.weight, std=in_channels**-0.5)
    return conv


def affine(in_channels: int, out_channels: int, **factory: Any) -> nn.Conv2d:
    """1x1 convolution with bias and nothing behind it: the projection of moment probing (ICCV 2023)."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size=1, **factory)
    assert conv.bias is not None
    nn.init.trunc_normal_(conv.weight, std=0.02)
    nn.init.zeros_(conv.bias)
    return conv


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


REDUCTIONS.add("conv-bn-relu", conv_bn_relu)
REDUCTIONS.add("conv-bn-relu-twice", conv_bn_relu_twice)
REDUCTIONS.add("linear-ln", LinearReduction)
REDUCTIONS.add("projection", projection)
REDUCTIONS.add("affine", affine)
