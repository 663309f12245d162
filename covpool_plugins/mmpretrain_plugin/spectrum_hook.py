"""The spectra of the covariances that a model pools, in the log of its training."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..checks import check_flag, check_integer
from ..errors import OptionError
from ..pooling import Pool, Spectrum
from .necks import find_neck, pools_of


@HOOKS.register_module()
class SpectrumHook(Hook):
    """Log how the covariances in the neck are conditioned, every so many iterations.

    For stage i of the neck the log, ``scalars.json`` and TensorBoard get ``spectrum/neck<i>/…``

    * ``condition_number``: largest over smallest eigenvalue that can be told from zero, median over the batch;
    * ``effective_rank``: exp of the entropy of the eigenvalues, mean over the batch;
    * ``largest_eigenvalue`` and ``smallest_eigenvalue`` of those that can be told from zero, medians over the batch.

    They are of the features that the neck pools in that iteration, on the first process of a distributed training.
    Training is the same to the last bit with and without this hook. The log repeats the latest values until
    there are new ones; give it the interval of the logger, or a multiple.

    Args:
        interval: iterations between two measurements.
        by_epoch: count epochs instead, and measure in the first iteration of one.
        neck: which part of the model pools.

    Source: Roy & Vetterli, "The Effective Rank: A Measure of Effective Dimensionality", EUSIPCO 2007.

    Raises:
        OptionError: when built with an option out of its range; before training for a model without a neck that
            pools, and for ``by_epoch`` with a loop that does not count epochs.
    """

    def __init__(self, interval: int = 100, by_epoch: bool = False, neck: str = "neck") -> None:
        check_integer("SpectrumHook: interval", interval)
        check_flag("SpectrumHook: by_epoch", by_epoch)
        self.interval = interval
        self.by_epoch = by_epoch
        self.neck = neck
        self._handles: dict[int, RemovableHandle] = {}
        self._measured: dict[str, Tensor] = {}

    def before_train(self, runner: Runner) -> None:
        find_neck(runner.model, self.neck)
        if self.by_epoch and isinstance(runner.train_loop, IterBasedTrainLoop):
            raise OptionError("SpectrumHook: by_epoch=True needs train_cfg=dict(by_epoch=True, max_epochs=…)")

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if self.by_epoch:
            due = batch_idx == 0 and self.every_n_epochs(runner, self.interval)
        else:
            due = self.every_n_train_iters(runner, self.interval)
        if due:
            for stage, pool in enumerate(pools_of(find_neck(runner.model, self.neck))):
                self._handles[stage] = pool.register_forward_pre_hook(partial(self._measure, stage))

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        if self._handles:  # those of pools that were not called
            stages = ", ".join(map(str, self._handles))
            runner.logger.warning(f"SpectrumHook: stages not seen in the {self.neck} (compiled or unused?): {stages}")
            self._remove(*self._handles)
        if is_main_process() and self._measured:
            values = torch.stack(list(self._measured.values())).tolist()
            for name, value in zip(self._measured, values, strict=True):
                runner.message_hub.update_scalar(f"train/spectrum/{name}", value)
        self._measured = {}

    def _measure(self, stage: int, pool: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """In the forward pass, because the weights of the reduction are others when the iteration is over.

        On all processes: a synchronized batch norm in the reduction waits for all of them.
        """
        assert isinstance(pool, Pool)
        self._remove(stage)  # a second call in the same iteration, as for a recomputation, is none of ours
        values = summary(pool.spectrum(inputs[0]))
        self._measured |= {f"neck{stage}/{name}": value for name, value in values.items()}

    def _remove(self, *stages: int) -> None:
        for stage in stages:
            self._handles.pop(stage).remove()


def summary(spectrum: Spectrum) -> dict[str, Tensor]:
    """Numbers for a batch, as 0-dimensional tensors; NaN if a covariance of the batch is not finite."""
    last = (spectrum.rank - 1).clamp_min(0).unsqueeze(-1)
    return {
        "condition_number": spectrum.condition_number.median(),
        "effective_rank": spectrum.effective_rank.mean(),
        "largest_eigenvalue": spectrum.eigenvalues[:, 0].median(),
        "smallest_eigenvalue": spectrum.eigenvalues.gather(-1, last).median(),
    }
