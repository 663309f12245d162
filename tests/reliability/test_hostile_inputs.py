"""Every head and norm layer of both ecosystems on every hostile input: nothing fails; and what counts as a failure."""

import json
import runpy
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from studies.hostile_inputs import INPUTS, ordinary_features
from studies.reliability import (
    CHANNELS,
    ECOSYSTEMS,
    SIDE,
    Subject,
    examine,
    failures,
    outcome_table,
)
from torch import nn

from covpool_plugins.errors import OptionError
from covpool_plugins.pooling import create_pool
from covpool_plugins.timm_plugin import list_heads
from covpool_plugins.whitening import PCANorm2d, ZCANorm2d, list_whitening_methods

TOOL = Path(__file__).parents[2] / "tools" / "benchmark.py"
TIMM = {subject.name: subject for subject in ECOSYSTEMS["timm"]()}
FAST_AND_SLOW = [pytest.param(n, marks=pytest.mark.slow) if n.endswith("power_iteration") else n for n in TIMM]
# The two ecosystems have the same layers in other clothes; tools/benchmark.py reliability takes all precisions of both.
SLOW = {"timm": ["bfloat16", "float16", "autocast"], "mmpretrain": ["float32"]}
IMPOSSIBLE = {"another number of channels", "integers"}


def test_nothing_is_left_out():
    norms = [f"ZCANorm2d {method}" for method in list_whitening_methods()]
    norms += [f"PCANorm2d {method}" for method in list_whitening_methods(eigenvectors=True)]
    assert list(TIMM) == [*list_heads(), *norms]
    for method in set(list_whitening_methods()) - set(list_whitening_methods(eigenvectors=True)):
        with pytest.raises(OptionError, match=f"'{method}'"):
            PCANorm2d(CHANNELS, method=method)


@pytest.mark.parametrize("name", FAST_AND_SLOW)
def test_a_training_step(name):
    outcomes = list(examine(TIMM[name], ["float32"], modes=[True]))
    assert failures(outcomes) == ""
    assert {one.input for one in outcomes} == set(INPUTS)
    check_refusals(TIMM[name], outcomes)


def check_refusals(subject, outcomes):
    """By an error of this package that says what is wrong, or by torch's batch norm in the words of torch."""
    refused = {one.input: one.said for one in outcomes if one.kind == "refused"}
    always = IMPOSSIBLE | ({"no positions"} if subject.is_head else set())
    assert always <= set(refused) <= always | {"one sample of 1x1"}
    for name, said in refused.items():
        of_torch = name == "one sample of 1x1" and "Expected more than 1 value per channel when training" in said
        assert of_torch or said.startswith(("ShapeError: ", "DtypeError: ")), said
    assert subject.is_head or "needs more than one sample per channel in training" in refused["one sample of 1x1"]


@pytest.mark.slow
@pytest.mark.parametrize("ecosystem", ECOSYSTEMS)
def test_training_and_evaluation(ecosystem):
    """Left out is only what float16 cannot hold."""
    subjects = ECOSYSTEMS[ecosystem]()
    assert [subject.name for subject in subjects] == list(TIMM)
    for subject in subjects:
        outcomes = list(examine(subject, SLOW[ecosystem]))
        assert failures(outcomes) == ""
        counts = Counter(one.precision for one in outcomes)
        everything = len(subject.variants) * len(INPUTS) * 2
        assert all(counts[precision] == everything for precision in counts if precision != "float16")
        assert "float16" not in counts or 0.8 * everything < counts["float16"] < everything


class Broken(nn.Module):
    """Passes maps on, with a fault."""

    def __init__(self, fault):
        super().__init__()
        self.fault = fault

    def forward(self, x):
        return self.fault(x)


def refuses_in_two_lines(x):
    if not x.is_floating_point():
        raise ValueError("one\ntwo")
    return 1 * x


FAULTS = {
    "not finite: output": (lambda x: x / x.amax(dim=(1, 2, 3), keepdim=True), "zeros"),
    "not finite: gradient": (lambda x: x.abs().sqrt(), "zeros"),
    "NaN or infinity is lost": (lambda x: x.nan_to_num(), "NaN"),
    "other samples have another output and gradient": (lambda x: x * x.mean(), "scale 1e18"),
    "other samples have another output": (lambda x: x + x.mean().detach(), "constant"),
    "not refused": (lambda x: 1 * x, "another number of channels"),
    "ValueError: one two": (refuses_in_two_lines, "integers"),
    "_LinAlgError": (lambda x: torch.linalg.eigh(x).eigenvectors, "NaN"),
    "shapes": (lambda x: x.sum(0, keepdim=True), "ordinary"),
}


