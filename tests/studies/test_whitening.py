"""The whitening mode, and that its baselines compute what they are named for."""

import json

import benchmark
import pytest
import torch
from studies.whitening_layers import EigenvectorLoop, PadeComposition
from support.whitening import correlated, statistics

from covpool_plugins.whitening import ZCANorm2d


def test_prints_and_writes(capsys, tmp_path):
    options = ["--channels", "4", "--group-sizes", "2", "4", "--side", "3", "--batch", "2", "--repeats", "1"]
    benchmark.main(["whitening", *options, "--methods", "exact", "newton_schulz", "--json", str(tmp_path / "f")])
    printed = capsys.readouterr().out
    sections = json.loads((tmp_path / "f").read_text())["sections"]
    assert [section["details"]["size"] for section in sections] == [2, 4]
    for section in sections:
        assert section["left_out"] == {} and f"## {section['title']}" in printed
        rows = {row["contender"]: row for row in section["rows"]}
        assert rows.keys() >= {"exact, ours", "newton_schulz, ours", "BatchNorm2d"}
        assert all(set(row["ratios"]) == set(section["against"]) for row in rows.values())


@pytest.mark.parametrize("baseline", [EigenvectorLoop, PadeComposition])
def test_baselines_whiten_and_have_the_gradient(baseline):
    x = correlated(8, 4, 6, dtype=torch.float32).requires_grad_()
    theirs, ours = baseline(4, 2), ZCANorm2d(4, 2)
    G = torch.randn_like(x)
    y = theirs(x)
    _, covariance = statistics(y, 2)
    assert (covariance - torch.eye(2)).abs().max() < 5e-3
    (expected,) = torch.autograd.grad(ours(x), x, G)
    (gradient,) = torch.autograd.grad(y, x, G)
    assert (gradient - expected).norm() < 0.02 * expected.norm()
    assert torch.allclose(theirs.running_subspace, ours.running_subspace, atol=1e-3)
