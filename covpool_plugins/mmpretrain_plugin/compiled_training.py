"""Training with ``compile=True`` in the config."""

from __future__ import annotations

import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner


class EagerUpdateHook(Hook):
    """Keep the update of the weights out of ``torch.compile``.

    MMEngine compiles a whole training step. Numbers that change in every iteration (the learning rate in a warm-up,
    the norm of the gradient in the log) are constants to the compiler: each step is compiled again until it gives up.
    """

    def before_train(self, runner: Runner) -> None:
        if runner.cfg.get("compile") and isinstance(runner.optim_wrapper, OptimWrapper):
            update = torch.compiler.disable(runner.optim_wrapper.update_params)
            runner.optim_wrapper.update_params = update  # type: ignore[method-assign]
