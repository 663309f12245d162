"""Clips of moving photographs, and the comparison of heads on them."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from studies.motion import (
    HEADS,
    MotionRecipe,
    MotionRun,
    build,
    compare,
    evaluate,
    main,
    table,
    train,
)
from studies.moving_photos import (
    MOTIONS,
    TEST_PHOTOS,
    TRAINING_PHOTOS,
    batches,
    moving_clip,
    photos_of,
    shipped_photos,
)

import covpool_plugins
from covpool_plugins.command_line import run_tool
from covpool_plugins.errors import OptionError

TINY = MotionRecipe(channels=8, reduce_channels=4, size=32, frames=4, batch_size=4, steps=2, test_clips=8)


def clip(motion, seed=0, size=48, frames=8):
    return moving_clip(photos()[0], motion, size, frames, torch.Generator().manual_seed(seed))


def photos(size=48):
    return shipped_photos(size)[0][:2]


def shift_between(first, second, most=8):
    """By how many pixels (right, down) the middle of the first picture is found in the second."""
    middle = first[:, most:-most, most:-most]
    differences = {
        (right, down): (
            (
                second[:, most + down : second.shape[1] - most + down, most + right : second.shape[2] - most + right]
                - middle
            )
            ** 2
        )
        .mean()
        .item()
        for right in range(-most + 1, most)
        for down in range(-most + 1, most)
    }
    return min(differences, key=differences.get)


@pytest.mark.parametrize("pair", [MOTIONS[i : i + 2] for i in range(0, len(MOTIONS), 2)])
def test_the_motions_of_a_pair_are_each_other_backwards(pair):
    forwards, backwards = (clip(motion) for motion in pair)
    assert forwards.shape == (8, 3, 48, 48)
    assert torch.allclose(forwards.flip(0), backwards, atol=1e-4)
    assert (forwards - backwards).abs().mean() > 0.1
    assert abs(forwards.mean()) < 1e-4 and abs(forwards.std() - 1) < 1e-4


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("motion, right, down", [("left", -1, 0), ("right", 1, 0), ("up", 0, -1), ("down", 0, 1)])
def test_pictures_go_where_the_motion_says(motion, right, down, seed):
    found = clip(motion, seed, frames=16)
    shifts = [shift_between(a, b) for a, b in zip(found[:-1:3], found[1::3], strict=True)]
    assert all(np.sign(shift).tolist() == [right, down] for shift in shifts)


def test_nearer_pictures_are_enlarged_and_clockwise_ones_turn():
    found = clip("nearer")
    enlarged = torch.nn.functional.interpolate(found[:1, :, 8:-8, 8:-8], 48, mode="bilinear")[0]
    assert (enlarged - found[3]).abs().mean() < (enlarged - found[0]).abs().mean()
    # From 45 to 90 degrees over seven steps: a quarter turn clockwise brings the first frame nearer to the last.
    found = clip("clockwise", seed=1)[:, :, 12:36, 12:36]
    turned, other = torch.rot90(found[0], -1, (1, 2)), torch.rot90(found[0], 1, (1, 2))
    assert (turned - found[-1]).abs().mean() < (other - found[-1]).abs().mean()


def test_training_and_test_photographs_are_others():
    assert not set(TRAINING_PHOTOS) & set(TEST_PHOTOS)
    training, test = shipped_photos(32)
    assert [len(training), len(test)] == [len(TRAINING_PHOTOS), len(TEST_PHOTOS)]
    assert all(min(photo.shape[1:]) == 4 * 32 and photo.shape[0] == 3 for photo in training + test)


def test_batches_follow_their_seed():
    first, again, other = (next(batches(photos(32), 32, 4, 16, seed)) for seed in (0, 0, 1))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])
    assert first[0].shape == (16, 4, 3, 32, 32) and set(first[1].tolist()) <= set(range(len(MOTIONS)))


def test_photographs_of_a_folder(tmp_path):
    generator = np.random.default_rng(0)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "folder").mkdir()
    for number, shape in enumerate([(90, 60, 3), (40, 300, 3), (50, 50)]):
        with pytest.raises(OptionError, match=f"must hold three pictures or more, found {number}"):
            photos_of(tmp_path, 32)
        Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)).save(tmp_path / f"{number}.png")
    training, test = photos_of(tmp_path, 32)
    assert [photo.shape for photo in training] == [(3, 192, 128), (3, 128, 960)]
    assert [photo.shape for photo in test] == [(3, 128, 128)]


def test_every_head_starts_from_the_same_backbone():
    states = [build(TINY, head, seed=1).state_dict() for head in HEADS]
    backbone = [key for key in states[0] if not key.startswith("head.")]
    assert len(backbone) > 20
    assert all(torch.equal(state[key], states[0][key]) for state in states for key in backbone)
    assert not torch.equal(build(TINY, "gap", seed=2).conv1[0].weight, states[0]["conv1.0.weight"])


def test_the_mean_over_frames_does_not_see_the_order():
    model = build(TINY, "gap", seed=0).eval()
    x, _ = next(batches(photos(32), 32, 4, 4, 0))
    assert torch.allclose(model(x), model(x.flip(1)), atol=1e-5)


class Knowing(torch.nn.Module):
    """Tells the motion from the labels that it was given."""

    def __init__(self, labels, off=0):
        super().__init__()
        self.labels = iter(labels)
        self.off = off

    def forward(self, x):
        return torch.nn.functional.one_hot((next(self.labels) ^ self.off) % len(MOTIONS), len(MOTIONS)).float()


@pytest.mark.parametrize("off, expected", [(0, (100, 100)), (1, (0, 100)), (2, (0, 0))])
def test_accuracy_and_that_of_pairs(monkeypatch, off, expected):
    drawn = list(zip(range(3), batches(photos(32), 32, 4, 8, 5), strict=False))
    monkeypatch.setattr("studies.motion.batches", lambda *arguments: iter([batch for _, batch in drawn]))
    model = Knowing([labels for _, (_, labels) in drawn], off)
    assert evaluate(MotionRecipe(test_clips=20), model, photos(32)) == expected


def test_comparison(tmp_path, capsys):
    runs = compare(TINY, HEADS, 2, tmp_path / "numbers.json")
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert [(run["head"], run["seed"]) for run in numbers["runs"]] == [(h, s) for s in range(2) for h in HEADS]
    assert numbers["recipe"]["steps"] == 2 and all(0 <= run.accuracy <= run.pair_accuracy <= 100 for run in runs)
    assert table(runs) in capsys.readouterr().out
    again = train(TINY, "temporal", 0, shipped_photos(TINY.size))
    assert (again.accuracy, again.loss) == next((r.accuracy, r.loss) for r in runs if r.head == "temporal")


def test_table():
    runs = [MotionRun("gap", seed, accuracy, 50, 1.0, 10) for seed, accuracy in enumerate([20, 30, 40])]
    assert table(runs).splitlines()[-1] == "| gap | 30.0 ± 10.0 % | 20.0 to 40.0 % | 50.0 % | 10 |"
    assert table(runs[:1]).splitlines()[-1] == "| gap | 20.0 % | 20.0 to 20.0 % | 50.0 % | 10 |"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--steps", "0"], "--steps must be a positive integer, got 0"),
        (["--heads", "nothing"], "invalid choice: 'nothing'"),
        (["--images", "/nowhere"], "--images /nowhere: no such folder"),
    ],
)
def test_bad_arguments_are_one_line(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["motion", *arguments])
    with pytest.raises(SystemExit) as caught:
        run_tool(main)
    said = capsys.readouterr().err
    assert caught.value.code == 2 and message in said and len(said.splitlines()) == 1


@pytest.mark.slow
def test_command(tmp_path):
    options = ["--steps", "2", "--seeds", "1", "--size", "32", "--frames", "4", "--out", str(tmp_path / "numbers.json")]
    command = [sys.executable, "-m", "studies.motion", *options]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0 and "| temporal |" in run.stdout, run.stderr
    assert len(json.loads((tmp_path / "numbers.json").read_text())["runs"]) == len(HEADS)


def test_heads_are_heads():
    assert set(HEADS) <= set(covpool_plugins.list_heads())
