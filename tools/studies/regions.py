"""The demo's classes: regions of colour photographs that scikit-image and scikit-learn ship, cut into small crops.

A region is cut into six blocks. The crops of a block are never in training and test together.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from covpool_plugins.files import write_atomically

from .photographs import photograph

# Of each class a photograph and a box in it: left, top, right, bottom in pixels. No two of them overlap.
REGIONS = {
    "building": ("china", (92, 90, 340, 360)),
    "cloth": ("astronaut", (40, 300, 280, 500)),
    "crockery": ("coffee", (180, 20, 440, 380)),
    "engine": ("stereo_motorcycle", (150, 150, 520, 350)),
    "floor": ("stereo_motorcycle", (300, 400, 741, 500)),
    "fur": ("chelsea", (30, 60, 240, 290)),
    "galaxies": ("hubble_deep_field", (0, 0, 1000, 872)),
    "launch pad": ("rocket", (0, 0, 640, 300)),
    "leaves": ("flower", (0, 0, 170, 427)),
    "petals": ("flower", (180, 95, 430, 345)),
    "retina": ("retina", (300, 300, 1100, 1100)),
    "shelf": ("stereo_motorcycle", (350, 0, 741, 125)),
    "sky": ("china", (340, 0, 560, 170)),
    "tissue": ("immunohistochemistry", (0, 0, 512, 512)),
    "trees": ("china", (350, 290, 640, 427)),
    "wood": ("coffee", (440, 0, 600, 240)),
}
BLOCKS = (3, 2)  # of a region, along its longer and its shorter side
SIDE = (36, 48)  # of a crop, in pixels
GAIN = 0.35  # colours are scaled at random by up to this, so that colour alone does not tell the classes
PATTERN = "(.+)--"  # what in a file's name tells its block


def blocks_of(name: str) -> list[np.ndarray]:
    """The blocks of a region, which do not overlap."""
    source, box = REGIONS[name]
    region = np.asarray(photograph(source).convert("RGB").crop(box))
    longer = int(np.argmax(region.shape[:2]))
    strips = np.array_split(region, BLOCKS[0], axis=longer)
    return [block for strip in strips for block in np.array_split(strip, BLOCKS[1], axis=1 - longer)]


def write_regions(root: Path, count: int, seed: int = 0) -> Path:
    """ROOT/<class>/<class>-<block>--<number>.png, ``count`` crops of each block; the same for the same seed."""
    for label, name in enumerate(REGIONS):
        for place, block in enumerate(blocks_of(name)):
            generator = np.random.default_rng([seed, label, place])
            for number in range(count):
                crop = Image.fromarray(_crop(block, generator))
                path = root / name / f"{name}-{place}--{number:02d}.png"
                write_atomically(path, partial(crop.save, format="PNG"))
    return root


def _crop(block: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A square at a random place, each colour scaled at random."""
    side = int(generator.integers(SIDE[0], SIDE[1] + 1))
    top, left = (int(generator.integers(length - side + 1)) for length in block.shape[:2])
    crop = block[top : top + side, left : left + side] * generator.uniform(1 - GAIN, 1 + GAIN, 3)
    return crop.clip(0, 255).astype(np.uint8)
