"""The convergence mode: digits, outcomes, table."""

import dataclasses

import pytest
import torch
from studies import convergence
from studies.convergence import BATCH_NORM, UNSTABLE, Digits, Outcome, table, train

from covpool_plugins.whitening import ZCANorm2d, list_whitening_methods


def digits(count=None):
    found = Digits.load()
    return Digits(tuple(t[:count] for t in found.train), found.validation)


def nothing():
    pass


def test_digits():
    found = digits()
    assert [len(images) for images, _ in (found.train, found.validation)] == [1348, 449]
    assert found.train[0].shape[1:] == (3, 8, 8) and found.train[0].min() == -1 and found.train[0].max() == 1
    assert set(found.train[1].tolist()) == set(found.validation[1].tolist()) == set(range(10))


@pytest.mark.parametrize("method", [BATCH_NORM, *UNSTABLE, *list_whitening_methods()])
def test_every_method_is_built_and_trained(method):
    model = convergence.build(method, 8)
    found = [module for module in model.modules() if isinstance(module, ZCANorm2d)]
    assert [module.groups for module in found] == ([] if method == BATCH_NORM else [8])
    outcome = train(digits(64), method, 8, 0, 1, nothing)
    assert dataclasses.replace(outcome, accuracy=0) == Outcome(method, 8, 0, 0, None)
    assert 0 <= outcome.accuracy <= 100


def test_what_is_not_finite_ends_a_run(monkeypatch):
    class Breaks(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * torch.inf

    build = convergence.build
    monkeypatch.setattr(
        convergence,
        "build",
        lambda *a: torch.nn.Sequential(
            build(*a), type("B", (torch.nn.Module,), {"forward": lambda s, x: Breaks.apply(x)})()
        ),
    )
    assert train(digits(300), "exact", 8, 0, 1, nothing) == Outcome("exact", 8, 0, None, 1)


def test_the_table_counts():
    runs = [Outcome("svdpi", 4, 0, 95.0, None), Outcome("svdpi", 4, 1, 89.0, None), Outcome("svdpi", 4, 2, None, 7)]
    lines = table([*runs, Outcome("exact", 64, 0, None, 1)]).splitlines()
    assert lines[2] == "| svdpi | 4x4 | 1 of 3 | 1 | 92.0 | 3.0 |"
    assert lines[3] == "| exact | 64x64 | 0 of 1 | 1 | - | - |"


@pytest.mark.slow
def test_stable_gradients_converge_where_power_iterations_do_not():
    data = digits()
    for method in ("exact", "svdpi"):
        assert train(data, method, 64, 0, 5, nothing).converged
    assert not train(data, "plain_power_iteration", 64, 0, 5, nothing).converged
