"""The command lines: what they print, write and refuse, and what the figures of the benchmark mean."""

import json
import math
import re
import sys
from pathlib import Path

import benchmark
import compare
import pytest
import torch
from studies import scaling
from studies.figures import number
from studies.measure import bytes_saved, correlated_features, time_interleaved
from studies.modes import COMPARISONS, MODES, Mode, run_mode
from studies.operators import OPERATOR_TABLES, count_products
from studies.roots import features_section, given_inverse_section, given_root_section
from studies.sections import Contender, Section, run_section

import covpool_plugins.linalg as linalg
from covpool_plugins.command_line import run_tool
from covpool_plugins.linalg import NewtonSchulz, list_methods, resolve_method
from covpool_plugins.pooling import list_pools
from covpool_plugins.tables import Table


def sections_of(file):
    """JSON without NaN."""
    return json.loads(file.read_text(), parse_constant=pytest.fail)["sections"]


def test_linalg_prints_and_writes(tmp_path, capsys):
    json_file = tmp_path / "new" / "figures.json"
    options = ["--channels", "8", "--positions", "5", "12", "--batch", "2", "--repeats", "1"]
    options += ["--methods", "svdpade", "isqrt"]
    benchmark.main(["linalg", *options, "--json", str(json_file)])
    printed = capsys.readouterr().out
    for section in sections_of(json_file):
        assert f"## {section['title']}" in printed
        for row in section["rows"]:
            assert f"| {row['contender']} |" in printed
            assert row["both"] > 0 and row["bytes_kept"] > 0
    assert [section["details"] for section in sections_of(json_file)[:2]] == [
        {"channels": 8, "positions": 5},
        {"channels": 8, "positions": 12},
    ]
    assert list(tmp_path.glob("**/.*")) == []


def test_networks_are_compared_with_average_pooling(tmp_path):
    options = ["--backbone", "test_resnet", "--heads", "svdpade", "--size", "64", "--batch", "2", "--repeats", "1"]
    benchmark.main(["network", *options, "--json", str(tmp_path / "f.json")])
    (section,) = sections_of(tmp_path / "f.json")
    assert [row["contender"] for row in section["rows"]] == ["gap, ours", "svdpade, ours"]
    assert section["rows"][0]["ratios"] == {"gap, ours": 1.0}


def test_scaling_draws_what_grows(tmp_path, monkeypatch):
    monkeypatch.setattr(scaling, "BASE", {"channels": 8, "positions": 12, "batch": 2})
    monkeypatch.setattr(scaling, "SWEEPS", {"channels": (4,), "positions": (6,), "batch": (1, 3)})
    json_file, plot = tmp_path / "figures.json", tmp_path / "figures.png"
    benchmark.main(["scaling", "--repeats", "1", "--json", str(json_file), "--plot", str(plot)])
    details = [section["details"] for section in sections_of(json_file)]
    sizes = [(d["channels"], d["positions"], d["batch"]) for d in details]
    assert sizes == [(4, 12, 2), (8, 6, 2), (8, 12, 1), (8, 12, 3)]
    for section in sections_of(json_file):
        assert {row["contender"] for row in section["rows"]} == set(scaling.LINES)
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("mode", ["pool", "head"])
def test_every_pool_is_measured(mode, tmp_path):
    options = ["--channels", "6", "--sides", "2", "--batch", "2", "--repeats", "1", "--json", str(tmp_path / "f")]
    benchmark.main([mode, *options])
    (section,) = sections_of(tmp_path / "f")
    assert section["left_out"] == {}
    measured = {row["label"]: row for row in section["rows"] if row["kind"] == "ours"}
    assert set(measured) == set(list_pools())
    assert all(row["both"] > 0 and row["gradient_error"] is None for row in section["rows"])
    assert measured["gap"]["ratios"]["gap, ours"] == 1.0


