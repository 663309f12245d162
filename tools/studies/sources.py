"""Where the pictures of the comparisons come from: photographs or digits that ship in wheels, or a folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from covpool_plugins.errors import OptionError
from covpool_plugins.tables import Table

from .convergence import Digits
from .texture_crops import Photos, classes_of, crops, shipped_classes
from .textures import SPLITS, Split

Draw = Callable[[Split, int, int, float, int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Source:
    """Pictures of some classes.

    Args:
        classes: their names.
        draw: (split, pictures of each class, side, noise, seed) -> pictures (N, 1, side, side) in float32 and labels
            (N,), class by class; noise is Gaussian, in deviations of a picture. Training and test pictures have
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
        OSError: for a folder that cannot be read.
    """
    return SOURCES[name]() if name in SOURCES else _of_crops(classes_of(Path(name)))


@SOURCES.register("photographs")
def photographs() -> Source:
    """Crops of scikit-image's photographs, nine classes."""
    return _of_crops(shipped_classes())


def _of_crops(classes: dict[str, Photos]) -> Source:
    return Source(tuple(classes), partial(crops, classes), turns=True)


@SOURCES.register("digits")
def digits() -> Source:
    """Scikit-learn's digits, photographs of 8x8 pixels, enlarged; every fourth is for testing."""
    found = Digits.load()
    parts: dict[Split, tuple[Tensor, Tensor]] = {"train": found.train, "val": found.validation}

    def draw(split: Split, per_class: int, size: int, noise: float, seed: int) -> tuple[Tensor, Tensor]:
        images, labels = parts[split]
        generator = torch.Generator().manual_seed(2 * seed + SPLITS.index(split))
        chosen = []
        for label in range(10):
            own = (labels == label).nonzero().squeeze(1)
            if per_class > len(own):
                raise OptionError(f"there are {len(own)} {split} pictures of digit {label}, asked for {per_class}")
            chosen.append(own[torch.randperm(len(own), generator=generator)[:per_class]])
        index = torch.cat(chosen)
        x = nn.functional.interpolate(images[index, :1], (size, size), mode="bilinear", align_corners=False)
        return x + noise * x.std() * torch.randn(x.shape, generator=generator), labels[index]

    return Source(tuple("0123456789"), draw, turns=False)
