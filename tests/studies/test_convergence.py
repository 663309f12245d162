"""The convergence mode: digits, runs, table."""

import json

import benchmark
import pytest
from studies import convergence
from studies.convergence import BATCH_NORM, UNSTABLE, WhiteningRun, table, train
from studies.photographs import digits

from covpool_plugins.whitening import ZCANorm2d, list_whitening_methods

METHODS = [BATCH_NORM, *UNSTABLE, *list_whitening_methods()]


@pytest.fixture
def few_digits(monkeypatch):
    few = {split: (images[:64], labels[:64]) for split, (images, labels) in digits().items()}
    monkeypatch.setattr(convergence, "digits", lambda: few)


def test_digits():
    (training, labels), (validation, _) = digits()["train"], digits()["val"]
    assert (len(training), len(validation)) == (1348, 449)
    assert training.shape[1:] == (1, 8, 8) and training.min() == -1 and training.max() == 1
    assert set(labels.tolist()) == set(range(10))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_built(method):
    layers = [module for module in convergence.build(method, 8).modules() if isinstance(module, ZCANorm2d)]
    assert [module.groups for module in layers] == ([] if method == BATCH_NORM else [8])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.fast_for("plain_eigh", "svdpi")
def test_every_method_is_trained(method, few_digits):
    run = train(1, 0, method, 8)
    assert run == WhiteningRun(0, method, 8, run.accuracy) and 0 <= run.accuracy <= 100


def test_the_table_counts():
    runs = [WhiteningRun(0, "svdpi", 4, 95.0), WhiteningRun(1, "svdpi", 4, 89.0), WhiteningRun(2, "svdpi", 4, None, 7)]
    lines = table([*runs, WhiteningRun(0, "exact", 64, None, 1)]).splitlines()
    assert lines[2] == "| svdpi | 4x4 | 1 of 3 | 1 | 92.0 | 3.0 |"
    assert lines[3] == "| exact | 64x64 | 0 of 1 | 1 | - | - |"


def test_command_line(tmp_path, capsys, few_digits):
    options = ["--methods", BATCH_NORM, "exact", "--sizes", "8", "64", "--seeds", "1", "--epochs", "1"]
    benchmark.main(["convergence", *options, "--json", str(tmp_path / "f.json")])
    printed = capsys.readouterr().out
    assert all(f"\n| {row} |" in printed for row in (f"{BATCH_NORM} | -", "exact | 8x8", "exact | 64x64"))
    assert len(json.loads((tmp_path / "f.json").read_text())["runs"]) == 3


@pytest.mark.slow
def test_stable_gradients_converge_where_power_iterations_do_not():
    for method in ("exact", "svdpi"):
        assert train(5, 0, method, 64).converged
    assert not train(5, 0, "plain_power_iteration", 64).converged
