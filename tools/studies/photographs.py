"""The pictures of the studies: crops of photographs, of scikit-image's wheel or a folder, and scikit-learn's digits.

Training and validation pictures have nothing in common: they are of different halves of a photograph, or of different
photographs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from covpool_plugins.errors import OptionError, require_extra
from covpool_plugins.files import write_atomically
from covpool_plugins.pictures import Picture, read_picture
from covpool_plugins.tables import Table

from .labelled import labelled_files

T = TypeVar("T")
Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")
Photos = dict[Split, list[np.ndarray]]  # grey, uint8

TEXTURES = ("brick", "grass", "gravel")
SHIPPED = (*TEXTURES, "astronaut", "camera", "chelsea", "coffee", "coins", "immunohistochemistry")
OF_SKLEARN = ("china", "flower")
# A crop's side in sides of the picture that it becomes, at least and at most: things have no fixed size.
REACH = (1.0, 2.0)
MEAN, DEVIATION = 120.0, 40.0  # of grey values, in the middle of what random_crop gives


def photograph(name: str) -> Picture:
    """One of scikit-image's photographs or, of ``OF_SKLEARN``, of scikit-learn's."""
    if name in OF_SKLEARN:
        return Image.fromarray(require_extra("sklearn.datasets", "probe").load_sample_image(f"{name}.jpg"))
    pixels = getattr(require_extra("skimage.data", "demo"), name)()
    return Image.fromarray(pixels[0] if isinstance(pixels, tuple) else pixels)  # the left picture of a stereo pair


def grey_halves(picture: Picture) -> dict[Split, np.ndarray]:
    """The left half of a photograph for training, the right half for validation."""
    left, right = np.array_split(np.asarray(picture.convert("L")), 2, axis=1)
    return {"train": left, "val": right}


@cache
def shipped_halves(name: str) -> dict[Split, np.ndarray]:
    """The grey halves of one of scikit-image's photographs."""
    return grey_halves(photograph(name))


def divide(pictures: Sequence[T]) -> dict[Split, list[T]]:
    """Every third picture validates."""
    return {"train": [picture for i, picture in enumerate(pictures) if i % 3 != 2], "val": list(pictures[2::3])}


def shipped_classes() -> dict[str, Photos]:
    """Each of scikit-image's photographs is a class."""
    return {name: {split: [half] for split, half in shipped_halves(name).items()} for name in SHIPPED}


def folder_classes(folder: Path) -> dict[str, Photos]:
    """Each folder in a folder is a class: every third of its pictures validates, of one or two their right halves.

    Raises:
        OptionError: for fewer than two folders, or one without pictures.
        OSError, ValueError: for a folder or a picture that cannot be read.
    """
    files = labelled_files(folder)
    classes: dict[str, Photos] = {}
    for label, name in enumerate(files.classes):
        pictures = [read_picture(files.paths[place]) for place in np.flatnonzero(files.labels == label)]
        if len(pictures) < 3:
            halves = [grey_halves(picture) for picture in pictures]
            classes[name] = {split: [half[split] for half in halves] for split in SPLITS}
        else:
            classes[name] = divide([np.asarray(picture.convert("L")) for picture in pictures])
    return classes


def random_crop(photo: np.ndarray, size: int, generator: np.random.Generator) -> Picture:
    """A crop of ``size`` x ``size`` pixels at a random place and angle, mirrored at random, with random contrast.

    Brightness and contrast carry no information about the class: what is left to tell the textures apart is texture.
    """
    reach = int(np.ceil(size * 2**0.5))
    top, left = (generator.integers(0, side - reach + 1) for side in photo.shape)
    square = Image.fromarray(photo[top : top + reach, left : left + reach])
    turned = square.rotate(float(generator.uniform(0, 360)), Image.Resampling.BICUBIC)
    margin = (reach - size) // 2
    crop = np.asarray(turned.crop((margin, margin, margin + size, margin + size)), dtype=np.float64)
    crop = crop[:, ::-1] if generator.integers(2) else crop
    crop = (crop - crop.mean()) / (crop.std() + 1e-6)
    crop = generator.uniform(90, 150) + generator.uniform(15, 50) * crop
    return Image.fromarray(crop.clip(0, 255).astype(np.uint8)).convert("RGB")


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
    least = int(np.ceil(size * 2**0.5))
    for label, (name, photos) in enumerate(classes.items()):
        generator = np.random.default_rng([seed, SPLITS.index(split), label])
        for photo in photos[split]:
            if min(photo.shape) < least:
                height, width = photo.shape
                raise OptionError(f"pictures of {name!r} must leave {least} pixels a side, got {width}x{height}")
        for _ in range(per_class):
            photo = photos[split][generator.integers(len(photos[split]))]
            pictures.append(_resized_crop(photo, size, generator) + noise * generator.normal(size=(size, size)))
    x = torch.from_numpy(np.stack(pictures)).float().unsqueeze(1)
    return x, torch.arange(len(classes)).repeat_interleave(per_class)


