"""Hooks of every run of ``tools/train.py`` and ``tools/test.py``."""

from __future__ import annotations

import random
import textwrap
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from mmpretrain.registry import MODELS
from torch import Tensor, nn
from torch.utils.data import get_worker_info

from ..errors import OptionError
from .covariance_pooling import CovariancePooling
from .necks import unwrapped

MIRROR_IMAGES = [dict(type="RandomFlip", prob=prob) for prob in (0.0, 1.0)]


class StartHook(Hook):
    """Knows whether a run has come to its first batch, and compares a head with its neck and its data before that.

    Attributes:
        seen: whether the next thing is the first batch.

    Raises:
        OptionError: before the first batch, for a head of another width, or of fewer classes than the data have.
    """

    priority = "LOWEST"  # the last step before the first batch

    def __init__(self) -> None:
        self.seen = False

    def before_train(self, runner: Runner) -> None:
        self._compare(runner, runner.train_loop, runner.val_loop)

    def before_test(self, runner: Runner) -> None:
        self._compare(runner, runner.test_loop)

    def _compare(self, runner: Runner, *loops: Any) -> None:
        model = unwrapped(runner.model)
        neck, head = getattr(model, "neck", None), getattr(model, "head", None)
        neck = neck[-1] if isinstance(neck, nn.Sequential) else neck  # a list of necks
        width, num_classes = getattr(head, "in_channels", None), getattr(head, "num_classes", None)
        if isinstance(neck, CovariancePooling) and isinstance(width, int) and width != neck.out_channels:
            raise OptionError(
                f"the neck gives {neck.out_channels} numbers per image, model.head.in_channels is {width}"
            )
        for loop in loops:
            metainfo = getattr(loop.dataloader.dataset, "metainfo", None) if loop is not None else None
            classes = (metainfo or {}).get("classes") or ()
            if num_classes is not None and len(classes) > num_classes:
                names = textwrap.shorten(", ".join(map(str, classes)), 200, placeholder=" …")
                raise OptionError(
                    f"the data set has {len(classes)} classes ({names}), the model has {num_classes}; "
                    f"set model.head.num_classes={len(classes)}"
                )
        self.seen = True


class AugmentedTestHook(Hook):
    """Wrap the model for the time of a test, so that the predictions for all views of a picture are merged.

    MMPretrain's own tool wraps the model when it is built: other hooks then do not find its parts and its averages.

    Args:
        merge: config of the model that merges, one of MMEngine's ``BaseTTAModel``.
    """

    priority = "LOWEST"  # other hooks see the model itself

    def __init__(self, merge: dict[str, Any]) -> None:
        self.merge = merge

    def before_test_epoch(self, runner: Runner) -> None:
        self._model = runner.model
        runner.model = MODELS.build(dict(self.merge, module=runner.model)).eval()

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        runner.model = self._model


def augment_test(cfg: Config) -> dict[str, Any]:
    """Write the ``tta_pipeline`` of a config, or one with mirror images, into its test data.

    Returns:
        Its ``tta_model``, or a config for the mean of the scores.
    """
    data_set = cfg.test_dataloader.dataset
    *before, pack = data_set.pipeline
    mirrored = [*before, dict(type="TestTimeAug", transforms=[MIRROR_IMAGES, [pack]])]
    data_set.pipeline = cfg.get("tta_pipeline") or mirrored
    return cfg.get("tta_model") or dict(type="AverageClsScoreTTA")


class EagerUpdateHook(Hook):
    """Keep the update of the weights out of ``torch.compile``.

    With ``compile`` in its config MMEngine compiles a whole training step. Numbers that change in every iteration (the
    learning rate in a warm-up, the norm of the gradient in the log) are constants to the compiler: each step is
    compiled again until it gives up.
    """

    def before_train(self, runner: Runner) -> None:
        if runner.cfg.get("compile") and isinstance(runner.optim_wrapper, OptimWrapper):
            update = torch.compiler.disable(runner.optim_wrapper.update_params)
            runner.optim_wrapper.update_params = update  # type: ignore[method-assign]


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
