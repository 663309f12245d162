"""The pictures that are trained on: crops of photographs, digits, folders."""

import numpy as np
import pytest
import torch
from PIL import Image
from studies.photographs import (
    SOURCES,
    SPLITS,
    TEXTURES,
    crops,
    folder_classes,
    photograph,
    random_crop,
    shipped_classes,
    shipped_halves,
    source,
    write_crops,
)

from covpool_plugins.errors import OptionError


def write_classes(root, counts, size=(120, 120)):
    """Folders of random pictures, so many in each."""
    generator = np.random.default_rng(0)
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def test_shipped_classes_are_disjoint_halves_of_photographs():
    classes = shipped_classes()
    assert len(classes) >= 9
    for name, photos in classes.items():
        (left,), (right,) = (photos[split] for split in SPLITS)
        assert np.array_equal(np.concatenate([left, right], 1), np.asarray(photograph(name).convert("L")))


@pytest.mark.parametrize("count, training, testing", [(1, 1, 1), (2, 2, 2), (3, 2, 1), (7, 5, 2)])
def test_pictures_of_a_folder_are_for_training_or_for_testing(tmp_path, count, training, testing):
    write_classes(tmp_path, {"b": count, "a": 1})
    (tmp_path / "a" / "notes.txt").write_text("no picture")
    classes = folder_classes(tmp_path)
    assert list(classes) == ["a", "b"]
    assert [len(classes["b"][split]) for split in SPLITS] == [training, testing]
    assert len({photo.tobytes() for photos in classes["b"].values() for photo in photos}) == training + testing
    assert classes["b"]["train"][0].shape == ((120, 60) if count < 3 else (120, 120))


@pytest.mark.parametrize(
    "counts, size, message",
    [
        ({"a": 3}, (120, 120), "must hold two folders or more, one for each class, found 1"),
        ({"a": 3, "b": 0}, (120, 120), r"/b' holds no pictures"),
        ({"a": 3, "b": 3}, (40, 120), "pictures of 'a' must leave 46 pixels a side, got 40x120"),
    ],
)
def test_bad_folders(tmp_path, counts, size, message):
    folder = write_classes(tmp_path, counts, size)
    with pytest.raises(OptionError, match=message):
        crops(folder_classes(folder), "train", 2, 32, 0.0, 0)


def test_crops_have_no_blank_corners_and_no_fixed_brightness():
    generator = np.random.default_rng(0)
    photo = shipped_halves("brick")["train"] // 2 + 100
    pictures = [np.asarray(random_crop(photo, 64, generator)) for _ in range(20)]
    assert all(picture.shape == (64, 64, 3) for picture in pictures)
    # A blank corner of the rotated square would be far darker than the rest, which is never below 100.
    darkest = [(picture.astype(float).min() - picture.mean()) / picture.std() for picture in pictures]
    assert min(darkest) > -4
    assert np.std([picture.mean() for picture in pictures]) > 5


@pytest.mark.parametrize("name", SOURCES)
def test_sources(name):
    """The same for the same seed, another for another seed or split; noise is in deviations of a picture."""
    pictures = source(name)
    x, labels = pictures.draw("train", 3, 32, 0.25, 0)
    assert x.shape == (3 * len(pictures.classes), 1, 32, 32) and x.dtype == torch.float32
    assert labels.bincount().tolist() == [3] * len(pictures.classes)
    parts = (("train", 0), ("train", 1), ("val", 0))
    again, other, test = (pictures.draw(split, 3, 32, 0.25, seed)[0] for split, seed in parts)
    assert torch.equal(x, again) and not torch.equal(x, other) and not torch.equal(x, test)
    clean = pictures.draw("train", 3, 32, 0.0, 0)[0]
    assert 0.5 < clean.std() < 1.5
    assert float((x[0] - clean[0]).std()) == pytest.approx(
        0.25 * (float(clean.std()) if name == "digits" else 1), rel=0.1
    )


def test_digits_are_divided_and_run_out():
    training, test = (source("digits").draw(split, 40, 8, 0.0, 0)[0].flatten(1) for split in SPLITS)
    assert (torch.cdist(training, test) > 0).all()
    with pytest.raises(ValueError, match=r"there are \d+ val pictures of digit 0, asked for 100"):
        source("digits").draw("val", 100, 8, 0.0, 0)


def test_written_crops_are_the_same_for_the_same_seed(tmp_path):
    for run, seed in [("a", 0), ("b", 0), ("c", 1)]:
        write_crops(tmp_path / run, {"train": 2, "val": 1}, size=32, seed=seed)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.png"))
    assert len(files) == len(TEXTURES) * (2 + 1)
    pixels = {run: [np.asarray(Image.open(tmp_path / run / file)) for file in files] for run in "abc"}
    assert all(np.array_equal(a, b) for a, b in zip(pixels["a"], pixels["b"], strict=True))
    assert not any(np.array_equal(a, c) for a, c in zip(pixels["a"], pixels["c"], strict=True))
