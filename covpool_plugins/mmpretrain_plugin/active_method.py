"""The square-root method of a neck: switched during a training, and kept in its state dict.

Only a neck that :func:`set_method` was called for has that entry. It holds name and options of the method as text, so
that a checkpoint can be used without the config that made it. A buffer and no extra state of PyTorch's: that would be
in the checkpoints of all necks, and a checkpoint without it would not load strictly.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import BaseAveragedModel
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import Tensor, nn

from ..checks import check_flag, check_integer
from ..errors import OptionError
from ..linalg import Method, list_methods, resolve_method
from .necks import find_neck, pools_with_root

KEY = "active_method"
# Bytes of the text, the same for all methods: averaged copies and checkpoints of other methods then fit each other.
WIDTH = 256


def encode(method: Method) -> Tensor:
    """Name and options of a method as text, padded with spaces to (WIDTH,) bytes."""
    names = [name for name in list_methods("sqrtm") if type(resolve_method(name)) is type(method)]
    if not names:
        raise OptionError(f"a checkpoint cannot hold {method}; methods with a name: {', '.join(list_methods('sqrtm'))}")
    text = json.dumps([names[0], dataclasses.asdict(method)])
    if len(text) > WIDTH:
        raise OptionError(f"a checkpoint cannot hold {method}: {len(text)} characters, at most {WIDTH} are stored")
    return torch.tensor(list(text.ljust(WIDTH).encode()), dtype=torch.uint8)


def decode(stored: Tensor) -> Method:
    """The method that :func:`encode` wrote."""
    try:
        name, options = json.loads(bytes(stored.tolist()))
        return resolve_method(name, **options)
    except (ValueError, TypeError) as error:
        raise OptionError(f"the checkpoint's {KEY} does not exist in this version ({error})") from error


def set_method(neck: nn.Module, method: Method | None = None, device: torch.device | None = None) -> bool:
    """Set the method of all pools of a neck, by default its own, and keep it in the state dict; whether it changed."""
    pools = pools_with_root(neck)
    method = method or pools[0].method
    changed = any(pool.method != method for pool in pools)
    for pool in pools:
        pool.method = method
    if hasattr(neck, KEY):
        neck.get_buffer(KEY).copy_(encode(method))  # in place, because an average of the model may refer to it
    else:
        neck.register_buffer(KEY, encode(method).to(device))
        neck.register_load_state_dict_pre_hook(adopt_method)
    return changed


def adopt_method(neck: nn.Module, state_dict: dict[str, Any], prefix: str, *unused: Any) -> None:
    """Take the method of a neck from the state dict that it is about to load, if there is one.

    For :meth:`torch.nn.Module.register_load_state_dict_pre_hook`. A neck that takes no matrix square root drops it.
    """
    stored = state_dict.get(prefix + KEY)
    if stored is not None:
        method = decode(stored)
        try:
            pools_with_root(neck)
        except OptionError:
            state_dict.pop(prefix + KEY)
            return
        if set_method(neck, method, stored.device):
            print_log(f"the neck pools by {method}, as the checkpoint says", "current", logging.WARNING)
    elif hasattr(neck, KEY):
        state_dict[prefix + KEY] = neck.get_buffer(KEY)


class ConfiguredMethodHook(Hook):
    """A new training that begins with the weights of another run pools by the method of its own config."""

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        if runner._resume:
            return
        for key in [key for key in checkpoint.get("state_dict", {}) if key.split(".")[-1] == KEY]:
            method = decode(checkpoint["state_dict"].pop(key))
            runner.logger.warning(f"the checkpoint's neck pooled by {method}; this run pools as its config says")


@HOOKS.register_module()
class SwitchMethodHook(Hook):
    """Train the first ``begin`` epochs or iterations with the method of the config, all later ones with another.

    The hybrid protocol: the fast Newton-Schulz iteration first, an exact root for the last epochs. This hook adds
    ``active_method`` to the neck's state dict: a run is resumed and a checkpoint tested with the method it was saved
    with. Averaged copies of the model (``EMAHook``) switch too.

    Args:
        begin: how many epochs or iterations to train with the method of the config; 0 switches at once.
        method: name or object of the method from then on, one of ``covpool_plugins.linalg.list_methods('sqrtm')``.
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
        self._first: Method | None = None
        self._active: Method | None = None

    def before_run(self, runner: Runner) -> None:
        if self._first is None:  # called twice by a runner that trains and tests
            self._first = pools_with_root(find_neck(runner.model, self.neck))[0].method
        device = next(runner.model.parameters()).device
        for neck in self._necks(runner):
            set_method(neck, device=device)

    def before_train(self, runner: Runner) -> None:
        if self.by_epoch and isinstance(runner.train_loop, IterBasedTrainLoop):
            raise OptionError("SwitchMethodHook counts epochs, the training iterations; set by_epoch=False")
        last, unit = (runner.max_epochs, "epochs") if self.by_epoch else (runner.max_iters, "iterations")
        if self.begin >= last:
            runner.logger.warning(
                f"SwitchMethodHook: begin={self.begin} is not reached in {last} {unit}, {self.method} will not be used"
            )
        self._active = None

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        done, unit = (runner.epoch, "epoch") if self.by_epoch else (runner.iter, "iteration")
        method = self.method if done >= self.begin else self._first
        if method != self._active:
            self._active = method
            changed = [set_method(neck, method) for neck in self._necks(runner)]
            if changed[0]:
                runner.logger.info(f"the {self.neck} pools by {method} from {unit} {done + 1} on")

    def _necks(self, runner: Runner) -> list[nn.Module]:
        """The necks of the model and of its averages."""
        averages = [getattr(hook, "ema_model", None) for hook in runner.hooks]
        models = [runner.model, *(average.module for average in averages if isinstance(average, BaseAveragedModel))]
        return [find_neck(model, self.neck) for model in models]
