"""Random numbers that depend on the epoch only, so that a resumed run draws the same ones."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor
from torch.utils.data import get_worker_info


class EpochSeedHook(Hook):
    """Seed Python, NumPy and torch from the run's seed, the rank and the epoch, before every training epoch.

    MMEngine's checkpoints hold no random state: a resumed run would draw the augmentations and the dropout of the
    first epochs again. MMEngine seeds each worker of a data loader when it starts, always with the same number:
    workers that are started anew for every epoch repeat their augmentations. Here they are seeded every epoch too.

    For loops that count epochs: an interrupted loop of iterations does not end its epoch.
    """

    priority = "VERY_HIGH"  # before hooks that draw random numbers themselves

    def __init__(self) -> None:
        # Shared with the workers, which read it when they fetch data.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def before_train(self, runner: Runner) -> None:
        loader = runner.train_loop.dataloader
        loader.worker_init_fn = partial(
            _seed_in_worker, before=loader.worker_init_fn, seed=runner.seed, rank=get_rank(), epoch=self._epoch
        )
        if loader.generator is None:
            # A loader that starts workers draws a number from torch's generator; persistent ones start only once.
            loader.generator = torch.Generator()

    def before_train_epoch(self, runner: Runner) -> None:
        self._epoch.fill_(runner.epoch)
        _seed(runner.seed, get_rank(), runner.epoch)


def _seed(*numbers: int) -> None:
    """Seed all generators; similar numbers give unrelated seeds, zeros at the end make no difference."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _seed_in_worker(worker: int, *, before: Callable[[int], None] | None, seed: int, rank: int, epoch: Tensor) -> None:
    """Let a worker's copy of the data set seed the generators before it fetches the first batch of an epoch."""
    if before is not None:
        before(worker)
    data_set: Any = get_worker_info().dataset  # type: ignore[union-attr]
    fetch = getattr(data_set, "__getitems__", None) or partial(_fetch, data_set)
    seeded_for = -1

    def seeded_fetch(indices: Sequence[int]) -> Any:
        nonlocal seeded_for
        if seeded_for != epoch.item():
            seeded_for = int(epoch.item())
            _seed(seed, rank, seeded_for, 1 + worker)
        return fetch(indices)

    data_set.__getitems__ = seeded_fetch  # a data loader prefers it to __getitem__


def _fetch(data_set: Any, indices: Sequence[int]) -> list[Any]:
    return [data_set[index] for index in indices]
