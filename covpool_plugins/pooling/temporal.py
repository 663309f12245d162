"""Temporal-attentive covariance pooling: one covariance for the frames of a clip."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..checks import check_choice, check_flag, check_integer, check_whole_clips
from ..linalg import Method, NewtonSchulz
from ..tables import About
from .base import POOLS
from .covariance_pool import CovariancePool
from .positions import reduced_positions
from .temporal_attention import GATE_CHANNELS, TemporalAttention

Level = Literal["video", "frame"]
LEVELS: tuple[str, ...] = get_args(Level)
RELEASED_METHOD = NewtonSchulz(iterations=3)


class TemporalPool(CovariancePool):
    """Reduction, temporal attention within clips, root of the covariance over all positions of a clip or a frame.

    The input holds the frames of B clips one after another, (B T, C, H, W) with T ``frames``; the output is (B, D), or
    (B T, D) at the frame level. ``features`` gives the calibrated features that the covariance is taken of, (B, C, T M)
    or (B T, C, M) for M positions of a frame.

    With the temporal convolution negative features are set to zero; a reduction that ends in ReLU has none. A new pool
    with it is the plain covariance pool, see :class:`TemporalAttention`. With all attention off and ``level="frame"``
    it is the plain covariance pool for good.

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
        super().__init__(
            in_channels,
            method or RELEASED_METHOD,
            pool_type="temporal",
            device=device,
            dtype=dtype,
            **options,
        )
        self.frames = frames
        self.level = level
        self.attention: TemporalAttention | None = None
        if any(attention.values()):
            self.attention = TemporalAttention(
                self.channels, frames, **attention, gate_channels=gate_channels, device=device, dtype=dtype
            )

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

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, frames={self.frames}, level={self.level!r}"


POOLS.add(
    "temporal",
    TemporalPool,
    About(
        "covariance of a clip of `frames=T` images after temporal attention; 3 Newton-Schulz steps",
        "exact for these steps",
        "NeurIPS 2021",
    ),
)
