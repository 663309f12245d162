"""Temporal-attentive covariance pooling: one covariance for the frames of a clip."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..checks import check_choice, check_flag, check_integer, check_whole_clips
from ..errors import OptionError
from ..linalg import Method, NewtonSchulz
from ..linalg.tensors import autocast_off, product
from ..tables import About
from .base import POOLS, widened
from .covariance_pool import CovariancePool
from .positions import mean_over_positions, on_rows, only, reduced_positions

Level = Literal["video", "frame"]
LEVELS: tuple[str, ...] = get_args(Level)
RELEASED_METHOD = NewtonSchulz(iterations=3)
GATE_CHANNELS = 32


class TemporalAttention(nn.Module):
    """Features of clips (B, T, C, M), calibrated by the frames before each frame; of the same shape and dtype.

    For a frame X_t (C, M), with σ the sigmoid and W, U learned maps of the channels:

    * channel attention a_t (C) = (g(m_t - m_{t-1}) + g((m_t - m_{t-2}) / 2)) / 2, where m_t is the mean of X_t over its
      positions, g(d) = σ(W₂ relu(W₁ d)), and the frames before the first are the last ones of the clip;
    * spatial attention S_t (C, M) = BN(U₀ X_t softmax((U₁ X_{t-1})ᵀ (U₂ X_{t-2}) / √C)ᵀ), with the first frame for
      those before it: how the positions of the two preceding frames correspond tells which of this one to gather;
    * temporal convolution over k frames, circular, with a residual: relu(X_t + Σ_s K_s Y_{t+s}), Y_t = a_t (X_t + S_t);
      k is T // 2 + 1, or one more where that is even, which has no centre, and which the released code cannot run with.

    A bias belongs to every map. The structure is the one that reproduces the outputs and gradients of the released
    code. Those are of clips of four frames, where two frames back is also two frames ahead; the former is taken from S.
    The spatial attention and the convolution begin at zero: with the latter a new module changes nothing but that it
    sets negative features to zero. Computed in float32 at least.

    Args:
        channels: C.
        frames: T.
        channel, spatial, convolution: whether each takes part.
        gate_channels: width between W₁ and W₂; 32 in the released code, for 8 channels.
    """

    def __init__(
        self, channels: int, frames: int, *, channel: bool, spatial: bool, convolution: bool, gate_channels: int
    ) -> None:
        super().__init__()
        self.channel: nn.ModuleDict | None = None
        self.spatial: nn.ModuleDict | None = None
        self.convolution: nn.ModuleDict | None = None
        if channel:
            squeeze, excite = nn.Linear(channels, gate_channels), nn.Linear(gate_channels, channels)
            self.channel = nn.ModuleDict({"squeeze": squeeze, "excite": excite})
        if spatial:
            maps: dict[str, nn.Module] = {name: nn.Linear(channels, channels) for name in ("query", "key", "value")}
            norm = nn.BatchNorm1d(channels)
            nn.init.zeros_(norm.weight)
            self.spatial = nn.ModuleDict(maps | {"norm": norm})
        if convolution:
            conv = nn.Conv2d(channels, channels, ((frames // 2 + 1) | 1, 1))
            nn.init.zeros_(conv.weight)
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)
            self.convolution = nn.ModuleDict({"conv": conv})

    def forward(self, X: Tensor, mask: Tensor | None = None) -> Tensor:
        with autocast_off(X.device.type):
            features = widened(X)
            calibrated = features
            if self.spatial is not None:
                calibrated = features + self._gathered(self.spatial, features, mask)
            if self.channel is not None:
                calibrated = calibrated * self._gates(self.channel, features, mask).unsqueeze(-1)
            if self.convolution is not None:
                calibrated = (features + self._convolved(self.convolution["conv"], calibrated)).relu()
            return only(calibrated.to(X.dtype), mask)

    @staticmethod
    def _gates(maps: Any, X: Tensor, mask: Tensor | None) -> Tensor:
        """a (B, T, C)."""
        means = mean_over_positions(X, mask).squeeze(-1)
        changes = [(means - torch.roll(means, step, dims=1)) / step for step in (1, 2)]
        one, two = (_linear(maps.excite, _linear(maps.squeeze, change).relu()).sigmoid() for change in changes)
        return (one + two) / 2

    @staticmethod
    def _gathered(maps: Any, X: Tensor, mask: Tensor | None) -> Tensor:
        """S (B, T, C, M)."""
        rows = X.transpose(2, 3)
        queries, keys = _frames_before(_linear(maps.query, rows), 1), _frames_before(_linear(maps.key, rows), 2)
        scores = product(queries, keys.transpose(2, 3)) / X.shape[2] ** 0.5
        if mask is not None:  # a position is gathered from this frame by what the key frame shows there
            scores = scores.masked_fill(~(mask & _frames_before(mask, 2)).unsqueeze(2), torch.finfo(X.dtype).min)
        gathered = product(scores.softmax(dim=-1), _linear(maps.value, rows))
        flat = gathered.flatten(0, 2).to(maps.norm.weight.dtype)
        if mask is not None and maps.norm.training:
            flat = on_rows(maps.norm, flat, mask.flatten())
        else:
            flat = maps.norm(flat)
            flat = flat if mask is None else flat.masked_fill(~mask.flatten().unsqueeze(-1), 0.0)
        return flat.to(X.dtype).reshape(gathered.shape).transpose(2, 3)

    @staticmethod
    def _convolved(conv: Any, X: Tensor) -> Tensor:
        """Σ_s K_s X_{t+s} as one product: of a convolution the backward pass would be autocast."""
        steps = conv.weight.shape[2]
        around = [X.roll(steps // 2 - step, dims=1) for step in range(steps)]
        kernel = conv.weight.squeeze(-1).permute(0, 2, 1).flatten(1)
        return (_product(torch.cat(around, dim=2).transpose(2, 3), kernel) + conv.bias.to(X.dtype)).transpose(2, 3)


class TemporalPool(CovariancePool):
    """Reduction, temporal attention within clips, root of the covariance over all positions of a clip or a frame.

    The input holds the frames of B clips one after another, (B T, C, H, W) with T ``frames``; the output is (B, D), or
    (B T, D) at the frame level. ``features`` gives the calibrated features that the covariance is taken of, (B, C, T M)
    or (B T, C, M) for M positions of a frame.

    With the temporal convolution negative features are set to zero; a reduction that ends in ReLU has none. A new pool
    with it is the plain covariance pool, see ``TemporalAttention``. With all attention off and ``level="frame"`` it is
    the plain covariance pool for good.

    Args:
        in_channels: channels of the input.
        method: name or object of the square-root method; by default Newton-Schulz with 3 steps, as released. The name
            ``isqrt`` stands for its own default of 5 steps.
        frames: T, how many successive entries of the batch are one clip.
        level: ``video``, one vector for a clip, or ``frame``, one for each frame.
        channel_attention: weight the channels of each frame by how it differs from the two frames before.
        spatial_attention: gather positions of each frame by how the two frames before correspond.
        temporal_convolution: convolve the calibrated features along the frames.
        gate_channels: hidden width of the channel attention; 32 in the released code, for 8 channels.
        options: of the method, for example ``iterations=5``, and others of :class:`CovariancePool`. The reduction of
            maps is by default ``conv-bn-relu-twice`` (through 256 channels, as released).

    Source: Gao, Wang, Zhang, Hu & Li, "Temporal-attentive Covariance Pooling Networks for Video Recognition",
    NeurIPS 2021; Song, Sebe & Wang, "Fast Differentiable Matrix Square Root", ICLR 2022, for ``method="mpa"``.

    Raises:
        OptionError: for an option out of its range, or one that the method does not have.
        ShapeError: for a batch that is no whole number of clips.

    Examples:
        >>> pool = TemporalPool(64, frames=4, reduce_channels=8)
        >>> pool(torch.randn(2 * 4, 64, 7, 7)).shape  # two clips of four frames
        torch.Size([2, 36])
    """

    default_reductions = ("conv-bn-relu-twice", "linear-ln")
    shown = (*CovariancePool.shown, "frames", "level")

    def __init__(
        self,
        in_channels: int,
        *,
        method: str | Method | None = RELEASED_METHOD,
        frames: int = 1,
        level: Level = "video",
        channel_attention: bool = True,
        spatial_attention: bool = True,
        temporal_convolution: bool = True,
        gate_channels: int = GATE_CHANNELS,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        check_integer("temporal: frames", frames)
        check_integer("temporal: gate_channels", gate_channels)
        check_choice("temporal: level", level, LEVELS)
        attention = {"channel": channel_attention, "spatial": spatial_attention, "convolution": temporal_convolution}
        for name, switch in attention.items():
            check_flag(f"temporal: {name} attention", switch)
        if not channel_attention and gate_channels != GATE_CHANNELS:
            raise OptionError(f"temporal: gate_channels={gate_channels} needs channel_attention=True, got False")
        super().__init__(in_channels, method or RELEASED_METHOD, pool_type="temporal", **options)
        self.frames = frames
        self.level = level
        self.attention: TemporalAttention | None = None
        if any(attention.values()):
            self.attention = TemporalAttention(self.channels, frames, **attention, gate_channels=gate_channels)
        self.to(device=device, dtype=dtype)

    def features(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Calibrated features (B, C, T M), or (B T, C, M) at the frame level, for frames (B T, ...) of the layout."""
        maps = self.to_maps(x)
        check_whole_clips(maps.shape[0], self.frames)
        X = reduced_positions(self.reduction, maps, mask)
        clips = X.reshape(-1, self.frames, X.shape[1], X.shape[2])
        if self.attention is not None:
            clips = self.attention(clips, None if mask is None else mask.unflatten(0, (-1, self.frames)))
        return clips.flatten(0, 1) if self.level == "frame" else clips.transpose(1, 2).flatten(2)

    def mask_of_features(self, mask: Tensor) -> Tensor:
        return mask if self.level == "frame" else mask.unflatten(0, (-1, self.frames)).flatten(1)


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


POOLS.add(
    "temporal",
    TemporalPool,
    About(
        "covariance of a clip of `frames=T` images after temporal attention; 3 Newton-Schulz steps",
        "exact for these steps",
        "NeurIPS 2021",
    ),
)