def _resized_crop(photo: np.ndarray, size: int, generator: np.random.Generator) -> np.ndarray:
    """A crop (size, size) around mean 0 and deviation 1."""
    largest = min(REACH[1] * size, min(photo.shape) / 2**0.5)
    side = int(generator.uniform(REACH[0] * size, largest))
    crop = random_crop(photo, side, generator).convert("L").resize((size, size), Image.Resampling.BICUBIC)
    return (np.asarray(crop, dtype=np.float64) - MEAN) / DEVIATION


def write_crops(root: Path, per_class: Mapping[Split, int], size: int, seed: int = 0) -> Path:
    """Write ROOT/<split>/<texture>/<number>.png, the layout of timm and MMPretrain; the same for the same seed."""
    for split in SPLITS:
        for label, name in enumerate(TEXTURES):
            generator = np.random.default_rng([seed, SPLITS.index(split), label])
            for number in range(per_class[split]):
                crop = random_crop(shipped_halves(name)[split], size, generator)
                write_atomically(root / split / name / f"{number:04d}.png", partial(crop.save, format="PNG"))
    return root


Draw = Callable[[Split, int, int, float, int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Source:
    """Pictures of some classes.

    Args:
        classes: their names.
        draw: (split, pictures of each class, side, noise, seed) -> pictures (N, 1, side, side) in float32 and labels
            (N,), class by class; noise is Gaussian, in deviations of a picture. Training and validation pictures have
            nothing in common.
        turns: whether a picture stays in its class when it is mirrored or turned by a right angle.
    """

    classes: tuple[str, ...]
    draw: Draw
    turns: bool


SOURCES: Table[Callable[[], Source]] = Table("source of pictures")


@cache
def source(name: str) -> Source:
    """A source by its name in ``SOURCES``, or of a folder with one folder of pictures for each class.

    Raises:
        OptionError: for a folder that is no folder of classes.
        OSError, ValueError: for a folder or a picture that cannot be read.
    """
    return SOURCES[name]() if name in SOURCES else _source_of_crops(folder_classes(Path(name)))


def _source_of_crops(classes: Mapping[str, Photos]) -> Source:
    return Source(tuple(classes), partial(crops, classes), turns=True)


@cache
def digits() -> dict[Split, tuple[Tensor, Tensor]]:
    """Scikit-learn's digits (N, 1, 8, 8) in [-1, 1] and their labels; every fourth validates.

    Raises:
        MissingExtraError: without scikit-learn.
    """
    shipped = require_extra("sklearn.datasets", "dev").load_digits()
    images = torch.tensor(shipped.images, dtype=torch.float32).div(8).sub(1).unsqueeze(1)
    labels = torch.tensor(shipped.target)
    held_out = torch.arange(len(labels)) % 4 == 3
    return {"train": (images[~held_out], labels[~held_out]), "val": (images[held_out], labels[held_out])}


def draw_digits(split: Split, per_class: int, size: int, noise: float, seed: int) -> tuple[Tensor, Tensor]:
    """Digits, enlarged.

    Raises:
        OptionError: for more of a digit than there are.
    """
    images, labels = digits()[split]
    generator = torch.Generator().manual_seed(2 * seed + SPLITS.index(split))
    chosen = []
    for digit in range(10):
        of_digit = (labels == digit).nonzero().squeeze(1)
        if per_class > len(of_digit):
            raise OptionError(f"there are {len(of_digit)} {split} pictures of digit {digit}, asked for {per_class}")
        chosen.append(of_digit[torch.randperm(len(of_digit), generator=generator)[:per_class]])
    index = torch.cat(chosen)
    x = nn.functional.interpolate(images[index], (size, size), mode="bilinear", align_corners=False)
    return x + noise * x.std() * torch.randn(x.shape, generator=generator), labels[index]


SOURCES.add("photographs", lambda: _source_of_crops(shipped_classes()))
SOURCES.add("digits", lambda: Source(tuple("0123456789"), draw_digits, turns=False))
