"""Crops of photographs as training and test pictures, disjoint: a class is a photograph or a folder of photographs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from covpool_plugins.errors import OptionError

from .textures import SPLITS, Split, photograph, random_crop

# Of scikit-image; the textures of the demo first.
SHIPPED = ("brick", "grass", "gravel", "astronaut", "camera", "chelsea", "coffee", "coins", "immunohistochemistry")
# A crop's side in sides of the picture that it becomes, at least and at most: things have no fixed size.
REACH = (1.0, 2.0)
MEAN, DEVIATION = 120.0, 40.0  # of grey values, in the middle of what random_crop gives
Photos = dict[Split, list[np.ndarray]]


def shipped_classes() -> dict[str, Photos]:
    """Each of scikit-image's photographs is a class: its left half is for training, its right half for testing."""
    return {name: halves(_grey(Image.fromarray(photograph(name)))) for name in SHIPPED}


def classes_of(folder: Path) -> dict[str, Photos]:
    """Each folder in a folder is a class; every third of its pictures, by name, is for testing, of one its right half.

    Of two pictures the second is. What is no picture is passed over.

    Raises:
        OptionError: for fewer than two folders, or one without pictures.
        OSError: for a folder that cannot be read.
    """
    found = {path.name: _pictures(path) for path in sorted(folder.iterdir()) if path.is_dir()}
    if len(found) < 2:
        raise OptionError(f"{str(folder)!r} must hold two folders or more, one for each class, found {len(found)}")
    for name, pictures in found.items():
        if not pictures:
            raise OptionError(f"{str(folder / name)!r} holds no pictures")
    return {name: _divided(pictures) for name, pictures in found.items()}


def halves(photo: np.ndarray) -> Photos:
    """The left half of a photograph for training, the right one for testing."""
    left, right = np.array_split(photo, 2, axis=1)
    return {"train": [left], "val": [right]}


def crops(
    classes: Mapping[str, Photos], split: Split, per_class: int, size: int, noise: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Pictures (N, 1, size, size) in float32 and labels (N,), class by class; the same for the same seed.

    Place, angle, size of the crop, brightness and contrast are random; Gaussian noise is added.

    Args:
        classes: their photographs.
        split: the part that the crops are taken from.
        per_class: how many of each class.
        size: side of the pictures.
        noise: its deviation, in deviations of a picture.
        seed: of all random numbers.

    Raises:
        OptionError: for a photograph that is too small for a crop.
    """
    pictures = []
    for label, (name, photos) in enumerate(classes.items()):
        generator = np.random.default_rng([seed, SPLITS.index(split), label])
        least = int(np.ceil(size * 2**0.5))
        for photo in photos[split]:
            if min(photo.shape) < least:
                height, width = photo.shape
                raise OptionError(f"pictures of {name!r} must leave {least} pixels a side, got {width}x{height}")
        for _ in range(per_class):
            photo = photos[split][generator.integers(len(photos[split]))]
            pictures.append(_crop(photo, size, generator) + noise * generator.normal(size=(size, size)))
    x = torch.from_numpy(np.stack(pictures)).float().unsqueeze(1)
    return x, torch.arange(len(classes)).repeat_interleave(per_class)


def _crop(photo: np.ndarray, size: int, generator: np.random.Generator) -> np.ndarray:
    """A crop (size, size) around mean 0 and deviation 1."""
    largest = min(REACH[1] * size, min(photo.shape) / 2**0.5)
    side = int(generator.uniform(REACH[0] * size, largest))
    crop = random_crop(photo, side, generator).convert("L").resize((size, size), Image.Resampling.BICUBIC)
    return (np.asarray(crop, dtype=np.float64) - MEAN) / DEVIATION


def _divided(pictures: Sequence[np.ndarray]) -> Photos:
    if len(pictures) == 1:
        return halves(pictures[0])
    if len(pictures) == 2:
        return {"train": [pictures[0]], "val": [pictures[1]]}
    return {"train": [photo for index, photo in enumerate(pictures) if index % 3 != 2], "val": list(pictures[2::3])}


def _pictures(folder: Path) -> list[np.ndarray]:
    found = []
    for path in sorted(folder.iterdir()):
        try:
            found.append(_grey(Image.open(path)))
        except (UnidentifiedImageError, IsADirectoryError):
            continue
    return found


def _grey(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L"))
