"""The training loop of all studies, and series of trainings whose numbers are written as they come."""

from __future__ import annotations

import math
import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.utils import AverageMeter
from torch import Tensor, nn
from tqdm import tqdm

from covpool_plugins.files import write_json

Batches = Iterable[tuple[Tensor, Tensor]]
Run = TypeVar("Run")


class DivergedError(ValueError):
    """A training whose loss or gradients are not finite any more."""

    def __init__(self, step: int) -> None:
        super().__init__(f"the loss or a gradient is not finite at step {step}")
        self.step = step


def cosine(optimizer: torch.optim.Optimizer, epochs: int, warmup: int = 0) -> Scheduler:
    """A cosine schedule of the learning rate, after some epochs of linear warm-up."""
    return create_scheduler_v2(optimizer, "cosine", num_epochs=epochs, warmup_epochs=warmup)[0]


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    batches: Callable[[], Batches],
    *,
    scheduler: Scheduler | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy,
    clip_grad: float | None = None,
    title: str = "",
) -> Iterator[tuple[float, list[float]]]:
    """Train a model; after each epoch its mean loss and the milliseconds of its steps are yielded.

    Args:
        model: trained in place.
        optimizer: of its parameters.
        epochs: how many.
        batches: called for the inputs and targets of each epoch.
        scheduler: stepped before each epoch.
        loss: of output and targets.
        clip_grad: largest norm of all gradients; by default there is none.
        title: of a progress bar; without one there is no bar.

    Raises:
        DivergedError: at the first loss or gradient that is not finite, before the weights are changed.
    """
    step, parameters = 0, list(model.parameters())
    for epoch in tqdm(range(epochs), desc=title, unit="epoch", disable=None if title else True, leave=False):
        if scheduler is not None:
            scheduler.step(epoch)
        model.train()
        mean, milliseconds = AverageMeter(), []
        for x, targets in batches():
            step += 1
            start = time.perf_counter()
            try:
                value = loss(model(x), targets)
                optimizer.zero_grad()
                value.backward()
            except torch.linalg.LinAlgError:  # eigh of what is not finite
                raise DivergedError(step) from None
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            if not (value.isfinite() and nn.utils.get_total_norm(gradients, math.inf).isfinite()):
                raise DivergedError(step)
            if clip_grad is not None:
                nn.utils.clip_grad_norm_(parameters, clip_grad)
            optimizer.step()
            milliseconds.append(1e3 * (time.perf_counter() - start))
            mean.update(value.item(), len(x))
        yield mean.avg, milliseconds


@torch.inference_mode()
def predict(model: nn.Module, batches: Batches) -> tuple[Tensor, Tensor]:
    """The classes of the highest scores, and the labels."""
    model.eval()
    predicted, labels = zip(*((model(x).argmax(1), target) for x, target in batches), strict=True)
    return torch.cat(predicted), torch.cat(labels)


def accuracy(model: nn.Module, batches: Batches) -> float:
    """Accuracy in percent."""
    predicted, labels = predict(model, batches)
    return 100 * (predicted == labels).double().mean().item()


def train_all(
    train: Callable[..., Run],
    jobs: Sequence[tuple[Any, ...]],
    json: Path | None = None,
    facts: Mapping[str, Any] | None = None,
    workers: int = 1,
    earlier: Sequence[Run] = (),
) -> list[Run]:
    """Call ``train`` with the arguments of every job; the results, which are data classes, in the order of the jobs.

    Args:
        train: one training.
        jobs: its arguments, of which the last two are shown beside the progress bar.
        json: file for the facts and the runs; it is written after each, so that an interruption loses nothing.
        facts: what the runs have in common.
        workers: trainings at a time, in processes of one thread each.
        earlier: results that stand before those of the jobs.
    """
    runs: list[Run] = [*earlier]
    with tqdm(total=len(jobs), desc="train", unit="training", disable=None) as bar:
        for job, run in zip(jobs, _results(train, jobs, workers), strict=True):
            runs.append(run)
            write_runs(json, facts or {}, runs)
            bar.update()
            bar.set_postfix_str(", ".join(map(str, job[-2:])))
    return runs


def _results(train: Callable[..., Run], jobs: Sequence[tuple[Any, ...]], workers: int) -> Iterator[Run]:
    if workers == 1:
        yield from (train(*job) for job in jobs)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as executor:
        yield from executor.map(train, *zip(*jobs, strict=True))


def write_runs(path: Path | None, facts: Mapping[str, Any], runs: Sequence[Any]) -> None:
    """Facts and runs as JSON, where a file is given."""
    if path is not None:
        write_json(path, {**facts, "runs": [asdict(run) for run in runs]})