def test_every_method_is_measured():
    methods = {name: resolve_method(name) for name in list_methods()}
    result = run_section(features_section(8, 12, 2, methods), repeats=1)
    assert {row.label for row in result.rows} >= set(methods) and not result.left_out
    rows = {row.contender: row for row in result.rows}
    for row in rows.values():
        assert set(row.ratios) == set(result.against)
        if row.kind == "float64":  # the input's rounding is the only error against its own operator
            assert max(row.own_value_error or 0, row.own_gradient_error or 0) < 1e-6, row.contender
    assert rows["svdpade, mixed"].gradient_error < 1e-5 < rows["isqrt, float32"].gradient_error
    assert rows["isqrt, float32"].own_gradient_error < 1e-5
    assert rows["svdpade, mixed"].own_gradient_error is None


def test_given_covariances_have_right_gradients():
    root, inverse = (run_section(make(8, 2), repeats=1) for make in (given_root_section, given_inverse_section))
    assert all(row.gradient_error < 1e-5 and row.value_error < 1e-5 for row in root.rows)
    published, *ours = inverse.rows
    assert all(row.gradient_error < 1e-4 for row in ours)
    assert published.own_gradient_error < 1e-3 < published.gradient_error


def test_a_contender_that_fails_is_left_out_with_its_reason():
    def fails(X):
        raise RuntimeError("no\nluck")

    contenders = [Contender("double", "baseline", lambda X: 2 * X), Contender("broken", "float32", fails)]
    result = run_section(Section("title", contenders, torch.ones(2, 3)), repeats=1)
    assert [row.contender for row in result.rows] == ["double"]
    assert result.left_out == {"broken, float32": "no luck"} and "broken, float32: no luck" in result.markdown()


def test_repetitions_take_turns():
    calls = []
    functions = {name: lambda X, name=name: calls.append(name) or X * 2 for name in "ab"}
    X = torch.ones(2)
    times = time_interleaved(functions, X, dict.fromkeys("ab", X), repeats=9, title="")
    rounds = {"".join(calls[i : i + 2]) for i in range(0, len(calls), 2)}
    assert len(calls) == 20 and rounds == {"ab", "ba"}
    assert all(len(t.forward) == len(t.backward) == 9 for t in times.values())


def test_a_step_of_a_head_has_the_gradients_of_its_parameters():
    linear, gradients = torch.nn.Linear(3, 2), []
    linear.weight.register_hook(gradients.append)
    time_interleaved({"head": linear}, torch.ones(4, 3), {"head": torch.ones(4, 2)}, repeats=1, title="")
    assert len(gradients) == 2


def test_bytes_saved_count_a_storage_once_and_not_the_input():
    X = torch.ones(10)
    assert bytes_saved(lambda X: X * X, X) == 0
    assert bytes_saved(lambda X: (2 * X).square().exp(), X) == 2 * 40  # 2 X and the result
    assert bytes_saved(lambda X: (lambda Y: Y * Y[:5].sum() * Y)(2 * X), X) <= 3 * 40


def test_features_are_the_same_every_time_and_correlated():
    X = correlated_features(1, 8, 4000)
    assert torch.equal(X, correlated_features(1, 8, 4000)) and (X >= 0).all()
    channels = torch.corrcoef(X[0])
    neighbours = torch.corrcoef(torch.stack([X[0, 0, 1:], X[0, 0, :-1]]))
    assert (channels - torch.eye(8)).abs().max() > 0.3 and neighbours[0, 1] > 0.2


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_products_are_counted_as_they_run(steps):
    assert count_products(NewtonSchulz(iterations=steps)) == max(3 * (steps - 1), 1)


@pytest.mark.parametrize("name", OPERATOR_TABLES)
def test_docstrings_say_what_the_operators_mode_prints(name):
    documented = {}
    for line in getattr(linalg, name).__doc__.splitlines():
        label, *figures = re.split(r"\s{2,}", line.strip())
        documented[label] = figures
    rows = {label: figures for label, *figures in OPERATOR_TABLES[name].rows() if label in documented}
    assert rows
    for label, figures in rows.items():
        for printed, written in zip(figures, documented[label], strict=True):
            below_rounding = max(float(printed), float(written)) < 1e-13
            assert printed == written or below_rounding, (label, figures, documented[label])


