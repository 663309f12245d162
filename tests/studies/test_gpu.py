"""The gpu mode on the CPU: every section runs, and what needs a GPU says so."""

import json
import time

import pytest
import torch
from studies import gpu_report
from studies.gpu import SECTIONS
from studies.gpu_report import Clock, Report, attempt, time_limit
from studies.gpu_routes import rule_notes
from studies.modes import MODES

from covpool_plugins.command_line import Parser


@pytest.fixture
def run(tmp_path, capsys):
    def run(*arguments):
        parser = Parser("", "")
        MODES["gpu"].add_arguments(parser)
        files = ["--json", str(tmp_path / "f.json"), "--markdown", str(tmp_path / "f.md")]
        MODES["gpu"].run(parser.parse_args(["--device", "cpu", "--quick", *files, *arguments]))
        sections = json.loads((tmp_path / "f.json").read_text(), parse_constant=pytest.fail)["sections"]
        assert capsys.readouterr().out == (tmp_path / "f.md").read_text() + "\n"
        return {section["title"]: section for section in sections}

    return run


def test_errors_of_both_routes_are_small(run):
    sections = run("--sections", "facts", "errors")
    assert {row["fact"]: row["value"] for row in sections["Facts"]["rows"]}["torch"] == torch.__version__
    figures = sections["Errors of both routes"]["figures"]
    assert len(figures) == 4 * len(sections["Errors of both routes"]["rows"])
    assert all(figure["value"] < 1e-5 and figure["gradient"] < 1e-3 for figure in figures)


@pytest.mark.slow
def test_every_section_runs(run):
    sections = run()
    assert list(sections) == [title for title, _, _ in SECTIONS.values()]
    for title, section in sections.items():
        assert section["rows"] and not section["left_out"], title
        assert not any("failed" in row for row in section["rows"]), section["rows"]
        assert not any("FAILED" in note for note in section["notes"]), section["notes"]
        assert all(row.get("ok", True) for row in section["rows"]), section["rows"]
    assert {row["forward"] for row in sections["Waiting for the GPU"]["rows"]} == {"needs CUDA"}
    assert {row["capture"] for row in sections["CUDA graphs"]["rows"]} == {"needs CUDA"}


def test_sections_without_time_are_left_out(run, monkeypatch):
    monkeypatch.setitem(SECTIONS, "pools", (*SECTIONS["pools"][:2], 0))
    assert run("--sections", "pools")["Pools in float32"]["left_out"] == ["the whole section"]


def test_a_measurement_that_fails_is_a_row():
    report = Report("title")

    def fail():
        raise RuntimeError("no\nluck | here")

    attempt(report, Clock(10), {"pool": "a"}, lambda: {"value": 1e-7, "ok": False})
    attempt(report, Clock(10), {"pool": "b"}, fail)
    attempt(report, Clock(0), {"pool": "c"}, fail)
    printed = report.markdown()
    assert "| a | 1e-07 | NO | - |" in printed and "| b | - | - | RuntimeError: no luck / here |" in printed
    assert report.left_out == ["c"]


def test_a_measurement_is_stopped(monkeypatch):
    monkeypatch.setattr(gpu_report, "GRACE", 0.0)
    report = Report("title")
    attempt(report, Clock(0.2), {"pool": "a"}, lambda: time.sleep(20))
    assert report.rows[0]["failed"].startswith("TimeoutError")
    with time_limit(60):
        pass


def test_rules_are_judged_by_the_times():
    seconds = {(8, 4): (1.0, 2.0), (8, 16): (8.0, 2.0)}
    figures = [
        {"C": C, "M": M, "batch": 2, "function": f"{route}, mixed", "forward": time / 2, "backward": time / 2}
        for (C, M), times in seconds.items()
        for route, time in zip(("eigh", "products"), times, strict=True)
    ]
    summary, best, *_ = rule_notes(figures)
    assert summary.startswith("mixed: products faster in 1 of 2 cells, by 4.00x")
    assert "eigh faster at C x M x batch 8 x 4 x 2 (2.00x)" in summary
    assert "'products from min(C, M) = 8 up': 1.00 times" in best
