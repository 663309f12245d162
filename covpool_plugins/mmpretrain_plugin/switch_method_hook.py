"""Train with one square-root method first, and with another later."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.model import BaseAveragedModel
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import nn

from ..checks import check_flag, check_integer
from ..errors import OptionError
from ..linalg import Method, resolve_method
from .active_method import encode, keep_method, switch_method
from .necks import find_neck, pools_with_root


@HOOKS.register_module()
class SwitchMethodHook(Hook):
    """Train the first ``begin`` epochs or iterations with the method of the config, all later ones with another.

    The hybrid protocol: the fast Newton-Schulz iteration first, an exact root for the last epochs. This hook adds
    ``active_method`` to the neck's state dict: a run is resumed and a checkpoint tested with the method it was saved
    with. Averaged copies of the model (``EMAHook``) switch too.

    Args:
        begin: how many epochs or iterations to train with the method of the config; 0 switches at once.
        method: name or object of the method from then on, one of
            ``covpool_plugins.linalg.list_methods('sqrtm')``.
        options: options of that method, for example ``dict(iterations=7)``.
        neck: name of the part of the model that pools.
        by_epoch: ``begin`` counts epochs; ``False`` for iterations, in loops of either kind.

    Source: Song, Sebe & Wang, "Why Approximate Matrix Square Root Outperforms Accurate SVD in Global Covariance
    Pooling?", ICCV 2021.

    Raises:
        UnknownNameError, OptionError: when built with a method or an option that does not exist, or with ``begin``
            out of its range; before training for a model without a neck that takes matrix square roots, and for
            ``by_epoch=True`` in a loop that does not count epochs.
    """

    priority = "ABOVE_NORMAL"  # before EMAHook copies the model

    def __init__(
        self,
        begin: int,
        method: str | Method,
        options: dict[str, Any] | None = None,
        neck: str = "neck",
        by_epoch: bool = True,
    ) -> None:
        check_integer("SwitchMethodHook: begin", begin, 0)
        check_flag("SwitchMethodHook: by_epoch", by_epoch)
        self.begin, self.by_epoch = begin, by_epoch
        self.method = resolve_method(method, **(options or {}))
        encode(self.method)  # raises now, not after ``begin`` epochs, if a checkpoint cannot hold it
        self.neck = neck
        self._first: tuple[nn.Module, Method] | None = None

    def before_run(self, runner: Runner) -> None:
        neck = find_neck(runner.model, self.neck)
        if self._first is None or self._first[0] is not neck:  # called twice by a runner that trains and tests
            self._first = neck, pools_with_root(neck)[0][1]
        device = next(runner.model.parameters()).device
        for neck in self._necks(runner):
            keep_method(neck, device)

    def before_train(self, runner: Runner) -> None:
        if self.by_epoch and isinstance(runner.train_loop, IterBasedTrainLoop):
            raise OptionError("SwitchMethodHook counts epochs, the training iterations; set by_epoch=False")
        last, unit = (runner.max_epochs, "epochs") if self.by_epoch else (runner.max_iters, "iterations")
        if self.begin >= last:
            runner.logger.warning(
                f"SwitchMethodHook: begin={self.begin} is not reached in {last} {unit}, {self.method} will not be used"
            )
        self._switch(runner)

    def before_train_epoch(self, runner: Runner) -> None:
        if self.by_epoch:
            self._switch(runner)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if not self.by_epoch and runner.iter == self.begin:
            self._switch(runner)

    def _switch(self, runner: Runner) -> None:
        """Set the method of the epoch or iteration that comes."""
        assert self._first is not None
        done, unit = (runner.epoch, "epoch") if self.by_epoch else (runner.iter, "iteration")
        method = self.method if done >= self.begin else self._first[1]
        changed = [switch_method(neck, method) for neck in self._necks(runner)]
        if changed[0]:
            runner.logger.info(f"the {self.neck} pools by {method} from {unit} {done + 1} on")

    def _necks(self, runner: Runner) -> list[nn.Module]:
        """The necks of the model and of its averages."""
        averages = [getattr(hook, "ema_model", None) for hook in runner.hooks]
        models = [runner.model, *(average.module for average in averages if isinstance(average, BaseAveragedModel))]
        return [find_neck(model, self.neck) for model in models]
