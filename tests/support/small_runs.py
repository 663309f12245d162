"""Runs of MMEngine's runner by small configs, and what they leave."""

import itertools
import json
import logging
import runpy
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from mmengine.runner import Runner
from mmpretrain.registry import MODELS

from covpool_plugins.mmpretrain_plugin.necks import find_neck, pools_of
from covpool_plugins.mmpretrain_plugin.safe_checkpoints import weights_only_checkpoints

from .small_configs import model_config, settings

EPOCHS, BATCHES = 3, 3
ROOT = Path(__file__).parents[2]
run_numbers = itertools.count()


def run_main(name, *arguments):
    """tools/NAME.py in this process; what it raises goes through."""
    main = runpy.run_path(str(ROOT / "tools" / f"{name}.py"))["main"]
    with mock.patch.object(sys, "argv", [f"tools/{name}.py", *map(str, arguments)]):
        main()


def train(config, work_dir, *arguments, options=()):
    """tools/train.py with overrides of the config."""
    run_main("train", config, "--work-dir", work_dir, *arguments, *(["--cfg-options", *options] if options else []))


def test(config, checkpoint, work_dir, options=()):
    """The metrics of tools/test.py."""
    out = ["--out", Path(work_dir) / "metrics.json"]
    arguments = [config, checkpoint, "--work-dir", work_dir, *out]
    run_main("test", *arguments, *(["--cfg-options", *options] if options else []))
    return json.loads(out[1].read_text())


test.__test__ = False


def tiny(**options):
    torch.manual_seed(0)
    neck = dict(reduce_channels=3, **(options or dict(pool="isqrt", iterations=3)))
    return MODELS.build(dict(model_config(**neck), _scope_="mmpretrain"))


def a_runner(work_dir, *hooks, model=None, **options):
    parts = dict(log_level="INFO", param_scheduler=dict(type="MultiStepLR", milestones=[2]), **options)
    return Runner(
        model=model if model is not None else tiny(),
        work_dir=str(work_dir),
        experiment_name=f"hooks_{next(run_numbers)}",
        **{name: part for name, part in settings("isqrt", *hooks, **parts).items() if name != "model"},
    )


def load(path):
    with weights_only_checkpoints():
        return torch.load(path)


def resume(path, work_dir, *hooks):
    runner = a_runner(work_dir, *hooks, load_from=str(path), resume=True)
    with weights_only_checkpoints():
        runner.train()
    return runner


def leaves(value, path=""):
    """What nested containers hold, by path."""
    if not isinstance(value, (dict, list, tuple)):
        return {path: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    inner = [leaves(item, f"{path}.{key}" if path else str(key)) for key, item in items]
    return {path: leaf for branch in inner for path, leaf in branch.items()}


def equal(first, second):
    """Bit for bit; NaN equals NaN in arrays of NumPy."""
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        return np.array_equal(first, second, equal_nan=first.dtype.kind == "f")
    return first == second


def different(first, second):
    """The paths at which two nested containers differ, missing ones included."""
    first, second = leaves(first), leaves(second)
    return sorted(first.keys() ^ second.keys()) + [
        path for path in first if path in second and not equal(first[path], second[path])
    ]


def pools(model):
    return pools_of(find_neck(model, "neck"))


def warnings_of(runner):
    """A list that gets what the runner warns of from now on."""
    messages = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())
    runner.logger.addHandler(handler)
    return messages
