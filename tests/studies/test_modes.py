"""What the tool prints and writes, and what its figures mean."""

import importlib.util
import json
import math
import re
from pathlib import Path

import pytest
import torch
from studies.figures import number
from studies.measure import bytes_saved, correlated_features, time_interleaved
from studies.modes import MODES, scaling
from studies.operators import OPERATOR_TABLES, count_products
from studies.roots import (
    features_section,
    given_inverse_section,
    given_root_section,
    routes_section,
)
from studies.sections import run_section

import covpool_plugins.linalg as linalg
from covpool_plugins.linalg import NewtonSchulz, list_methods, resolve_method
from covpool_plugins.pooling import list_pools

TOOL = Path(__file__).parents[2] / "tools" / "benchmark.py"


def _tool(*arguments):
    spec = importlib.util.spec_from_file_location("benchmark_tool", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(list(arguments))


def test_linalg_prints_and_writes(tmp_path, capsys):
    json_file, plot = tmp_path / "new" / "figures.json", tmp_path / "figures.png"
    options = ["--channels", "8", "--positions", "5", "12", "--batch", "2", "--repeats", "1"]
    options += ["--methods", "svdpade", "isqrt"]
    _tool("linalg", *options, "--json", str(json_file), "--plot", str(plot))
    printed = capsys.readouterr().out
    document = json.loads(json_file.read_text(), parse_constant=pytest.fail)
    for section in document["sections"]:
        assert f"## {section['title']}" in printed
        for row in section["rows"]:
            assert f"| {row['contender']} |" in printed
            assert row["both"] > 0 and row["bytes_kept"] > 0
    assert [s["details"] for s in document["sections"][:2]] == [
        {"channels": 8, "positions": 5},
        {"channels": 8, "positions": 12},
    ]
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.glob("**/.*")) == []


def test_networks_are_compared_with_average_pooling(tmp_path, capsys):
    json_file = tmp_path / "figures.json"
    options = ["--backbone", "test_resnet", "--heads", "svdpade", "--size", "64", "--batch", "2", "--repeats", "1"]
    _tool("network", *options, "--json", str(json_file))
    (section,) = json.loads(json_file.read_text())["sections"]
    assert [row["contender"] for row in section["rows"]] == ["gap, ours", "svdpade, ours"]
    assert section["rows"][0]["ratios"] == {"gap, ours": 1.0}
    assert "test_resnet at 64" in capsys.readouterr().out


def test_scaling_draws_what_grows(tmp_path, monkeypatch):
    monkeypatch.setattr(scaling, "BASE", {"channels": 8, "positions": 12, "batch": 2})
    monkeypatch.setattr(scaling, "SWEEPS", {"channels": (4, 8), "positions": (6,), "batch": (1, 3)})
    json_file, plot = tmp_path / "figures.json", tmp_path / "figures.png"
    _tool("scaling", "--repeats", "1", "--json", str(json_file), "--plot", str(plot))
    sections = json.loads(json_file.read_text())["sections"]
    sizes = [(s["details"]["channels"], s["details"]["positions"], s["details"]["batch"]) for s in sections]
    assert sizes == [(4, 12, 2), (8, 12, 2), (8, 6, 2), (8, 12, 1), (8, 12, 3)]
    assert all({row["contender"] for row in section["rows"]} == set(scaling.LINES) for section in sections)
    assert plot.read_bytes().startswith(b"\x89PNG")


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


def test_routes_compare_the_same_function():
    result = run_section(routes_section(8, 2), repeats=1)
    assert all(math.isfinite(row.gradient_error) for row in result.rows)
    assert result.rows[1].ratios == {"exact, eigh, float64": 1.0}


def test_a_contender_that_fails_is_left_out_and_said():
    section = features_section(4, 6, 2, {"exact": resolve_method("exact")})

    def fails(X):
        raise RuntimeError("no\nluck")

    contenders = list(section.contenders)
    contenders[-1] = type(contenders[-1])("broken", "float32", fails)
    result = run_section(type(section)(**{**vars(section), "contenders": contenders}), repeats=1)
    assert result.left_out == {"broken, float32": "no luck"}
    assert len(result.rows) == len(contenders) - 1


