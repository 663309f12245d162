"""Clips of moving photographs, and the comparison of heads on them."""

import json
from dataclasses import dataclass

import compare
import numpy as np
import pytest
import torch
from PIL import Image
from studies import motion
from studies.motion import HEADS, MotionRecipe, MotionRun, build, evaluate, table, train
from studies.moving_photos import (
    MOTIONS,
    SHIPPED,
    batches,
    folder_photos,
    moving_clip,
    shipped_photos,
)

from covpool_plugins.errors import OptionError


@dataclass(frozen=True)
class TinyRecipe(MotionRecipe):
    channels: int = 8
    reduce_channels: int = 4
    size: int = 32
    frames: int = 4
    batch_size: int = 4
    steps: int = 2
    test_clips: int = 8


TINY = TinyRecipe()


@pytest.fixture(scope="module")
def photos():
    return shipped_photos(48)


def clip(photos, motion, seed=0, frames=8):
    return moving_clip(photos["train"][0], motion, 48, frames, torch.Generator().manual_seed(seed))


def shift_between(first, second, most=8):
    """By how many pixels (right, down) the middle of the first picture is found in the second."""
    middle = first[:, most:-most, most:-most]
    windows = second.unfold(1, middle.shape[1], 1).unfold(2, middle.shape[2], 1).permute(1, 2, 0, 3, 4)
    differences = (windows - middle).square().mean((2, 3, 4))
    down, right = divmod(int(differences.argmin()), differences.shape[1])
    return right - most, down - most


@pytest.mark.parametrize("pair", [MOTIONS[i : i + 2] for i in range(0, len(MOTIONS), 2)])
def test_the_motions_of_a_pair_are_each_other_backwards(pair, photos):
    forwards, backwards = (clip(photos, motion) for motion in pair)
    assert forwards.shape == (8, 3, 48, 48)
    assert torch.allclose(forwards.flip(0), backwards, atol=1e-4)
    assert (forwards - backwards).abs().mean() > 0.1
    assert abs(forwards.mean()) < 1e-4 and abs(forwards.std() - 1) < 1e-4


@pytest.mark.parametrize("motion, right, down", [("left", -1, 0), ("right", 1, 0), ("up", 0, -1), ("down", 0, 1)])
def test_pictures_go_where_the_motion_says(motion, right, down, photos):
    for seed in range(2):
        frames = clip(photos, motion, seed, frames=16)
        shifts = [shift_between(a, b) for a, b in zip(frames[:-1:3], frames[1::3], strict=True)]
        assert all(np.sign(shift).tolist() == [right, down] for shift in shifts)


def test_nearer_pictures_are_enlarged_and_clockwise_ones_turn(photos):
    frames = clip(photos, "nearer")
    enlarged = torch.nn.functional.interpolate(frames[:1, :, 8:-8, 8:-8], 48, mode="bilinear")[0]
    assert (enlarged - frames[3]).abs().mean() < (enlarged - frames[0]).abs().mean()
    # From 45 to 90 degrees over seven steps: a quarter turn clockwise brings the first frame nearer to the last.
    frames = clip(photos, "clockwise", seed=1)[:, :, 12:36, 12:36]
    turned, other = torch.rot90(frames[0], -1, (1, 2)), torch.rot90(frames[0], 1, (1, 2))
    assert (turned - frames[-1]).abs().mean() < (other - frames[-1]).abs().mean()


def test_training_and_test_photographs_are_different(photos):
    assert not set(SHIPPED["train"]) & set(SHIPPED["val"])
    assert {split: len(photos[split]) for split in photos} == {split: len(names) for split, names in SHIPPED.items()}
    assert all(min(photo.shape[1:]) == 4 * 48 and photo.shape[0] == 3 for photo in photos["train"] + photos["val"])


def test_photographs_of_a_folder(tmp_path):
    generator = np.random.default_rng(0)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "folder").mkdir()
    for count, shape in enumerate([(90, 60, 3), (40, 300, 3), (50, 50)]):
        with pytest.raises(OptionError, match=f"must hold three pictures or more, found {count}"):
            folder_photos(tmp_path, 32)
        Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)).save(tmp_path / f"{count}.png")
    photos = folder_photos(tmp_path, 32)
    assert [photo.shape for photo in photos["train"]] == [(3, 192, 128), (3, 128, 960)]
    assert [photo.shape for photo in photos["val"]] == [(3, 128, 128)]


def test_batches_follow_their_seed(photos):
    first, again, other = (next(batches(photos["val"], 32, 4, 8, seed)) for seed in (0, 0, 1))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])
    assert first[0].shape == (8, 4, 3, 32, 32) and set(first[1].tolist()) <= set(range(len(MOTIONS)))


def test_the_mean_over_frames_does_not_see_the_order(photos):
    model = build(TINY, "gap", seed=0).eval()
    x, _ = next(batches(photos["val"], 32, 4, 4, 0))
    assert torch.allclose(model(x), model(x.flip(1)), atol=1e-5)


@pytest.mark.parametrize("off, expected", [(0, (100, 100)), (1, (0, 100)), (2, (0, 0))])
def test_accuracy_and_that_of_pairs(monkeypatch, off, expected):
    labels = torch.arange(24) % len(MOTIONS)
    monkeypatch.setattr(motion, "predict", lambda model, clips: ((labels ^ off) % len(MOTIONS), labels))
    assert evaluate(TINY, None, []) == expected


def test_as_many_clips_are_tested_as_asked_for(photos, monkeypatch):
    monkeypatch.setattr(motion, "TEST_BATCH", 3)
    seen = []
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(len(MOTIONS)))
    model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    evaluate(TINY, model, photos["val"])
    assert seen == [3, 3, 3]


def test_table():
    runs = [MotionRun("gap", seed, accuracy, 50, 1.0, 10) for seed, accuracy in enumerate([20, 30, 40])]
    assert table(runs).splitlines()[-1] == "| gap | 30.0 ± 10.0 % | 20.0 to 40.0 % | 50.0 % | 10 |"
    assert table(runs[:1]).splitlines()[-1] == "| gap | 20.0 % | 20.0 to 20.0 % | 50.0 % | 10 |"


def test_command_line(tmp_path, capsys, monkeypatch, photos):
    monkeypatch.setattr(motion, "MotionRecipe", TinyRecipe)
    monkeypatch.setattr(motion, "shipped_photos", lambda size: photos)
    compare.main(["motion", "--steps", "2", "--seeds", "2", "--json", str(tmp_path / "n.json")])
    printed = capsys.readouterr().out
    assert "8 motions, by chance 12.5 %" in printed and all(f"| {head} |" in printed for head in HEADS)
    numbers = json.loads((tmp_path / "n.json").read_text())
    runs = [MotionRun(**run) for run in numbers["runs"]]
    assert [(run.seed, run.head) for run in runs] == [(seed, head) for seed in range(2) for head in HEADS]
    assert numbers["recipe"]["steps"] == 2 and all(0 <= run.accuracy <= run.pair_accuracy <= 100 for run in runs)
    again = train(photos, TINY, "temporal", 0)
    assert (again.accuracy, again.loss) == next((run.accuracy, run.loss) for run in runs if run.head == "temporal")
