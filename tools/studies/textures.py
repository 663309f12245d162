"""Real photographs that ship inside scikit-image's wheel, cut into training and validation pictures.

Training and validation crops of a class come from disjoint halves of its photograph.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from covpool_plugins.errors import require_extra
from covpool_plugins.files import write_atomically

CLASSES = ("brick", "grass", "gravel")
Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")


def photograph(name: str) -> np.ndarray:
    """A 512 x 512 grey photograph, uint8."""
    return getattr(require_extra("skimage.data", "demo"), name)()


def half(name: str, split: Split) -> np.ndarray:
    """The half of a photograph that belongs to a split: left for training, right for validation."""
    photo = photograph(name)
    middle = photo.shape[1] // 2
    return photo[:, :middle] if split == "train" else photo[:, middle:]


def random_crop(photo: np.ndarray, size: int, generator: np.random.Generator) -> Image.Image:
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


def write_crops(root: Path, per_class: dict[Split, int], size: int, seed: int = 0) -> Path:
    """Write ROOT/<split>/<class>/<number>.png, the layout that timm and MMPretrain read; the same for the same seed."""
    for split in SPLITS:
        for label, name in enumerate(CLASSES):
            generator = np.random.default_rng([seed, SPLITS.index(split), label])
            photo = half(name, split)
            for number in range(per_class[split]):
                crop = random_crop(photo, size, generator)
                path = root / split / name / f"{number:04d}.png"
                write_atomically(path, partial(crop.save, format="PNG"))
    return root


def mosaic(left: str, right: str, size: int, generator: np.random.Generator) -> Image.Image:
    """A picture whose left half is one texture and whose right half is another, from validation halves."""
    halves = [random_crop(half(name, "val"), size, generator) for name in (left, right)]
    picture = halves[0].copy()
    picture.paste(halves[1].crop((size // 2, 0, size, size)), (size // 2, 0))
    return picture
