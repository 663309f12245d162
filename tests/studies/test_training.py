"""The training loop, and series of trainings."""

import json
from dataclasses import dataclass

import pytest
import torch
from studies import motion
from studies.training import DivergedError, accuracy, cosine, fit, train_all
from torch import nn


def problem():
    x = torch.randn(64, 2)
    return x, (x[:, 0] > 0).long()


def trained(epochs=20, rate=0.1, loss=nn.functional.cross_entropy, **options):
    x, labels = problem()
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), rate)
    scheduler = cosine(optimizer, epochs)
    batches = lambda: zip(x.split(16), labels.split(16), strict=True)  # noqa: E731
    results = list(fit(model, optimizer, epochs, batches, scheduler=scheduler, loss=loss, **options))
    return model, results


def test_training_learns():
    model, results = trained()
    losses, times = zip(*results, strict=True)
    assert len(losses) == 20 and losses[-1] < 0.7 * losses[0]
    assert all(len(epoch) == 4 and min(epoch) > 0 for epoch in times)
    assert accuracy(model, [problem()]) > 90


def test_gradients_are_clipped():
    problem()
    start, moved = nn.Linear(2, 2).weight, []
    for limit in (1e-6, None):
        torch.manual_seed(0)
        moved.append(float((trained(1, clip_grad=limit)[0].weight - start).detach().norm()))
    assert 0 < moved[0] < 1e-5 < 0.01 < moved[1]


class InfiniteGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * torch.inf


@pytest.mark.parametrize(
    "fault",
    [
        lambda scores: scores / 0 * 0,
        InfiniteGradient.apply,
        lambda scores: torch.linalg.eigh(torch.nan * scores[:2]).eigenvalues,
    ],
    ids=["loss", "gradient", "eigh"],
)
def test_what_is_not_finite_ends_a_training_before_the_weights_change(fault):
    x, labels = problem()
    model = nn.Linear(2, 2)
    weight = model.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    epochs = fit(model, optimizer, 3, lambda: [(x, labels)], loss=lambda scores, labels: fault(scores).sum())
    with pytest.raises(DivergedError, match="not finite at step 1") as caught:
        list(epochs)
    assert caught.value.step == 1 and torch.equal(model.weight, weight)


@dataclass(frozen=True)
class Square:
    value: int


def square(number):
    if number < 0:
        raise KeyboardInterrupt
    return Square(number**2)


def test_runs_are_in_the_order_of_the_jobs(tmp_path):
    runs = train_all(square, [(3,), (1,), (2,)], tmp_path / "runs.json", {"what": "squares"})
    assert runs == [Square(9), Square(1), Square(4)]
    assert json.loads((tmp_path / "runs.json").read_text()) == {
        "what": "squares",
        "runs": [{"value": 9}, {"value": 1}, {"value": 4}],
    }


def test_an_interruption_loses_no_run(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train_all(square, [(3,), (-1,)], tmp_path / "runs.json")
    assert json.loads((tmp_path / "runs.json").read_text()) == {"runs": [{"value": 9}]}


def test_every_head_starts_from_the_same_backbone():
    states = [motion.build(motion.MotionRecipe(), head, 0).state_dict() for head in motion.HEADS]
    backbone = [key for key in states[0] if not key.startswith("head.")]
    assert len(backbone) > 20
    assert all(torch.equal(state[key], states[0][key]) for state in states for key in backbone)
