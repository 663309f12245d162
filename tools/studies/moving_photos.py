"""Clips of a camera that moves over a photograph: the motion is the class.

The motions come in pairs, one of which is the other backwards: the same frames in another order. A pool that does not
know the order of the frames, such as the mean of their vectors, tells the pair at best, and is right half the time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from covpool_plugins.errors import OptionError
from covpool_plugins.pictures import Picture, read_picture

from .labelled import pictures_in
from .photographs import Split, divide, photograph

# What the picture in the camera does; neighbours are each other backwards.
MOTIONS = ("left", "right", "up", "down", "nearer", "farther", "clockwise", "anticlockwise")
SHIPPED: dict[Split, tuple[str, ...]] = {
    "train": ("astronaut", "brick", "camera", "coffee", "grass", "immunohistochemistry", "rocket", "text"),
    "val": ("chelsea", "coins", "gravel", "page"),
}
# From the first frame to the last, least and most: pictures of way, times of size, radians of turn.
WAY, ENLARGEMENT, TURN = (0.5, 1.0), (1.6, 2.4), (math.pi / 4, math.pi / 2)
SCALE = (0.8, 1.2)
PLACES = 4
# A photograph's shorter side, in pictures: what fits the widest view at every angle, with room to choose a place.
SIDE = 4


MovingPhotos = dict[Split, list[Tensor]]


def shipped_photos(size: int) -> MovingPhotos:
    """Scikit-image's photographs, others for training than for validation, for pictures of that size."""
    return {split: [_prepared(photograph(name), size) for name in names] for split, names in SHIPPED.items()}


def folder_photos(folder: Path, size: int) -> MovingPhotos:
    """Those of a folder; every third one, by name, validates.

    Raises:
        OptionError: for a folder with fewer than three pictures.
        OSError, ValueError: for a folder or a picture that cannot be read.
    """
    photos = [_prepared(picture, size) for picture in map(read_picture, pictures_in(folder))]
    if len(photos) < 3:
        raise OptionError(f"{str(folder)!r} must hold three pictures or more, found {len(photos)}")
    return divide(photos)


def moving_clip(photo: Tensor, motion: str, size: int, frames: int, generator: torch.Generator) -> Tensor:
    """A clip (T, 3, size, size) of a photograph (3, H, W), of mean 0 and deviation 1.

    Place, angle, scale and speed are random; of a few places the one with most contrast is taken. The clip of the other
    motion of a pair, from a generator of the same state, is this one backwards.

    Raises:
        ValueError: for a motion that is none of ``MOTIONS``.
    """
    angle, scale, speed = torch.rand(3, generator=generator).tolist()
    angle, scale = 2 * math.pi * angle, _between(SCALE, scale)
    places = torch.rand(PLACES, 2, generator=generator)
    # More than what the widest view shows: that of a camera halfway to either side.
    reach = size * SCALE[1] * (2**0.5 + WAY[1]) / 2
    centres = reach + places * (torch.tensor([photo.shape[2], photo.shape[1]]) - 2 * reach)
    still = torch.tensor([scale, angle]).expand(PLACES, 2)
    contrasts = _views(photo, size, centres, still[:, 0], still[:, 1], step=4).std(dim=(1, 2, 3))

    ways, scales, angles = _camera(motion, speed, frames)
    angles = angle + angles
    cosine, sine = angles.cos(), angles.sin()
    x, y = size * scale * ways.T
    path = torch.stack([cosine * x - sine * y, sine * x + cosine * y], dim=1)
    clip = _views(photo, size, centres[contrasts.argmax()] + path, scale * scales, angles)
    return (clip - clip.mean()) / (clip.std() + 1e-6)


def _camera(motion: str, speed: float, frames: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where the camera is, in pictures (T, 2), how wide its view (T,) and its angle (T,), at a speed from 0 to 1.

    The picture goes left when the camera goes right, and turns clockwise when the camera turns the other way.
    """
    pair, backwards = divmod(MOTIONS.index(motion), 2)
    time = torch.linspace(-0.5, 0.5, frames) * (-1 if backwards else 1)
    ways, scales, angles = torch.zeros(frames, 2), torch.ones(frames), torch.zeros(frames)
    if pair < 2:
        ways[:, pair] = _between(WAY, speed) * time
    elif pair == 2:
        scales = _between(ENLARGEMENT, speed) ** -time
    else:
        angles = -_between(TURN, speed) * time
    return ways, scales, angles


def batches(photos: Sequence[Tensor], size: int, frames: int, batch: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Without end, clips (B, T, 3, size, size) of random photographs and motions, and their labels (B,)."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        labels = torch.randint(len(MOTIONS), (batch,), generator=generator)
        chosen = torch.randint(len(photos), (batch,), generator=generator)
        clips = [
            moving_clip(photos[photo], MOTIONS[label], size, frames, generator)
            for photo, label in zip(chosen.tolist(), labels.tolist(), strict=True)
        ]
        yield torch.stack(clips), labels


def _views(photo: Tensor, size: int, centres: Tensor, scales: Tensor, angles: Tensor, step: int = 1) -> Tensor:
    """Pictures (T, 3, size, size) around centres (T, 2), in pixels (x, y); every so many pixels only."""
    steps = torch.arange(0, size, step) - (size - 1) / 2
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    x, y = (scales[:, None, None] * coordinate for coordinate in (x, y))
    cosine, sine = angles.cos()[:, None, None], angles.sin()[:, None, None]
    turned = torch.stack([cosine * x - sine * y, sine * x + cosine * y], dim=-1) + centres[:, None, None]
    grid = 2 * turned / torch.tensor([photo.shape[2], photo.shape[1]]) - 1
    return torch.nn.functional.grid_sample(photo.expand(len(grid), -1, -1, -1), grid, align_corners=False)


def _between(ends: tuple[float, float], part: float) -> float:
    return ends[0] + part * (ends[1] - ends[0])


def _prepared(photo: Picture, size: int) -> Tensor:
    """A photograph (3, H, W) between 0 and 1, its shorter side ``SIDE`` pictures long."""
    ratio = SIDE * size / min(photo.size)
    width, height = (round(ratio * side) for side in photo.size)
    picture = photo.convert("RGB").resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
