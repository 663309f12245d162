"""The comparisons of small networks: ``heads`` and ``bilinear``."""

import json
import statistics
from dataclasses import replace

import compare
import numpy as np
import pytest
import torch
from PIL import Image
from studies import comparison, heads
from studies.bilinear import SECTIONS, section_table
from studies.comparison import ComparisonRecipe, ComparisonRun, Costs, SmallNetwork, build, condition_numbers, train
from studies.heads import FAILING, HYBRID
from studies.photographs import source
from studies.training import train_all

from covpool_plugins import list_heads
from covpool_plugins.linalg import resolve_method

TINY = ComparisonRecipe("digits", size=32, per_class=4, test_per_class=2, epochs=2)
OPTIONS = ["--epochs", "1", "--size", "32", "--per-class", "2", "--test-per-class", "2", "--workers", "1"]
NETWORKS = list(dict.fromkeys(network for section in SECTIONS.values() for network in section.values()))


@pytest.fixture
def few_repeats(monkeypatch):
    monkeypatch.setattr(comparison, "REPEATS", 1)


@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_every_network_learns_from_the_same_weights(network):
    model = build(network, 4, seed=3)
    first = next(model.parameters())
    assert torch.equal(first, next(build(SmallNetwork("gap"), 4, seed=3).parameters()))
    model(torch.randn(4, 1, 32, 32)).logsumexp(dim=1).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert first.grad.abs().sum() > 0


def test_the_classifier_has_its_own_rate():
    for network in (SmallNetwork(streams=("D", "M")), SmallNetwork("bcnn")):
        model = build(network, 4, seed=0)
        rest, classifier = comparison._parameter_groups(model, TINY)
        assert [p.shape[0] for p in classifier["params"]] == [4, 4] and classifier["lr"] == TINY.classifier_rate
        assert len(rest["params"]) + 2 == len(list(model.parameters()))


