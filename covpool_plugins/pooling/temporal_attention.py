"""Temporal attention: the features of a clip, calibrated by the frames before each frame.

For a frame X_t (C, M) of a clip of T frames, with σ the sigmoid and W, U learned maps of the channels:

* channel attention a_t (C) = (g(m_t - m_{t-1}) + g((m_t - m_{t-2}) / 2)) / 2, where m_t is the mean of X_t over its
  positions, g(d) = σ(W₂ relu(W₁ d)), and the frames before the first are the last ones of the clip;
* spatial attention S_t (C, M) = BN(U₀ X_t softmax((U₁ X_{t-1})ᵀ (U₂ X_{t-2}) / √C)ᵀ), with the first frame for those
  before it: how the positions of the two preceding frames correspond tells which positions of this one to gather;
* temporal convolution over k frames, circular, with a residual: relu(X_t + Σ_s K_s Y_{t+s}), Y_t = a_t (X_t + S_t).

A bias belongs to every map. The structure is the one that reproduces the outputs and gradients of the released code.
Those are of clips of four frames, where two frames back is also two frames ahead; the former is taken from S.

Source: Gao, Wang, Zhang, Hu & Li, "Temporal-attentive Covariance Pooling Networks for Video Recognition",
NeurIPS 2021.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..linalg.tensors import autocast_off, product
from .base import widened
from .positions import mean_over_positions, on_rows, only

GATE_CHANNELS = 32


def temporal_kernel(frames: int) -> int:
    """How many frames the temporal convolution covers: T // 2 + 1, or one more where that is even.

    An even kernel has no centre; the released code cannot run with one.
    """
    return (frames // 2 + 1) | 1


class ChannelAttention(nn.Module):
    """Weights a (B, T, C) of the channels of clips (B, T, C, M), from differences to the two frames before.

    Args:
        channels: C.
        gate_channels: width between W₁ and W₂; 32 in the released code, for 8 channels.
    """

    def __init__(self, channels: int, gate_channels: int = GATE_CHANNELS, **factory: Any) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, gate_channels, **factory)
        self.excite = nn.Linear(gate_channels, channels, **factory)

    def forward(self, X: Tensor, mask: Tensor | None = None) -> Tensor:
        means = mean_over_positions(X, mask).squeeze(-1)
        one_back, two_back = (means - torch.roll(means, step, dims=1) for step in (1, 2))
        return (self._gate(one_back) + self._gate(two_back / 2)) / 2

    def _gate(self, difference: Tensor) -> Tensor:
        return _linear(self.excite, _linear(self.squeeze, difference).relu()).sigmoid()


class SpatialAttention(nn.Module):
    """What is added to clips (B, T, C, M): S, of the same shape. Zero at first, because the norm's weight is.

    Args:
        channels: C.
    """

    def __init__(self, channels: int, **factory: Any) -> None:
        super().__init__()
        self.query = nn.Linear(channels, channels, **factory)
        self.key = nn.Linear(channels, channels, **factory)
        self.value = nn.Linear(channels, channels, **factory)
        self.norm = nn.BatchNorm1d(channels, **factory)
        nn.init.zeros_(self.norm.weight)

    def weights(self, X: Tensor, mask: Tensor | None = None) -> Tensor:
        """Weights (B, T, M, M); those of a position sum to one over the last dimension."""
        rows = X.transpose(2, 3)
        queries = _frames_before(_linear(self.query, rows), 1)
        keys = _frames_before(_linear(self.key, rows), 2)
        scores = product(queries, keys.transpose(2, 3)) / X.shape[2] ** 0.5
        if mask is not None:  # a position is gathered from this frame by what the key frame shows there
            scores = scores.masked_fill(~(mask & _frames_before(mask, 2)).unsqueeze(2), torch.finfo(X.dtype).min)
        return scores.softmax(dim=-1)

    def forward(self, X: Tensor, mask: Tensor | None = None) -> Tensor:
        gathered = product(self.weights(X, mask), _linear(self.value, X.transpose(2, 3)))
        rows = gathered.flatten(0, 2).to(self.norm.weight.dtype)
        if mask is not None and self.norm.training:
            rows = on_rows(self.norm, rows, mask.flatten())
        else:
            rows = self.norm(rows)
            rows = rows if mask is None else rows.masked_fill(~mask.flatten().unsqueeze(-1), 0.0)
        return rows.to(X.dtype).reshape(gathered.shape).transpose(2, 3)


class TemporalConvolution(nn.Module):
    """Convolution of clips (B, T, C, M) along the frames, which count as a circle. Zero at first.

    Args:
        channels: C.
        frames: T, of which the size of the kernel follows.
    """

    def __init__(self, channels: int, frames: int, **factory: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, (temporal_kernel(frames), 1), **factory)
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, X: Tensor) -> Tensor:
        weight, bias = self.conv.weight.to(X.dtype), self.conv.bias.to(X.dtype)  # type: ignore[union-attr]
        steps = weight.shape[2]
        # As one product: of a convolution the backward pass would be autocast.
        around = [X.roll(steps // 2 - step, dims=1) for step in range(steps)]
        rows = torch.cat(around, dim=2).transpose(2, 3)
        kernel = weight.squeeze(-1).permute(0, 2, 1).flatten(1)
        return (_product(rows, kernel) + bias).transpose(2, 3)


class TemporalAttention(nn.Module):
    """Calibrated features of clips (B, T, C, M), of the same shape and dtype; computed in float32 at least.

    With the temporal convolution a new module changes nothing but that it sets negative features to zero.

    Args:
        channels: C.
        frames: T.
        channel: weight the channels by :class:`ChannelAttention`.
        spatial: add :class:`SpatialAttention`.
        convolution: :class:`TemporalConvolution` of the result, with the features themselves as residual, and ReLU.
        gate_channels: of the channel attention.
    """

    def __init__(
        self,
        channels: int,
        frames: int,
        *,
        channel: bool = True,
        spatial: bool = True,
        convolution: bool = True,
        gate_channels: int = GATE_CHANNELS,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.channel = ChannelAttention(channels, gate_channels, **factory) if channel else None
        self.spatial = SpatialAttention(channels, **factory) if spatial else None
        self.convolution = TemporalConvolution(channels, frames, **factory) if convolution else None

    def forward(self, X: Tensor, mask: Tensor | None = None) -> Tensor:
        with autocast_off(X.device.type):
            features = widened(X)
            calibrated = features if self.spatial is None else features + self.spatial(features, mask)
            if self.channel is not None:
                calibrated = calibrated * self.channel(features, mask).unsqueeze(-1)
            if self.convolution is not None:
                calibrated = (features + self.convolution(calibrated)).relu()
            return only(calibrated.to(X.dtype), mask)


def _linear(layer: nn.Linear, rows: Tensor) -> Tensor:
    """The layer in the precision of its input."""
    return _product(rows, layer.weight) + layer.bias.to(rows.dtype)


def _product(rows: Tensor, weight: Tensor) -> Tensor:
    """rows (B, ..., n) times the transpose of the weight (m, n), (B, ..., m)."""
    return product(rows.flatten(0, -2), weight.to(rows.dtype).T).reshape(-1, *rows.shape[1:-1], weight.shape[0])


def _frames_before(rows: Tensor, steps: int) -> Tensor:
    """For each frame of (B, T, ...) the one that many steps before it, or the first."""
    frames = rows.shape[1]
    first = [rows[:, :1]] * min(steps, frames)
    return torch.cat([*first, rows[:, : max(frames - steps, 0)]], dim=1)