def test_repetitions_take_turns():
    calls = []
    functions = {name: lambda X, name=name: calls.append(name) or X * 2 for name in "ab"}
    X = torch.ones(2)
    times = time_interleaved(functions, X, dict.fromkeys("ab", X), repeats=9, title="")
    rounds = {"".join(calls[i : i + 2]) for i in range(0, len(calls), 2)}
    assert len(calls) == 20 and rounds == {"ab", "ba"}
    assert all(len(t.forward) == len(t.backward) == 9 for t in times.values())


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
    for label, figures in OPERATOR_TABLES[name].rows():
        if label in documented:
            for printed, written in zip(figures, documented[label], strict=True):
                below_rounding = max(float(printed), float(written)) < 1e-13
                assert printed == written or below_rounding, (label, figures, documented[label])
    assert any(label in documented for label, _ in OPERATOR_TABLES[name].rows())


def test_numbers():
    cases = [0.1, 0.0101, 0.92, 0.0009, 1e-15, 0.0, math.nan, 12.0, 512.3]
    assert [number(value) for value in cases] == ["0.10", "0.010", "0.92", "9e-4", "1e-15", "0.0", "nan", "12", "5e2"]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["nothing"], "invalid choice: 'nothing'"),
        (["linalg", "--batch", "0"], "must be an integer >= 1, got '0'"),
        (["linalg", "--device", "nowhere"], "'nowhere' is not available"),
    ],
)
def test_bad_options_are_one_line(arguments, said, capsys):
    with pytest.raises(SystemExit) as error:
        _tool(*arguments)
    printed = capsys.readouterr().err
    assert error.value.code == 2 and said in printed and printed.count("\n") == 1


def test_bad_values_are_refused_before_anything_is_measured(tmp_path):
    with pytest.raises(ValueError, match="unknown method 'nothing'"):
        _tool("linalg", "--methods", "nothing")
    with pytest.raises(ValueError, match="is a folder"):
        _tool("linalg", "--json", str(tmp_path))


@pytest.mark.parametrize("mode", MODES)
def test_help_has_an_example(mode, capsys):
    with pytest.raises(SystemExit) as error:
        _tool(mode, "--help")
    assert error.value.code == 0 and f"benchmark.py {mode}" in capsys.readouterr().out


@pytest.mark.parametrize("mode", ["pool", "head"])
def test_every_pool_is_measured(mode, capsys, tmp_path):
    _tool(mode, "--channels", "6", "--sides", "2", "3", "--batch", "2", "--repeats", "1", "--json", str(tmp_path / "f"))
    printed = capsys.readouterr().out
    document = json.loads((tmp_path / "f").read_text())
    assert len(document["sections"]) == 2 and printed.count("| contender |") == 2
    for section in document["sections"]:
        assert section["left_out"] == {}
        measured = {row["label"]: row for row in section["rows"] if row["kind"] == "ours"}
        assert set(measured) == set(list_pools())
        assert all(row["both"] > 0 and row["gradient_error"] is None for row in section["rows"])
        assert measured["gap"]["ratios"]["gap, ours"] == 1.0


def test_a_step_of_a_head_has_the_gradients_of_its_parameters():
    linear = torch.nn.Linear(3, 2)
    linear.weight.register_hook(lambda gradient: seen.append(gradient))
    seen = []
    time_interleaved({"head": linear}, torch.ones(4, 3), {"head": torch.ones(4, 2)}, repeats=1, title="")
    assert len(seen) == 2


def test_an_unknown_pool_is_refused_before_anything_is_measured():
    with pytest.raises(ValueError, match="unknown pool 'svdpad'"):
        _tool("pool", "--pools", "svdpad")
