"""What ``tools/train.py`` and ``tools/test.py`` add to MMEngine's runs."""

from __future__ import annotations

import argparse
import inspect
import itertools
import os
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from mmengine.config import Config, DictAction
from mmengine.dataset import worker_init_fn
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import RUNNERS
from mmengine.runner import Runner, set_random_seed
from torch import nn

from ..errors import OptionError, UnknownNameError, one_line
from .covariance_pooling import CovariancePooling
from .necks import unwrapped
from .safe_checkpoints import weights_only_checkpoints, write_whole_checkpoints

# Keys of a config that the runner reads and that are no arguments of it.
RUNNER_KEYS = {
    "activation_checkpointing",
    "compile",
    "data_root",
    "efficient_conv_bn_eval",
    "find_unused_parameters",
    "model_wrapper_cfg",
    "sync_bn",
}

_run_numbers = itertools.count(1)


class StartHook(Hook):
    """Knows in ``seen`` whether a run has come to its first batch, and compares a head with neck and data before.

    Raises:
        OptionError: before the first batch, for a head of another width, or of fewer classes than the data have.
    """

    priority = "LOWEST"  # the last step before the first batch

    def __init__(self) -> None:
        self.seen = False

    def before_train(self, runner: Runner) -> None:
        self._compare(runner, runner.train_loop, runner.val_loop)
        # MMEngine compiles a whole step. Numbers that change in every iteration (the learning rate in a warm-up, the
        # norm of the gradient in the log) are constants to the compiler, and each step would be compiled again.
        if runner.cfg.get("compile") and isinstance(runner.optim_wrapper, OptimWrapper):
            update = torch.compiler.disable(runner.optim_wrapper.update_params)
            runner.optim_wrapper.update_params = update  # type: ignore[method-assign]

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
        for loop in filter(None, loops):
            classes = (getattr(loop.dataloader.dataset, "metainfo", None) or {}).get("classes") or ()
            if num_classes is not None and len(classes) > num_classes:
                names = textwrap.shorten(", ".join(map(str, classes)), 200, placeholder=" …")
                raise OptionError(
                    f"the data set has {len(classes)} classes ({names}), the model has {num_classes}; "
                    f"set model.head.num_classes={len(classes)}"
                )
        self.seen = True


class EpochSeedHook(Hook):
    """Seed Python, NumPy and torch from the run's seed, the rank and the epoch, before every training epoch.

    MMEngine's checkpoints hold no random state: a resumed run would draw the augmentations and the dropout of the
    first epochs again. For loops that count epochs, and workers that start with each of them.
    """

    priority = "VERY_HIGH"  # before hooks that draw random numbers themselves

    def before_train(self, runner: Runner) -> None:
        loader = runner.train_loop.dataloader
        if getattr(loader.worker_init_fn, "func", None) is worker_init_fn:
            loader.worker_init_fn = None  # it seeds every epoch alike; torch seeds workers from its own generator

    def before_train_epoch(self, runner: Runner) -> None:
        # Similar numbers give unrelated seeds.
        set_random_seed(int(np.random.SeedSequence((runner.seed, get_rank(), runner.epoch)).generate_state(1)[0]))


@contextmanager
def one_run(config: str, launcher: str) -> Iterator[StartHook]:
    """The processes of a run and what it reads; what goes wrong before the first batch becomes one line.

    Once the hook that it gives, which the run needs, has seen the start, errors are bugs and keep their type.
    """
    start = StartHook()
    try:
        with process_group(launcher), weights_only_checkpoints():
            yield start
    except (ValueError, ImportError):
        raise
    except OSError as error:
        # That of a worker of a data loader has the worker's traceback in its message.
        raise OSError(str(error).strip().splitlines()[-1]) if "Original Traceback" in str(error) else error from error
    except Exception as error:
        if start.seen:
            raise
        # The str() of a KeyError is the repr of its message.
        message = one_line(Exception(*error.args) if isinstance(error, KeyError) else error)
        raise OptionError(f"{config}: {textwrap.shorten(message, 500, placeholder=' …')}") from error


