"""Hooks that log the spectra of the covariances a model pools, and how well its whitening layers whiten."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

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
from ..whitening.norm import WhiteningNorm
from .necks import find_neck, pools_of, unwrapped


class MeasuringHook(Hook):
    """Measure the input of some modules every so many iterations, and log ``<topic>/<module>/<number>``.

    The log, ``scalars.json`` and TensorBoard get the numbers of the iteration's own input, on the first process of a
    distributed training. They repeat the latest values until there are new ones: ``interval`` should be that of the
    logger or a multiple. Training is the same to the last bit with and without such a hook.

    A subclass defines ``modules``, those to measure by their names in the log, and ``measure``, numbers by name for the
    input of a module.

    Args:
        interval: iterations between two measurements.
        by_epoch: count epochs instead, and measure in the first iteration of an epoch.

    Raises:
        OptionError: when built with an option out of its range; before training, if there is nothing to measure, and
            for ``by_epoch`` with a loop that does not count epochs.
    """

    topic: ClassVar[str]

    def __init__(self, interval: int = 100, by_epoch: bool = False) -> None:
        check_integer(f"{type(self).__name__}: interval", interval)
        check_flag(f"{type(self).__name__}: by_epoch", by_epoch)
        self.interval, self.by_epoch = interval, by_epoch
        self._handles: dict[str, RemovableHandle] = {}
        self._measured: dict[str, Tensor] = {}

    def modules(self, model: nn.Module) -> dict[str, nn.Module]:
        raise NotImplementedError

    def measure(self, module: nn.Module, features: Tensor) -> dict[str, Tensor]:
        raise NotImplementedError

    def before_train(self, runner: Runner) -> None:
        self.modules(runner.model)
        if self.by_epoch and isinstance(runner.train_loop, IterBasedTrainLoop):
            name = type(self).__name__
            raise OptionError(f"{name}: by_epoch=True needs train_cfg=dict(by_epoch=True, max_epochs=…)")

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if self.by_epoch:
            due = batch_idx == 0 and self.every_n_epochs(runner, self.interval)
        else:
            due = self.every_n_train_iters(runner, self.interval)
        if due:
            for name, module in self.modules(runner.model).items():
                self._handles[name] = module.register_forward_pre_hook(partial(self._measure, name))

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        if self._handles:
            names = ", ".join(self._handles)
            runner.logger.warning(f"{type(self).__name__}: not called in this iteration (compiled or unused?): {names}")
            while self._handles:
                self._handles.popitem()[1].remove()
        if is_main_process() and self._measured:
            values = torch.stack(list(self._measured.values())).tolist()
            for name, value in zip(self._measured, values, strict=True):
                runner.message_hub.update_scalar(f"train/{self.topic}/{name}", value)
        self._measured = {}

    def _measure(self, name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Measure in the forward pass, before the step changes the weights of the layers below.

        On all processes: a measurement may be synchronized, and wait for all of them.
        """
        self._handles.pop(name).remove()  # only the first call of an iteration counts, not that of a recomputation
        self._measured |= {f"{name}/{number}": value for number, value in self.measure(module, inputs[0]).items()}


@HOOKS.register_module()
class SpectrumHook(MeasuringHook):
    """Log how the covariances in the neck are conditioned: ``spectrum/neck<i>/…`` for stage i.

    * ``condition_number``: largest over smallest eigenvalue that can be told from zero, median over the batch;
    * ``effective_rank``: exp of the entropy of the eigenvalues, mean over the batch;
    * ``largest_eigenvalue`` and ``smallest_eigenvalue`` of those that can be told from zero, medians over the batch.

    Args:
        interval, by_epoch: of :class:`MeasuringHook`.
        neck: name of the part of the model that pools.

    Raises:
        OptionError: as :class:`MeasuringHook`.

    Source: Roy & Vetterli, "The Effective Rank: A Measure of Effective Dimensionality", EUSIPCO 2007.
    """

    topic = "spectrum"

    def __init__(self, interval: int = 100, by_epoch: bool = False, neck: str = "neck") -> None:
        super().__init__(interval, by_epoch)
        self.neck = neck

    def modules(self, model: nn.Module) -> dict[str, nn.Module]:
        return {f"neck{stage}": pool for stage, pool in enumerate(pools_of(find_neck(model, self.neck)))}

    def measure(self, module: nn.Module, features: Tensor) -> dict[str, Tensor]:
        assert isinstance(module, Pool)
        return summary(module.spectrum(features))


def summary(spectrum: Spectrum) -> dict[str, Tensor]:
    """Numbers for a batch, as 0-dimensional tensors; NaN if a covariance of the batch is not finite."""
    last = (spectrum.rank - 1).clamp_min(0).unsqueeze(-1)
    return {
        "condition_number": spectrum.condition_number.median(),
        "effective_rank": spectrum.effective_rank.mean(),
        "largest_eigenvalue": spectrum.eigenvalues[:, 0].median(),
        "smallest_eigenvalue": spectrum.eigenvalues.gather(-1, last).median(),
    }


@HOOKS.register_module()
class WhiteningErrorHook(MeasuringHook):
    """Log how far the output of whitening layers is from white: ``whitening/<name of the layer>/error``.

    For each layer of ``covpool_plugins.whitening`` the distance ‖Σ - I‖ / ‖I‖ of the covariance of its output, before
    the affine map, from the identity; the mean over its groups. It is not zero for what cannot be whitened (fewer
    samples than channels, variances below ``eps``), for an iterative method that has not converged, and for PCA layers.

    Args:
        interval, by_epoch: of :class:`MeasuringHook`.

    Raises:
        OptionError: as :class:`MeasuringHook`.
    """

    topic = "whitening"

    def modules(self, model: nn.Module) -> dict[str, nn.Module]:
        named = unwrapped(model).named_modules()
        layers: dict[str, nn.Module] = {name: layer for name, layer in named if isinstance(layer, WhiteningNorm)}
        if not layers:
            raise OptionError("WhiteningErrorHook: the model has no layer of covpool_plugins.whitening in it")
        return layers

    def measure(self, module: nn.Module, features: Tensor) -> dict[str, Tensor]:
        assert isinstance(module, WhiteningNorm)
        return {"error": module.whitening_error(features).mean()}
