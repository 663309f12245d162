"""What the comparisons train on: crops of photographs, scikit-learn's digits, or pictures of a folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from covpool_plugins.errors import OptionError, require_extra
from covpool_plugins.tables import Table

from .photographs import SPLITS, Photos, Split, crops, folder_classes, shipped_classes

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
