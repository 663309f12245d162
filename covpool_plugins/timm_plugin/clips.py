"""Clips of a few frames: which frames of a video are taken, and how a network for images goes over them.

Source: Wang, Xiong, Wang, Qiao, Lin, Tang & Van Gool, "Temporal Segment Networks: Towards Good Practices for Deep
Action Recognition", ECCV 2016, for the sampling of frames and their consensus.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import check_flag, check_integer, check_whole_clips
from ..errors import ShapeError


def sample_frames(count: int, frames: int, training: bool, generator: torch.Generator | None = None) -> Tensor:
    """Indices (T,), int64 and in order, of the frames of a video that make up a clip; ``video[indices]`` is the clip.

    The video is cut into T equal segments. In training a random frame of each is taken, else the middle one. Of a video
    with fewer than T frames some are taken more than once.

    Args:
        count: how many frames the video has.
        frames: T.
        training: take random frames.
        generator: of the random numbers; PyTorch's own by default.

    Raises:
        OptionError: for numbers that are no positive integers.
    """
    check_integer("count", count)
    check_integer("frames", frames)
    check_flag("training", training)
    within = torch.rand(frames, generator=generator, dtype=torch.float64) if training else torch.full((frames,), 0.5)
    places = (torch.arange(frames, dtype=torch.float64) + within) * count / frames
    return places.long().clamp(max=count - 1)  # rounding may reach the end of the last segment


def join_clips(x: Tensor, frames: int) -> Tensor:
    """The frames (B T, C, H, W) of clips (B, T, C, H, W), one after another; what are frames already stays as it is.

    Raises:
        ShapeError: for clips of another number of frames, or frames that are no whole number of clips.
    """
    if x.dim() == 5:
        if x.shape[1] != frames:
            raise ShapeError(f"expected clips of {frames} frames (B, {frames}, C, H, W), got shape {list(x.shape)}")
        return x.flatten(0, 1)
    if x.dim() != 4:
        raise ShapeError(f"expected clips (B, {frames}, C, H, W) or frames (B T, C, H, W), got shape {list(x.shape)}")
    check_whole_clips(x.shape[0], frames)
    return x


def mean_over_frames(vectors: Tensor, frames: int) -> Tensor:
    """The consensus (B, D) of the vectors (B T, D) of frames: their mean over each clip.

    Raises:
        ShapeError: for vectors that are no whole number of clips.
    """
    if frames == 1:
        return vectors
    check_whole_clips(vectors.shape[0], frames)
    return vectors.reshape(-1, frames, vectors.shape[1]).mean(dim=1)
