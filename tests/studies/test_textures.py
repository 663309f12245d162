"""The demo's pictures."""

import numpy as np
from PIL import Image
from studies.textures import CLASSES, SPLITS, half, mosaic, photograph, random_crop, write_crops


def test_halves_are_disjoint_and_together_the_photograph():
    for name in CLASSES:
        assert np.array_equal(np.concatenate([half(name, split) for split in SPLITS], axis=1), photograph(name))


def test_crops_have_no_blank_corners_and_no_fixed_brightness():
    generator = np.random.default_rng(0)
    crops = [np.asarray(random_crop(half("brick", "train") // 2 + 100, 64, generator)) for _ in range(20)]
    assert all(crop.shape == (64, 64, 3) for crop in crops)
    # A blank corner of the rotated square would be far darker than the rest, which is never below 100.
    darkest = [(crop.astype(float).min() - crop.mean()) / crop.std() for crop in crops]
    assert min(darkest) > -4
    assert np.std([crop.mean() for crop in crops]) > 5


def test_written_crops_are_the_same_for_the_same_seed(tmp_path):
    for run, seed in [("a", 0), ("b", 0), ("c", 1)]:
        write_crops(tmp_path / run, {"train": 2, "val": 1}, size=32, seed=seed)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.png"))
    assert len(files) == 3 * (2 + 1)
    pixels = {run: [np.asarray(Image.open(tmp_path / run / f)) for f in files] for run in "abc"}
    assert all(np.array_equal(a, b) for a, b in zip(pixels["a"], pixels["b"], strict=True))
    assert not any(np.array_equal(a, c) for a, c in zip(pixels["a"], pixels["c"], strict=True))


def test_mosaic_is_half_and_half():
    picture = np.asarray(mosaic("brick", "grass", 64, np.random.default_rng(0)))
    generator = np.random.default_rng(0)
    brick, grass = (np.asarray(random_crop(half(n, "val"), 64, generator)) for n in ("brick", "grass"))
    assert np.array_equal(picture[:, :32], brick[:, :32]) and np.array_equal(picture[:, 32:], grass[:, 32:])