def test_training_learns_and_follows_its_seed(tmp_path):
    # Stripes that lie and stripes that stand would be one class when turned: these differ in width.
    for name, width in (("narrow", 2), ("wide", 9)):
        (tmp_path / name).mkdir()
        stripes = 255 * (np.arange(200) // width % 2)
        Image.fromarray(np.tile(stripes, (100, 1)).astype(np.uint8)).save(tmp_path / name / "stripes.png")
    recipe = ComparisonRecipe(str(tmp_path), size=32, per_class=24, test_per_class=10, epochs=6)
    run, again, other = (train(recipe, SmallNetwork("bcnn"), seed) for seed in (0, 0, 1))
    assert run.accuracy > 90
    assert run == again and run.loss != other.loss


@pytest.mark.slow
def test_several_workers_give_the_same():
    jobs = [(TINY, network, seed) for seed in range(2) for network in NETWORKS[:2]]
    assert train_all(train, jobs, workers=1) == train_all(train, jobs, workers=2)


def test_every_head_and_the_hybrid_protocol_are_compared():
    rows = heads.networks(list_heads())
    assert [row.pool for row in rows if not row.switch] == list_heads()
    assert [row for row in rows if row.switch] == [HYBRID]
    assert rows.index(HYBRID) == rows.index(SmallNetwork("isqrt")) + 1


def test_the_hybrid_protocol_changes_the_method_half_way(monkeypatch):
    methods, fit = [], comparison.fit

    def remembering(model, optimizer, epochs, batches, **options):
        def noted():
            methods.append(comparison.pool_of(model).method)
            return batches()

        return fit(model, optimizer, epochs, noted, **options)

    monkeypatch.setattr(comparison, "fit", remembering)
    train(TINY, HYBRID, 0)
    assert methods == [resolve_method("isqrt"), resolve_method("svdpade")]


def test_condition_numbers_are_those_of_the_covariance_and_of_its_root():
    x = source("digits").draw("val", 4, 64, 0.25, 0)[0]
    before, after = condition_numbers(build(SmallNetwork("exact"), 10, 0), x)
    assert after == pytest.approx(before**0.5, rel=1e-2)
    unchanged = condition_numbers(build(SmallNetwork("powcov", (("p", 1.0),)), 10, 0), x)
    assert unchanged[1] == pytest.approx(unchanged[0], rel=1e-3)
    assert condition_numbers(build(SmallNetwork("gap"), 10, 0), x)[1] is None


def test_a_gradient_that_is_not_finite_is_a_failure():
    """The covariance of one position is zero: its eigenvalues are equal, and PyTorch's gradient divides by 0."""
    one_position = replace(TINY, size=8)
    assert train(one_position, FAILING[0], 0).accuracy is None
    assert train(one_position, SmallNetwork("svdpade", (("compute", "float32"),)), 0).accuracy is not None


def test_the_table_of_heads_counts_failures():
    runs = [
        ComparisonRun("a", "digits", 0, 5, 50.0, 0.1, 1e4, 1e2),
        ComparisonRun("a", "digits", 1, 5),
        ComparisonRun("b", "digits", 0, 5, 70.0, 0.1),
    ]
    assert heads.table(runs, Costs({"a": 2.0}, {}, {"a": 3.0})).splitlines()[2:] == [
        "| `a` | 50.0 | 1 of 2 | 2.0 | 3.0 | 1e4 → 1e2 |",
        "| `b` | 70.0 | 0 of 1 | - | - | - |",
    ]


def test_a_section_compares_seed_by_seed():
    networks = [str(network) for network in SECTIONS["power"].values()]
    accuracies = {network: [50.0 + 10 * seed + place for seed in range(3)] for place, network in enumerate(networks)}
    accuracies[networks[2]][0] = None  # failed
    runs = [
        ComparisonRun(network, "photographs", seed, 1234, accuracies[network][seed])
        for seed in range(3)
        for network in networks
    ]
    costs = Costs(dict.fromkeys(networks, 2.0), {networks[0]: 0.5}, {})
    lines = section_table("power", runs, costs).splitlines()
    assert len(lines) == 2 + len(networks)
    assert "| 60.0 ± 10.0 | 50.0 to 70.0 | - | 2.0 | 0.50 | 1 234 |" in lines[2]
    assert "| 61.0 ± 10.0 | 51.0 to 71.0 | +1.0 ± 0.0 | 2.0 | - |" in lines[3]
    assert f"| 67.0 ± {statistics.stdev([62, 72]):.1f} | 62.0 to 72.0 | +2.0 ± 0.0 |" in lines[4]


def test_heads_by_command_line(tmp_path, capsys, few_repeats):
    files = ["--json", str(tmp_path / "n.json"), "--plot", str(tmp_path / "p.png")]
    compare.main([*OPTIONS, *files, "--seeds", "1", "--pictures", "digits", "--heads", "gap", "isqrt"])
    printed = capsys.readouterr().out
    assert "digits: 10 classes, by chance 10.0 %; 1 seeds" in printed
    rows = [line.split(" |")[0] for line in printed.splitlines() if line.startswith("| `")]
    assert rows == ["| `gap`", "| `isqrt`", "| `isqrt, then svdpade`"]
    numbers = json.loads((tmp_path / "n.json").read_text())
    assert len(numbers["runs"]) == 3 and set(numbers["kept_mb"]) == {"gap", "isqrt"}
    assert (tmp_path / "p.png").stat().st_size > 1000


def test_bilinear_by_command_line(tmp_path, capsys, few_repeats):
    for name, shade in (("a", 90), ("b", 160)):
        (tmp_path / name).mkdir()
        Image.new("L", (120, 120), shade).save(tmp_path / name / "0.png")
    options = ["--seeds", "1", "--sections", "networks", "--images", str(tmp_path), "--json", str(tmp_path / "n.json")]
    compare.main(["bilinear", *OPTIONS, *options])
    printed = capsys.readouterr().out
    assert "2 classes, by chance 50.0 %; 1 seeds; a, b" in printed
    assert all(f"| {label} (`" in printed or f"| {label} |" in printed for label in SECTIONS["networks"])
    numbers = json.loads((tmp_path / "n.json").read_text())
    networks = SECTIONS["networks"].values()
    assert [run["network"] for run in numbers["runs"]] == list(map(str, networks))
    assert set(numbers["step_ms"]) == set(map(str, networks))
    assert set(numbers["pool_ms"]) == {str(network) for network in networks if network.pool}