@contextmanager
def process_group(launcher: str) -> Iterator[None]:
    """Let the processes that torchrun starts for ``pytorch`` talk to each other: by nccl, or by gloo without a GPU."""
    if launcher == "pytorch" and "RANK" not in os.environ:
        raise OptionError(
            "launcher 'pytorch' needs processes that torchrun starts, for example: "
            "python -m torch.distributed.run --nproc-per-node 2 tools/train.py CONFIG --launcher pytorch"
        )
    begins_here = not dist.is_initialized()
    try:
        if launcher == "pytorch" and begins_here and not torch.cuda.is_available():
            dist.init_process_group("gloo")  # with a GPU MMEngine sets up nccl
        yield
        if dist.is_initialized():
            dist.barrier()  # otherwise the first process to end closes connections that others still read from
    finally:
        if begins_here and dist.is_initialized():
            dist.destroy_process_group()


def load_config(path: str | Path, options: Sequence[str] = ()) -> Config:
    """Read a config and merge overrides into it, ``KEY=VALUE`` with a key that the config or the runner knows.

    ``data_root=DIR`` sets the folder of all data sets.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"config {str(path)!r} does not exist")
    cfg = Config.fromfile(path)
    known = set(cfg) | set(inspect.signature(Runner.__init__).parameters) - {"self", "cfg"} | RUNNER_KEYS
    overrides: dict[str, Any] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals:
            raise OptionError(f"--cfg-options takes KEY=VALUE, got {option!r}")
        if key.split(".")[0] not in known:
            raise UnknownNameError("config key", key.split(".")[0], known)
        try:
            overrides[key] = DictAction._parse_iterable(value)
        except (RecursionError, AssertionError) as error:
            allowed = "numbers, words, True, False, None, a,b and [(1,2),3]"
            raise OptionError(f"--cfg-options cannot read {option!r}; values are {allowed}") from error
    cfg.merge_from_dict(overrides)
    if "data_root" in overrides:
        for part in ("train", "val", "test"):
            _set_data_root(cfg.get(f"{part}_dataloader"), str(cfg.data_root))
        cfg.merge_from_dict(overrides)  # the data_root of a single data set stays
    return cfg


def _set_data_root(node: Any, root: str) -> None:
    if isinstance(node, dict) and "data_root" in node:
        node["data_root"] = root
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        _set_data_root(child, root)


def configure(args: argparse.Namespace, *needed: str) -> Config:
    """The config of a tool's arguments, which has the keys needed, with the defaults of MMPretrain's own tools."""
    cfg = load_config(args.config, args.cfg_options)
    missing = [key for key in needed if cfg.get(key) is None]
    if missing:
        raise OptionError(f"{args.config}: the config has no {', '.join(missing)}")
    cfg.launcher, name = args.launcher, Path(args.config).stem
    if args.launcher != "none" and not torch.cuda.is_available():  # MMEngine's default wraps for a process's device
        unused = cfg.get("find_unused_parameters", False)
        default = dict(type="MMDistributedDataParallel", broadcast_buffers=False, find_unused_parameters=unused)
        cfg.model_wrapper_cfg = dict(cfg.get("model_wrapper_cfg") or default, device_ids=None)
    cfg.work_dir = args.work_dir or cfg.get("work_dir") or os.path.join("work_dirs", name)
    # MMEngine's default name is the same for all runs that start within a second, which then share a log.
    cfg.experiment_name = cfg.get("experiment_name") or f"{name}_{next(_run_numbers)}"
    for part in ("train", "val", "test"):
        loader = cfg.get(f"{part}_dataloader")
        if loader is not None:
            loader.setdefault("collate_fn", dict(type="default_collate"))
            loader.setdefault("pin_memory", torch.cuda.is_available())
            # Workers of the training start with each epoch, to be seeded.
            persistent = part != "train" and loader.get("persistent_workers", True)
            loader.persistent_workers = bool(persistent and loader.get("num_workers"))
    return cfg


def build_runner(cfg: Config, *hooks: Hook | dict[str, Any], strict: bool) -> Runner:
    """The runner of a config with more hooks; it writes whole checkpoints.

    With ``strict`` missing weights and other shapes raise; MMEngine only warns and goes on with random weights.
    """
    runner = RUNNERS.build(cfg) if "runner_type" in cfg else Runner.from_cfg(cfg)
    for hook in hooks:
        runner.register_hook(hook)
    write_whole_checkpoints(runner)
    if strict:
        runner.load_checkpoint = partial(runner.load_checkpoint, strict=True)  # type: ignore[method-assign]
    return runner
