"""The comparison of all heads."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from studies import comparison
from studies.comparison import (
    ComparisonRecipe,
    ComparisonRun,
    Contender,
    build,
    condition_numbers,
    train,
)
from studies.heads import FAILING, HYBRID, contenders, main, table
from studies.sources import SOURCES, source

from covpool_plugins import list_heads
from covpool_plugins.command_line import run_tool
from covpool_plugins.linalg import resolve_method
from covpool_plugins.pooling import Pool

TINY = ComparisonRecipe("digits", size=32, per_class=4, test_per_class=2, epochs=2)


def pool_of(model):
    return next(module for module in model.modules() if isinstance(module, Pool))


def test_every_head_and_the_hybrid_protocol_are_compared():
    rows = contenders(list_heads())
    assert [row.head for row in rows if not row.switch] == list_heads()
    assert [row for row in rows if row.switch] == [HYBRID]
    assert rows.index(HYBRID) == rows.index(Contender("isqrt")) + 1


@pytest.mark.parametrize("name", SOURCES)
def test_sources(name):
    found = source(name)
    x, labels = found.draw("train", 3, 32, 0.25, 0)
    assert x.shape == (3 * len(found.classes), 1, 32, 32) and x.dtype == torch.float32
    assert labels.bincount().tolist() == [3] * len(found.classes)
    parts = (("train", 0), ("train", 1), ("val", 0))
    again, other, test = (found.draw(split, 3, 32, 0.25, seed)[0] for split, seed in parts)
    assert torch.equal(x, again) and not torch.equal(x, other) and not torch.equal(x, test)


def test_training_and_test_digits_have_nothing_in_common():
    training, test = (source("digits").draw(split, 40, 8, 0.0, 0)[0].flatten(1) for split in ("train", "val"))
    assert (torch.cdist(training, test) > 0).all()


def test_more_digits_than_there_are():
    with pytest.raises(ValueError, match=r"there are \d+ val pictures of digit 0, asked for 100"):
        source("digits").draw("val", 100, 8, 0.0, 0)


def test_the_hybrid_protocol_changes_the_method_half_way(monkeypatch):
    methods, train_epoch = [], comparison.train_epoch

    def remembering(model, *rest):
        methods.append(pool_of(model).method)
        return train_epoch(model, *rest)

    monkeypatch.setattr(comparison, "train_epoch", remembering)
    train(TINY, HYBRID, 0)
    assert methods == [resolve_method("isqrt"), resolve_method("svdpade")]


def test_condition_numbers_are_those_of_the_covariance_and_of_its_root():
    x = source("digits").draw("val", 4, 64, 0.25, 0)[0]
    before, after = condition_numbers(build(Contender("exact"), 10, 0), x)
    assert after == pytest.approx(before**0.5, rel=1e-2)
    unchanged = condition_numbers(build(Contender("powcov", (("p", 1.0),)), 10, 0), x)
    assert unchanged[1] == pytest.approx(unchanged[0], rel=1e-3)
    assert condition_numbers(build(Contender("gap"), 10, 0), x)[1] is None


def test_a_gradient_that_is_not_finite_is_a_failure():
    """The covariance of one position is zero: its eigenvalues are equal, and PyTorch's gradient divides by 0."""
    one = replace(TINY, size=8)
    assert train(one, FAILING[0], 0).failed
    assert not train(one, Contender("svdpade", (("compute", "float32"),)), 0).failed


def test_table_counts_failures():
    facts = dict(pictures="digits", loss=0.1, parameters=5)
    runs = [ComparisonRun("a", seed=0, accuracy=50.0, condition=1e4, condition_after=1e2, **facts)]
    runs += [ComparisonRun("a", seed=1, accuracy=None, **facts), ComparisonRun("b", seed=0, accuracy=70.0, **facts)]
    lines = table(runs, {"a": 2.0}, {"a": 3.0}).splitlines()
    assert lines[2:] == [
        "| `a` | 50.0 | 1 of 2 | 2.0 | 3.0 | 1e4 → 1e2 |",
        "| `b` | 70.0 | 0 of 1 | - | - | - |",
    ]


def test_command_line(tmp_path, capsys):
    options = ["--epochs", "1", "--size", "32", "--per-class", "2", "--test-per-class", "2", "--workers", "1"]
    files = ["--json", str(tmp_path / "n.json"), "--plot", str(tmp_path / "p.png")]
    main([*options, *files, "--seeds", "2", "--heads", "gap", "isqrt"])
    said = capsys.readouterr().out
    assert "photographs: 9 classes, by chance 11.1 %; 2 seeds" in said
    assert [line.split(" |")[0] for line in said.splitlines() if line.startswith("| `")] == [
        "| `gap`",
        "| `isqrt`",
        "| `isqrt, then svdpade`",
    ]
    numbers = json.loads((tmp_path / "n.json").read_text())
    assert len(numbers["runs"]) == 2 * 2 * 3 and set(numbers["kept_mb"]) == {"gap", "isqrt"}
    assert (tmp_path / "p.png").stat().st_size > 1000


@pytest.mark.parametrize(
    "options, message",
    [
        (["--seeds", "0"], "--seeds must be a positive integer, got 0"),
        (["--heads", "svdpad"], "invalid choice: 'svdpad'"),
        (["--images", "no/such"], "--images no/such: no such folder"),
        (["--plot", "folder.png"], "folder.png is a folder; name a file"),
        (["--plot", "plot.txt"], "the suffix of a plot must be one of .png, .svg, .pdf, got '.txt'"),
        (["--json", "file.txt/a.json"], "file.txt is there and is no folder"),
        (["--failures", "--heads", "gap"], "--failures has rows of its own"),
    ],
)
def test_bad_options_are_one_line(options, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("folder.png").mkdir()
    Path("file.txt").touch()
    monkeypatch.setattr(sys, "argv", ["compare.py", *options])
    with pytest.raises(SystemExit) as ended:
        run_tool(main)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and message in said and said.count("\n") == 1
