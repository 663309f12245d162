"""Adaptive channel dropout before covariance pooling, in place of a normalisation after it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..checks import check_flag, check_number
from ..linalg.tensors import autocast_off
from ..tables import About
from .base import POOLS, widened
from .covariance_pool import CovariancePool, Weighting
from .normalizations import Plain
from .positions import counted
from .reduction import DEFAULT_CHANNELS, reduced_channels

# log2(256) / 16 = 1/2: the common rate of dropout for the common number of channels.
BITS_AT_RATE_ONE = 16
LARGEST_RATE = 0.9


class AdaptiveChannelDropout(Weighting):
    """Features (B, C, M) with channels dropped while training, as they are otherwise.

    As in the paper, whole channels are dropped just before the covariance, in a way that trades the information they
    carry against their correlation, at a cost linear in the channels; inference drops none; the rate ρ depends on
    log2 C. The paper's method section was not at hand: **the formulas are this project's own**, and results need not
    match those of the paper:

    * ρ = min(log2(C) / 16, 0.9), one half for 256 channels, if no rate is given;
    * importance ω_i = σ_i² / max_j σ_j², the variance of channel i relative to the largest;
    * redundancy π_i = |corr(x_i, Σ_j z_j)|, the correlation of channel i with the sum of the standardised channels;
    * channel i is dropped with the probability p_i = sigmoid(logit ρ + (π_i - ω_i) - mean_j(π_j - ω_j));
    * channels that stay are divided by 1 - p_i, so that the covariances of different channels are right on average
      (each variance is then 1 / (1 - p_i) times too large on average).

    The probabilities are constants to the gradient. Random numbers come from the global generator of the device.

    Args:
        channels: C.
        rate: ρ, 0 <= ρ < 1; ``None`` derives it from the number of channels.
        adaptive: let the probabilities depend on the features; otherwise every channel has p_i = ρ.

    Source: Wang, Gao, Zhang, Xie, Li & Hu, "DropCov: A Simple yet Effective Method for Improving Deep Architectures",
    NeurIPS 2022.

    Raises:
        OptionError: for a rate outside its range.

    Examples:
        >>> dropout = AdaptiveChannelDropout(256)
        >>> dropout.rate
        0.5
        >>> X = torch.randn(2, 256, 49)
        >>> torch.equal(dropout.eval()(X), X)
        True
    """

    def __init__(self, channels: int, *, rate: float | None = None, adaptive: bool = True) -> None:
        super().__init__()
        if rate is None:
            rate = min(math.log2(channels) / BITS_AT_RATE_ONE, LARGEST_RATE)
        else:
            check_number("dropcov: rate", rate, "[0, 1)")
        check_flag("dropcov: adaptive", adaptive)
        self.rate = float(rate)
        self.adaptive = adaptive

    @torch.no_grad()
    def probabilities(self, X: Tensor) -> Tensor:
        """The probability with which each channel of features (B, C, M) is dropped, (B, C), in float32 at least."""
        wide = widened(X)
        if not self.adaptive or self.rate == 0:
            return torch.full_like(wide[..., 0], self.rate)
        with autocast_off(X.device.type):
            # Neither measure depends on the scale; without it the squares leave the range of float32 early.
            largest = wide.abs().amax((-2, -1), keepdim=True)
            wide = wide / torch.where(largest < torch.finfo(wide.dtype).tiny, 1.0, largest)
            Xc = wide - wide.mean(-1, keepdim=True)
            variance = Xc.square().mean(-1)
            importance = _divide(variance, variance.amax(-1, keepdim=True))
            Z = _divide(Xc, variance.sqrt().unsqueeze(-1))
            common = Z.sum(-2, keepdim=True)
            redundancy = _divide((Z * common).mean(-1), common.square().mean(-1).sqrt()).abs()
            excess = redundancy - importance
            logit = math.log(self.rate) - math.log1p(-self.rate)
            return (logit + excess - excess.mean(-1, keepdim=True)).sigmoid()

    def forward(self, X: Tensor, mask: Tensor | None = None) -> Tensor:
        if not self.training:
            return X
        keep = 1 - self.probabilities(X if mask is None else counted(X, mask, True))
        factor = (torch.rand_like(keep) < keep) / keep
        return (X * factor.unsqueeze(-1)).to(X.dtype)

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}, adaptive={self.adaptive}"


def _divide(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and a where b is zero."""
    return a / torch.where(b == 0, 1.0, b)


def dropcov(
    in_channels: int,
    *,
    rate: float | None = None,
    adaptive: bool = True,
    reduce_channels: int | str | None = "default",
    **shared: Any,
) -> CovariancePool:
    channels = reduced_channels(in_channels, reduce_channels, DEFAULT_CHANNELS)
    weighting = AdaptiveChannelDropout(channels, rate=rate, adaptive=adaptive)
    shared |= dict(reduce_channels=reduce_channels, weighting=weighting, normalization=Plain())
    return CovariancePool(in_channels, pool_type="dropcov", **shared)


POOLS.add("dropcov", dropcov, About("covariance; training drops channels by an adaptive rule", "exact", "NeurIPS 2022"))