@pytest.mark.parametrize("said", FAULTS)
def test_faults_are_found(said):
    fault, name = FAULTS[said]
    subject = Subject("broken", False, {"as it is": lambda: Broken(fault)})
    for one in examine(subject, ["float32"], [name]):
        assert one.kind == "failed" and one.said.startswith(said)


def test_other_groups_have_to_be_finite():
    class Leaking(ZCANorm2d):
        def forward(self, x):
            return super().forward(x) + 0 * x.sum()

    subject = Subject("leaking", False, {"as it is": lambda: Leaking(CHANNELS, 2)})
    (one,) = examine(subject, ["float32"], ["NaN"], modes=[True])
    assert one.said == "other groups are not finite"


def test_outliers_of_float16_are_left_out_and_nothing_else():
    subject = Subject("square", False, {"as it is": lambda: Broken(lambda x: 1e4 * x)})
    found = {one.input: one.kind for one in examine(subject, ["float16"], ["ordinary", "zeros", "large mean"])}
    assert found == {"ordinary": "finite", "zeros": "finite"}
    broken = Subject("broken", False, {"as it is": lambda: Broken(lambda x: x / (x - x))})
    assert {one.kind for one in examine(broken, ["float16"], ["ordinary"])} == {"failed"}


@pytest.mark.parametrize("name", INPUTS)
def test_inputs_are_what_they_say(name):
    hostile, x = INPUTS[name], ordinary_features(3, CHANNELS, SIDE)
    before = x.clone()
    spoiled = (hostile.spoil or hostile.reshape)(x)
    assert torch.equal(x, before)
    assert hostile.spoil is None or (spoiled.shape == x.shape and spoiled.dtype == x.dtype)
    assert hostile.poisoned == (not spoiled.isfinite().all())
    assert name == "ordinary" or spoiled.shape != x.shape or not torch.equal(spoiled, x)


@pytest.mark.parametrize("side", [3, 5])
@pytest.mark.parametrize("scale", [1e2, 1e8, 1e15])
def test_the_scaling_branch_ends_where_no_eigenvalue_is_small(scale, side):
    """exp(-A) leaves nothing of large eigenvalues; it took the rounding of A for small ones."""
    results = []
    for name in ("seb", "exact"):
        x = (scale * ordinary_features(3, CHANNELS, side)).requires_grad_()
        out = create_pool(name, CHANNELS, reduce_channels=None)(x)
        (torch.linspace(-1, 1, out.numel()).view_as(out) * out).sum().backward()
        results.append((out / scale, x.grad))
    for found, expected in zip(*results, strict=True):
        assert (found - expected).norm() < 1e-5 * expected.norm()


def test_the_command_prints_and_writes(tmp_path, capsys, monkeypatch):
    file = tmp_path / "new" / "cases.json"
    arguments = ["--subjects", "svdpade", "ZCANorm2d exact", "--precisions", "float32", "--inputs", "zeros", "NaN"]
    monkeypatch.setattr(
        sys, "argv", ["benchmark.py", "reliability", "--ecosystems", "timm", *arguments, "--json", str(file)]
    )
    with pytest.raises(SystemExit) as exit_info:
        runpy.run_path(str(TOOL), run_name="__main__")
    printed = capsys.readouterr().out
    assert exit_info.value.code == 0
    assert "| svdpade | 4 | 4 | 0 | 0 | 8 |" in printed and "| all | 8 | 8 | 0 | 0 | 16 |" in printed
    cases = json.loads(file.read_text())["cases"]["timm"]
    assert len(cases) == 16 and {case["kind"] for case in cases} == {"finite", "contained"}


def test_the_table_has_a_row_for_each():
    outcomes = [one for name in ("gap", "PCANorm2d exact") for one in examine(TIMM[name], ["float32"], ["integers"])]
    rows = outcome_table(outcomes).splitlines()[2:]
    assert rows == [
        "| gap | 0 | 0 | 2 | 0 | 2 |",
        "| PCANorm2d exact | 0 | 0 | 4 | 0 | 4 |",
        "| all | 0 | 0 | 6 | 0 | 6 |",
    ]
