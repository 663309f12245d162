"""The ``convergence`` mode: in how many runs training with a whitening layer survives, by method and matrix size.

The first stage of a CIFAR ResNet-18 learns scikit-learn's digits, photographs of 8x8 pixels, with ZCA whitening after
the first convolution of its first residual block: the experiment of Wang et al., "Backpropagation-Friendly
Eigendecomposition", NeurIPS 2019, on data that ship in a wheel.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import random_seed
from torch import Tensor, nn
from tqdm import tqdm

from covpool_plugins.command_line import markdown_table, positive_integer
from covpool_plugins.errors import require_extra
from covpool_plugins.files import write_json
from covpool_plugins.linalg import Method
from covpool_plugins.linalg.methods.leading import Leading
from covpool_plugins.linalg.tensors import symmetrize
from covpool_plugins.whitening import list_whitening_methods
from covpool_plugins.whitening.matrices import EigenvectorMethod, PowerIteration

from .modes import MODES, Mode, add_common_arguments, check_outputs, environment

CHANNELS = 64  # of the layer that whitens
CLASSES = 10
BATCH = 128
LEARNING_RATE = 0.1
CONVERGED = 90.0  # percent of the validation digits
BATCH_NORM = "batch_norm"


@dataclass(frozen=True)
class PlainEigh(EigenvectorMethod):
    """An eigen-decomposition in float32 as PyTorch differentiates it, with 1 / (λ_i - λ_j)."""

    def apply(self, covariance: Tensor, function: Leading) -> Tensor:
        values, vectors = torch.linalg.eigh(symmetrize(covariance).float())
        f = function.values(values.clamp_min(0))
        return ((vectors * f.unsqueeze(-2)) @ vectors.mT).to(covariance.dtype)


@dataclass(frozen=True)
class PlainPowerIteration(PowerIteration):
    """Power iterations in float32, differentiated through all their steps."""

    def apply(self, covariance: Tensor, function: Leading) -> Tensor:
        return super().apply(covariance.float(), function).to(covariance.dtype)


# What is stable has its names in whitening's own table, where power iterations run in float64.
UNSTABLE: dict[str, Method] = {"plain_eigh": PlainEigh(), "plain_power_iteration": PlainPowerIteration()}


@dataclass(frozen=True)
class Outcome:
    """One training: validation accuracy in percent, or the step at which something was not finite any more."""

    method: str
    size: int
    seed: int
    accuracy: float | None
    failed_at: int | None

    @property
    def converged(self) -> bool:
        return self.accuracy is not None and self.accuracy >= CONVERGED


@dataclass(frozen=True)
class Digits:
    """Training and validation digits (N, 3, 8, 8) in [-1, 1] and their labels."""

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]

    @classmethod
    def load(cls) -> Digits:
        """Every fourth digit validates.

        Raises:
            MissingExtraError: without scikit-learn.
        """
        found = require_extra("sklearn.datasets", "dev").load_digits()
        images = torch.tensor(found.images, dtype=torch.float32).div(8).sub(1).unsqueeze(1).expand(-1, 3, -1, -1)
        labels = torch.tensor(found.target)
        held_out = torch.arange(len(labels)) % 4 == 3
        return cls((images[~held_out], labels[~held_out]), (images[held_out], labels[held_out]))


def build(method: str, size: int) -> nn.Module:
    """The network, with matrices of size x size in its whitening layer."""
    if method == BATCH_NORM:
        whole = timm.create_model("resnet18_cifar")
    else:
        chosen: str | Method = UNSTABLE.get(method, method)  # type: ignore[arg-type]
        norm_kwargs = dict(method=chosen, groups=CHANNELS // size)
        whole = timm.create_model("resnet18_cifar_zca", norm_kwargs=norm_kwargs)
    stage = [whole.get_submodule(name) for name in ("conv1", "bn1", "act1", "layer1")]
    return nn.Sequential(*stage, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, CLASSES))


def train(digits: Digits, method: str, size: int, seed: int, epochs: int, advance: Callable[[], Any]) -> Outcome:
    """Train once; what is not finite ends the run, as it would end a real one."""
    random_seed(seed)
    model = build(method, size)
    optimizer = create_optimizer_v2(model, opt="sgd", lr=LEARNING_RATE, momentum=0.9, weight_decay=5e-4)
    scheduler, _ = create_scheduler_v2(optimizer, sched="cosine", num_epochs=epochs)
    images, labels = digits.train
    step = 0
    for epoch in range(epochs):
        scheduler.step(epoch)
        model.train()
        for batch in torch.randperm(len(images)).split(BATCH):
            step += 1
            try:
                loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
                optimizer.zero_grad()
                loss.backward()
            except torch.linalg.LinAlgError:  # eigh of what is not finite
                return Outcome(method, size, seed, None, step)
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            if not loss.isfinite() or not all(gradient.isfinite().all() for gradient in gradients):
                return Outcome(method, size, seed, None, step)
            optimizer.step()
        advance()
    return Outcome(method, size, seed, _accuracy(model, *digits.validation), None)


def _accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    model.eval()
    with torch.inference_mode():
        return 100 * (model(images).argmax(1) == labels).float().mean().item()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the mode."""
    methods = [BATCH_NORM, *UNSTABLE, *list_whitening_methods()]
    default = [BATCH_NORM, *UNSTABLE, "power_iteration", "svdpi", "exact"]
    help_text = f"({' '.join(default)}); also the other whitening methods"
    parser.add_argument("--methods", nargs="+", choices=methods, default=default, metavar="METHOD", help=help_text)
    sizes = [d for d in range(1, CHANNELS + 1) if CHANNELS % d == 0]
    parser.add_argument(
        "--sizes", nargs="+", type=int, choices=sizes, default=[4, 16, 64], metavar="D", help="of matrices (4 16 64)"
    )
    parser.add_argument("--seeds", type=positive_integer, default=5, help="runs of each (5)")
    parser.add_argument("--epochs", type=positive_integer, default=5, help="(5)")
    add_common_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Train, print the table, write the file."""
    check_outputs(arguments.json)
    torch.set_num_threads(arguments.threads)
    digits = Digits.load()
    facts = {**environment(arguments.device), "epochs": arguments.epochs, "seeds": arguments.seeds}
    print(", ".join(f"{key} {value}" for key, value in facts.items()) + "\n", flush=True)
    trainings = [
        (method, size, seed)
        for method, size in itertools.product(arguments.methods, arguments.sizes)
        if method != BATCH_NORM or size == arguments.sizes[0]
        for seed in range(arguments.seeds)
    ]
    outcomes = []
    with tqdm(total=len(trainings) * arguments.epochs, unit="epoch", disable=None) as bar:
        for method, size, seed in trainings:
            bar.set_postfix(method=method, size=size, seed=seed)
            outcomes.append(train(digits, method, size, seed, arguments.epochs, bar.update))
            bar.update(arguments.epochs * len(outcomes) - bar.n)
    print(table(outcomes))
    if arguments.json:
        write_json(arguments.json, {"environment": facts, "runs": [dataclasses.asdict(one) for one in outcomes]})


def table(outcomes: list[Outcome]) -> str:
    """For every method and size: how many runs converged, and the accuracies of those."""
    header = ["method", "matrices", "converged", "not finite", "accuracy %, mean", "spread"]
    rows = []
    for (method, size), group in itertools.groupby(outcomes, key=lambda one: (one.method, one.size)):
        runs = list(group)
        accuracies = [one.accuracy for one in runs if one.accuracy is not None]
        figures = [f"{statistics.mean(accuracies):.1f}", f"{statistics.pstdev(accuracies):.1f}"] if accuracies else "--"
        matrices = "-" if method == BATCH_NORM else f"{size}x{size}"
        converged = f"{sum(one.converged for one in runs)} of {len(runs)}"
        rows.append([method, matrices, converged, str(len(runs) - len(accuracies)), *figures])
    return markdown_table(header, rows)


MODES.add(
    "convergence",
    Mode(
        "How often training with a whitening layer converges, by method: a CIFAR ResNet on scikit-learn's digits.",
        "python tools/benchmark.py convergence --methods plain_eigh svdpi exact --sizes 64 --json out/convergence.json",
        add_arguments,
        run,
    ),
)
