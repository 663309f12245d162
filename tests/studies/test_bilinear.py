"""The comparisons of bilinear pools, and the crops they are made on."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from studies import comparison
from studies.bilinear import SECTIONS, main, section_table
from studies.comparison import ComparisonRecipe, ComparisonRun, build, train
from studies.texture_crops import classes_of, crops, halves, shipped_classes
from studies.textures import photograph

from covpool_plugins.command_line import run_tool
from covpool_plugins.errors import OptionError

TINY = ComparisonRecipe(size=32, per_class=4, test_per_class=2, epochs=1)
CONTENDERS = list(dict.fromkeys(contender for section in SECTIONS.values() for contender in section.values()))


def write_classes(root, counts, size=(120, 120)):
    """Folders of random pictures, so many in each."""
    generator = np.random.default_rng(0)
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


@pytest.mark.parametrize("contender", CONTENDERS, ids=str)
def test_every_contender_learns_from_the_same_network(contender):
    model = build(contender, 4, seed=3)
    first = next(model.parameters())
    assert torch.equal(first, next(build(SECTIONS["aggregation"]["sum"], 4, seed=3).parameters()))
    model(torch.randn(6, 1, 64, 64)).logsumexp(dim=1).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert first.grad.abs().sum() > 0


def test_the_classifier_has_its_own_rate():
    for contender in (SECTIONS["networks"]["[D+M]"], SECTIONS["aggregation"]["sum"]):
        model = build(contender, 4, seed=0)
        rest, classifier = comparison._groups(model, TINY)
        assert [p.shape[0] for p in classifier["params"]] == [4, 4] and classifier["lr"] == TINY.classifier_rate
        assert len(rest["params"]) + 2 == len(list(model.parameters()))


def test_training_learns_and_follows_its_seed(tmp_path):
    # Stripes that lie and stripes that stand would be one class when turned: these differ in width.
    for name, width in (("narrow", 2), ("wide", 9)):
        (tmp_path / name).mkdir()
        stripes = 255 * (np.arange(200) // width % 2)
        Image.fromarray(np.tile(stripes, (100, 1)).astype(np.uint8)).save(tmp_path / name / "stripes.png")
    recipe = ComparisonRecipe(str(tmp_path), size=32, per_class=24, test_per_class=10, epochs=6)
    run, again, other = (train(recipe, SECTIONS["aggregation"]["sum"], seed) for seed in (0, 0, 1))
    assert run.accuracy > 90
    assert (run.accuracy, run.loss) == (again.accuracy, again.loss) and run.loss != other.loss


def test_shipped_classes_are_halves_of_photographs():
    found = shipped_classes()
    assert len(found) >= 9
    for photos in found.values():
        assert all(len(photos[split]) == 1 and photos[split][0].ndim == 2 for split in ("train", "val"))
    assert np.array_equal(np.concatenate([*found["brick"]["train"], *found["brick"]["val"]], 1), photograph("brick"))


@pytest.mark.parametrize("count, training, testing", [(2, 1, 1), (3, 2, 1), (7, 5, 2)])
def test_pictures_of_a_folder_are_for_training_or_for_testing(tmp_path, count, training, testing):
    found = classes_of(write_classes(tmp_path, {"b": count, "a": 1}))
    assert list(found) == ["a", "b"]
    assert (len(found["b"]["train"]), len(found["b"]["val"])) == (training, testing)
    pictures = [photo.tobytes() for photos in found["b"].values() for photo in photos]
    assert len(set(pictures)) == count
    assert [found["a"][split][0].shape for split in ("train", "val")] == [(120, 60), (120, 60)]


def test_crops():
    classes = {name: halves(photograph(name)) for name in ("brick", "grass")}
    x, labels = crops(classes, "train", 12, 32, 0.25, seed=0)
    assert x.shape == (24, 1, 32, 32) and x.dtype == torch.float32 and labels.tolist() == [0] * 12 + [1] * 12
    assert abs(float(x.mean())) < 0.5 and 0.5 < float(x.std()) < 1.5
    again, other, test = (
        crops(classes, split, 12, 32, 0.25, seed)[0] for split, seed in (("train", 0), ("train", 1), ("val", 0))
    )
    assert torch.equal(x, again) and not torch.equal(x, other) and not torch.equal(x, test)
    clean = crops(classes, "train", 12, 32, 0.0, seed=0)[0]
    assert float((x[0] - clean[0]).std()) == pytest.approx(0.25, rel=0.1)


def test_table_compares_seed_by_seed():
    rows = SECTIONS["power"]
    runs = [
        ComparisonRun(str(contender), "photographs", seed, 50.0 + 10 * seed + place, 0.1, 1234)
        for seed in range(3)
        for place, contender in enumerate(rows.values())
    ]
    lines = section_table(
        "power", runs, {str(c): 2.0 for c in rows.values()}, {str(next(iter(rows.values()))): 0.5}
    ).splitlines()
    assert len(lines) == 2 + len(rows)
    assert "| 60.0 ± 10.0 | 50.0 to 70.0 | - | 2.0 | 0.50 | 1 234 |" in lines[2]
    assert "| 61.0 ± 10.0 | 51.0 to 71.0 | +1.0 ± 0.0 | 2.0 | - |" in lines[3]


def test_command_line(tmp_path, capsys):
    images = write_classes(tmp_path / "images", {"a": 2, "b": 2})
    options = ["--epochs", "1", "--size", "32", "--per-class", "2", "--test-per-class", "2", "--workers", "1"]
    main(
        [
            *options,
            "--seeds",
            "2",
            "--sections",
            "networks",
            "--images",
            str(images),
            "--json",
            str(tmp_path / "n.json"),
        ]
    )
    said = capsys.readouterr().out
    assert "2 classes, by chance 50.0 %; 2 seeds; a, b" in said
    assert [line.split(" |")[0] for line in said.splitlines() if line.startswith(("| [D", "| B-"))] == [
        "| B-CNN (`bcnn`)",
        "| [D+D]",
        "| [D+M]",
    ]
    numbers = json.loads((tmp_path / "n.json").read_text())
    assert len(numbers["runs"]) == 2 * len(SECTIONS["networks"]) and numbers["classes"] == ["a", "b"]
    assert set(numbers["networks_ms"]) == {str(c) for c in SECTIONS["networks"].values()}
    assert set(numbers["pools_ms"]) == {str(c) for c in SECTIONS["networks"].values() if c.head}


@pytest.mark.slow
def test_several_workers_give_the_same():
    jobs = [(TINY, contender, seed) for seed in range(2) for contender in CONTENDERS[:2]]
    alone, together = (
        [(run.contender, run.seed, run.accuracy, run.loss) for run in comparison.train_all(jobs, workers)]
        for workers in (1, 2)
    )
    assert alone == together and len(alone) == 4


@pytest.mark.parametrize(
    "counts, size, message",
    [
        ({"a": 2}, (120, 120), "must hold two folders or more, one for each class, found 1"),
        ({"a": 2, "b": 0}, (120, 120), r"/b' holds no pictures"),
        ({"a": 2, "b": 2}, (40, 120), "pictures of 'a' must leave 46 pixels a side, got 40x120"),
    ],
)
def test_bad_folders(tmp_path, counts, size, message):
    folder = write_classes(tmp_path, counts, size)
    with pytest.raises(OptionError, match=message) as caught:
        crops(classes_of(folder), "train", 2, 32, 0.0, 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--seeds", "0"], "--seeds must be a positive integer, got 0"),
        (["--per-class", "-1"], "--per-class must be a positive integer, got -1"),
        (["--images", "no/such"], "--images no/such: no such folder"),
    ],
)
def test_bad_options_are_one_line(options, message, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bilinear", *options])
    with pytest.raises(SystemExit) as ended:
        run_tool(main)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and message in said and said.count("\n") == 1