def test_numbers():
    cases = [0.1, 0.0101, 0.92, 0.0009, 1e-15, 0.0, math.nan, 12.0, 512.3]
    assert [number(value) for value in cases] == ["0.10", "0.010", "0.92", "9e-4", "1e-15", "0.0", "nan", "12", "5e2"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("benchmark nothing", "invalid choice: 'nothing'"),
        ("benchmark linalg --batch 0", "must be an integer >= 1, got '0'"),
        ("benchmark linalg --device nowhere", "'nowhere' is not available"),
        ("benchmark linalg --methods nothing", "invalid choice: 'nothing'"),
        ("benchmark linalg --json folder.png", "folder.png is a folder; name a file"),
        ("benchmark pool --pools svdpad", "invalid choice: 'svdpad'"),
        ("benchmark whitening --methods zca", "invalid choice: 'zca'"),
        ("benchmark whitening --group-sizes 8 5", "--group-sizes must divide --channels 64, got 5"),
        ("benchmark network --backbone resnet9000", "resnet9000"),
        ("benchmark convergence --sizes 3", "invalid choice: 3"),
        ("compare nothing", "invalid choice: 'nothing'"),
        ("compare --seeds 0", "--seeds: must be an integer >= 1, got '0'"),
        ("compare --heads svdpad", "invalid choice: 'svdpad'"),
        ("compare --images no/such", "--images: no/such: no such folder"),
        ("compare --images folder.png", "must hold two folders or more"),
        ("compare --plot plot.txt", "plot.txt must end in .png or .svg or .pdf"),
        ("compare --json file.txt/a.json", "file.txt is there and is no folder"),
        ("compare --failures --heads gap", "--failures has rows of its own"),
        ("compare bilinear --per-class -1", "--per-class: must be an integer >= 1, got '-1'"),
        ("compare motion --steps 0", "--steps: must be an integer >= 1, got '0'"),
        ("compare motion --images folder.png", "must hold three pictures or more, found 0"),
        ("compare planted --pictures x", "--pictures: must be an integer >= 1, got 'x'"),
    ],
)
def test_bad_options_are_one_line(arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("folder.png").mkdir()
    Path("file.txt").touch()
    tool, *options = arguments.split()
    monkeypatch.setattr(sys, "argv", [tool, *options])
    with pytest.raises(SystemExit) as ended:
        run_tool({"benchmark": benchmark, "compare": compare}[tool].main)
    printed = capsys.readouterr()
    assert ended.value.code == 2 and message in printed.err and printed.err.count("\n") == 1 and not printed.out


@pytest.mark.parametrize(
    "tool, mode", [(benchmark, mode) for mode in MODES] + [(compare, mode) for mode in COMPARISONS]
)
def test_help_has_an_example(tool, mode, capsys):
    with pytest.raises(SystemExit) as ended:
        tool.main([mode, "--help"])
    assert ended.value.code == 0 and f"{tool.__name__}.py {mode}" in capsys.readouterr().out


def test_a_mode_can_be_left_out_where_there_is_a_default(capsys):
    def add_arguments(parser):
        parser.add_argument("--flag", action="store_true")

    calls, modes = [], Table("mode")
    for name in ("first", "second"):
        modes.add(name, Mode("", "", add_arguments, lambda options: calls.append((options.mode, options.flag))))
    for arguments in ([], ["--flag"], ["first"], ["second", "--flag"]):
        run_mode(modes, "", "", arguments, default="second")
    assert calls == [("second", False), ("second", True), ("first", False), ("second", True)]
    with pytest.raises(SystemExit):
        run_mode(modes, "", "", ["--help"], default="second")
    assert "first, second; without one: second" in capsys.readouterr().out
