"""The ``convergence`` mode: in how many runs training with a whitening layer survives, by method and matrix size.

The first stage of a CIFAR ResNet-18 learns scikit-learn's digits, photographs of 8x8 pixels, with ZCA whitening after
the first convolution of its first residual block: the experiment of Wang et al., "Backpropagation-Friendly
Eigendecomposition", NeurIPS 2019, on data that ship in a wheel.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import timm
import torch
from timm.optim import create_optimizer_v2
from timm.utils import random_seed
from torch import Tensor, nn

from covpool_plugins.command_line import markdown_table
from covpool_plugins.linalg import Method
from covpool_plugins.linalg.tensors import symmetrize
from covpool_plugins.whitening import list_whitening_methods
from covpool_plugins.whitening.leading import Leading
from covpool_plugins.whitening.matrices import EigenvectorMethod, PowerIteration

from .modes import MODES, Mode, add_names, add_numbers, add_threads_and_json, environment
from .photographs import digits
from .training import DivergedError, accuracy, cosine, fit, train_all

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


# The stable methods have names in whitening's own table, where power iterations run in float64.
UNSTABLE: dict[str, Method] = {"plain_eigh": PlainEigh(), "plain_power_iteration": PlainPowerIteration()}


@dataclass(frozen=True)
class WhiteningRun:
    """One training: validation accuracy in percent, or the step at which something was not finite any more."""

    seed: int
    method: str
    size: int
    accuracy: float | None = None
    failed_at: int | None = None

    @property
    def converged(self) -> bool:
        return self.accuracy is not None and self.accuracy >= CONVERGED


def build(method: str, size: int) -> nn.Module:
    """The network, with matrices of size x size in its whitening layer."""
    if method == BATCH_NORM:
        whole = timm.create_model("resnet18_cifar")
    else:
        norm_kwargs = dict(method=UNSTABLE.get(method, method), groups=CHANNELS // size)
        whole = timm.create_model("resnet18_cifar_zca", norm_kwargs=norm_kwargs)
    stage = [whole.get_submodule(name) for name in ("conv1", "bn1", "act1", "layer1")]
    return nn.Sequential(*stage, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, CLASSES))


def train(epochs: int, seed: int, method: str, size: int) -> WhiteningRun:
    """Train once; what is not finite ends the run, as it would end a real one."""
    random_seed(seed)
    model = build(method, size)
    data = {split: (images.expand(-1, 3, -1, -1), labels) for split, (images, labels) in digits().items()}
    optimizer = create_optimizer_v2(model, opt="sgd", lr=LEARNING_RATE, momentum=0.9, weight_decay=5e-4)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        images, labels = data["train"]
        for batch in torch.randperm(len(images)).split(BATCH):
            yield images[batch], labels[batch]

    try:
        for _ in fit(model, optimizer, epochs, batches, scheduler=cosine(optimizer, epochs)):
            pass
    except DivergedError as error:
        return WhiteningRun(seed, method, size, failed_at=error.step)
    return WhiteningRun(seed, method, size, accuracy(model, [data["val"]]))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    methods = [BATCH_NORM, *UNSTABLE, *list_whitening_methods()]
    add_names(parser, "--methods", methods, [BATCH_NORM, *UNSTABLE, "power_iteration", "svdpi", "exact"])
    sizes = [size for size in range(1, CHANNELS + 1) if CHANNELS % size == 0]
    parser.add_argument(
        "--sizes", nargs="+", type=int, choices=sizes, default=[4, 16, 64], metavar="N", help="of matrices (4 16 64)"
    )
    add_numbers(parser, "--seeds", 5, "runs of each")
    add_numbers(parser, "--epochs", 5)
    add_threads_and_json(parser)


def run(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    facts = {**environment(), "epochs": arguments.epochs, "seeds": arguments.seeds}
    print(", ".join(f"{key} {value}" for key, value in facts.items()) + "\n", flush=True)
    jobs = [
        (arguments.epochs, seed, method, size)
        for method, size in itertools.product(arguments.methods, arguments.sizes)
        if method != BATCH_NORM or size == arguments.sizes[0]
        for seed in range(arguments.seeds)
    ]
    print(table(train_all(train, jobs, arguments.json, facts)))


def table(runs: Sequence[WhiteningRun]) -> str:
    """For every method and size: how many runs converged, and the accuracies of those."""
    header = ["method", "matrices", "converged", "not finite", "accuracy %, mean", "spread"]
    rows = []
    for (method, size), group in itertools.groupby(runs, key=lambda run: (run.method, run.size)):
        of_method = list(group)
        accuracies = [run.accuracy for run in of_method if run.accuracy is not None]
        figures = [f"{statistics.mean(accuracies):.1f}", f"{statistics.pstdev(accuracies):.1f}"] if accuracies else "--"
        matrices = "-" if method == BATCH_NORM else f"{size}x{size}"
        converged = f"{sum(run.converged for run in of_method)} of {len(of_method)}"
        rows.append([method, matrices, converged, str(len(of_method) - len(accuracies)), *figures])
    return markdown_table(header, rows)


EXAMPLE = "python tools/benchmark.py convergence --methods plain_eigh svdpi exact --sizes 64"
MODES.add("convergence", Mode(__doc__ or "", EXAMPLE, add_arguments, run))
