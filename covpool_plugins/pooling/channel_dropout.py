"""Adaptive channel dropout before covariance pooling, in place of a normalisation after it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..linalg.tensors import autocast_off, power_of_two
from ..tables import About
from .base import POOLS, widened
from .covariance_pool import CovariancePool, Weighting
from .normalizations import Plain
from .positions import counted, mean_over_positions
from .reduction import reduced_channels

TAPS = 3
DEFAULT_CHANNELS = 128  # of the published networks


class AdaptiveChannelDropout(Weighting):
    """Features (B, C, M) with channels weighted and dropped while training; as they are at inference.

    In training, with the means g (B, C) of the channels:

    * attention ω = softmax of a convolution of g along the channels, with one kernel of three taps and no bias;
    * the features become X' = (1 + ω) X;
    * r_i = Σ_j Σ_ij, the row sums of the covariance Σ of X'; c = ⟨ω, r⟩ / (‖ω‖ ‖r‖) for each sample;
    * one rate for the batch, ρ = 1 - (10 / log₂ C) mean(c), cut to [0, 1];
    * each channel of each sample is kept with the probability 1 - ρ, and divided by it.

    Attention that agrees with the correlation of the channels (c near one) means no dropout. ρ is a constant to the
    gradient and stays on the device. Samples whose row sums are zero, those that are constant over the positions, have
    no c and do not count, neither do those that are not finite; in the released code the rate is NaN then. Random
    numbers come from the global generator of the device.

    Args:
        channels: C.

    Attributes:
        weight: the taps (1, 1, 3), the only parameter.

    Source: Wang, Gao, Zhang, Xie, Li & Hu, "DropCov: A Simple yet Effective Method for Improving Deep Architectures",
    NeurIPS 2022; the formulas are those of the authors' code.

    Examples:
        >>> dropout = AdaptiveChannelDropout(256)
        >>> X = torch.randn(2, 256, 49)
        >>> dropout(X).shape, torch.equal(dropout.eval()(X), X)
        (torch.Size([2, 256, 49]), True)
    """

    def __init__(self, channels: int, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.channels = channels
        self.weight = nn.Parameter(torch.empty(1, 1, TAPS, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Begin as a convolution of torch does."""
        if not self.weight.is_meta:
            nn.init.uniform_(self.weight, -(TAPS**-0.5), TAPS**-0.5)

    def attention(self, X: Tensor, mask: Tensor | None = None) -> Tensor:
        """ω (B, C), which sums to one, for features (B, C, M); in float32 at least."""
        means = mean_over_positions(widened(X), mask).squeeze(-1)
        with autocast_off(X.device.type):
            # Not as a convolution, whose backward pass may be autocast.
            taps = nn.functional.pad(means, (TAPS // 2, TAPS // 2)).unfold(-1, TAPS, 1)
            return (taps * self.weight.to(means.dtype).flatten()).sum(-1).softmax(-1)

    @torch.no_grad()
    def rate(self, X: Tensor, attention: Tensor, mask: Tensor | None = None) -> Tensor:
        """ρ, a 0-dimensional tensor, for weighted features X' (B, C, M) and their attention (B, C)."""
        Xc = counted(X / power_of_two(X), mask, True)
        # Σ 1 = X' (X'ᵀ 1) without Σ.
        row_sums = (Xc * Xc.sum(-2, keepdim=True)).sum(-1)
        lengths = attention.norm(dim=-1) * row_sums.norm(dim=-1)
        counts = (lengths > 0) & lengths.isfinite()
        cosines = torch.where(counts, (attention * row_sums).sum(-1) / torch.where(counts, lengths, 1.0), 0.0)
        mean = cosines.sum() / counts.sum().clamp_min(1)
        return (1 - 10 / math.log2(max(self.channels, 2)) * mean).clamp(0, 1)

    def forward(self, X: Tensor, mask: Tensor | None = None) -> Tensor:
        """Features in float32 at least while training, for a kept channel may leave the range of a smaller type."""
        if not self.training:
            return X
        attention = self.attention(X, mask)
        weighted = widened(X) * (1 + attention).unsqueeze(-1)
        rate = self.rate(weighted, attention, mask)
        keep = torch.rand_like(attention) >= rate
        factor = keep * torch.where(rate < 1, 1 / (1 - rate), 0.0)
        return weighted * factor.unsqueeze(-1)

    def extra_repr(self) -> str:
        return f"{self.channels}"


def dropcov(
    in_channels: int,
    *,
    reduce_channels: int | str | None = "default",
    device: Any = None,
    dtype: Any = None,
    **shared: Any,
) -> CovariancePool:
    factory: dict[str, Any] = dict(device=device, dtype=dtype)
    channels = reduced_channels(in_channels, reduce_channels, DEFAULT_CHANNELS)
    shared |= dict(weighting=AdaptiveChannelDropout(channels, **factory), normalization=Plain(), **factory)
    shared["reduce_channels"] = None if reduce_channels is None else channels
    return CovariancePool(in_channels, pool_type="dropcov", **shared)


POOLS.add(
    "dropcov",
    dropcov,
    About(
        "covariance of 128 channels; training drops channels at a rate that attention decides", "exact", "NeurIPS 2022"
    ),
)
