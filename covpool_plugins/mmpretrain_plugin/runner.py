"""Training and testing with MMEngine's runner, for ``tools/train.py`` and ``tools/test.py``."""

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

import torch
import torch.distributed as dist
from mmengine.config import Config, DictAction
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ..checks import check_choice
from ..errors import OptionError, UnknownNameError, one_line
from ..files import check_file, write_json
from .active_method import ConfiguredMethodHook
from .run_hooks import AugmentedTestHook, EagerUpdateHook, EpochSeedHook, StartHook, augment_test
from .safe_checkpoints import check_checkpoint, weights_only_checkpoints
from .whole_checkpoints import latest_checkpoint, write_whole_checkpoints

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


def train(
    config: str | Path,
    *,
    work_dir: str | Path | None = None,
    resume: str | Path | None = None,
    amp: bool = False,
    auto_scale_lr: bool = False,
    validate: bool = True,
    options: Sequence[str] = (),
    launcher: str = "none",
) -> None:
    """Train the model of a config; checkpoints and logs go to ``work_dir``.

    A run that is resumed at the end of an epoch ends with the same weights, averages and optimizer state as one that
    was never interrupted, bit for bit: with the same config, as many processes and workers, deterministic operations
    (on a GPU: ``randomness.deterministic=True``), a ``train_cfg`` that counts epochs, and no gradients accumulated
    from one epoch into the next. A run may be killed at any moment: checkpoints are moved into place when they are
    complete, and older ones removed after that.

    Args:
        config: path of an MMPretrain config.
        work_dir: folder for the results, ``work_dirs/<name of the config>`` by default.
        resume: checkpoint to continue from, or ``auto`` for the latest one in ``work_dir``, if there is one.
        amp: train in mixed precision; the pooling itself stays in full precision.
        auto_scale_lr: multiply the learning rate by the whole batch over ``auto_scale_lr.base_batch_size``.
        validate: evaluate while training.
        options: overrides as ``KEY=VALUE``, see :func:`load_config`.
        launcher: ``none``, or ``pytorch`` under ``torchrun``; without a GPU the processes talk over gloo.

    Raises:
        UnknownNameError, OptionError, OSError: before anything is trained, for a config, a key or a checkpoint that
            does not fit.
    """
    with _run(config, launcher) as start:
        cfg = load_config(config, options)
        _prepare(config, cfg, work_dir, launcher, "model", "train_dataloader", "train_cfg", "optim_wrapper")
        if amp:
            if not torch.cuda.is_available():
                raise OptionError("--amp needs a GPU, and none is available")
            cfg.optim_wrapper.type = "AmpOptimWrapper"
            cfg.optim_wrapper.setdefault("loss_scale", "dynamic")
        if auto_scale_lr:
            if "base_batch_size" not in (cfg.get("auto_scale_lr") or {}):
                raise OptionError(f"{config}: --auto-scale-lr needs auto_scale_lr=dict(base_batch_size=…)")
            cfg.auto_scale_lr.enable = True
        if not validate:
            cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
        _prepare_checkpoint(cfg, resume)
        runner = _build_runner(cfg, start, EpochSeedHook(), EagerUpdateHook(), ConfiguredMethodHook())
        write_whole_checkpoints(runner)
        if cfg.get("resume"):
            _load_strictly(runner)
        runner.train()


def test(
    config: str | Path,
    checkpoint: str | Path,
    *,
    work_dir: str | Path | None = None,
    out: str | Path | None = None,
    tta: bool = False,
    options: Sequence[str] = (),
    launcher: str = "none",
) -> dict[str, float]:
    """Evaluate a checkpoint on the test set of a config, with the weights that validation in training measured.

    Those are the averages, unless the config has an ``EMAHook`` that does not evaluate them.

    Args:
        config, work_dir, options, launcher: as in :func:`train`.
        checkpoint: file with all weights of the model.
        out: JSON file for the metrics.
        tta: test-time augmentation: the config's ``tta_pipeline`` and ``tta_model``, or else the mean of the scores of
            each picture and of its mirror image.

    Returns:
        The metrics by name, for example ``{'accuracy/top1': 92.5}`` in percent.

    Raises:
        UnknownNameError, OptionError, OSError: as in :func:`train`.
    """
    with _run(config, launcher) as start:
        if out is not None:
            check_file(out)
        cfg = load_config(config, options)
        _prepare(config, cfg, work_dir, launcher, "model", "test_dataloader", "test_cfg", "test_evaluator")
        hooks = [AugmentedTestHook(augment_test(cfg))] if tta else []
        check_checkpoint(checkpoint)
        cfg.load_from, cfg.resume = str(checkpoint), False
        runner = _build_runner(cfg, start, *hooks)
        _load_strictly(runner)
        metrics = {name: float(value) for name, value in runner.test().items()}
        if out is not None and is_main_process():
            write_json(out, metrics)
    return metrics


def load_config(path: str | Path, options: Sequence[str] = ()) -> Config:
    """Read a config and merge overrides into it.

    Args:
        path: path of the config.
        options: overrides as ``KEY=VALUE``, for example ``model.neck.pool=isqrt``; ``data_root=DIR`` sets the folder
            of all data sets.

    Raises:
        FileNotFoundError: if the file does not exist.
        UnknownNameError: for an override of a key that neither the config nor the runner knows.
        OptionError: if an override is not ``KEY=VALUE``.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"config {str(path)!r} does not exist")
    cfg = Config.fromfile(path)
    known = set(cfg) | set(inspect.signature(Runner.__init__).parameters) - {"self", "cfg"} | RUNNER_KEYS
    overrides = argparse.Namespace(options={})
    for option in options:
        key, equals, _ = option.partition("=")
        if not equals:
            raise OptionError(f"--cfg-options takes KEY=VALUE, got {option!r}")
        if key.split(".")[0] not in known:
            raise UnknownNameError("config key", key.split(".")[0], known)
        try:
            DictAction([], dest="options")(argparse.ArgumentParser(), overrides, [option])
        except (RecursionError, AssertionError) as error:
            allowed = "numbers, words, True, False, None, a,b and [(1,2),3]"
            raise OptionError(f"--cfg-options cannot read {option!r}; values are {allowed}") from error
    cfg.merge_from_dict(overrides.options)
    if "data_root" in overrides.options:
        for part in ("train", "val", "test"):
            _set_data_root(cfg.get(f"{part}_dataloader"), str(cfg.data_root))
        cfg.merge_from_dict(overrides.options)  # the data_root of a single data set stays
    return cfg


def _set_data_root(node: Any, root: str) -> None:
    if isinstance(node, dict) and "data_root" in node:
        node["data_root"] = root
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        _set_data_root(child, root)


@contextmanager
def _run(config: str | Path, launcher: str) -> Iterator[StartHook]:
    """The processes of a run and what it reads; a tool reports in one line what goes wrong before the first batch.

    Yields:
        The hook that the run needs: once it has seen the start, errors are bugs and keep their type.
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
    """Let the processes of a launcher talk to each other: by nccl, or by gloo without a GPU.

    Raises:
        OptionError: for an unknown launcher, or one that did not start this process.
    """
    check_choice("launcher", launcher, ("none", "pytorch"))
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


def _prepare(path: str | Path, cfg: Config, work_dir: str | Path | None, launcher: str, *needed: str) -> None:
    """Fill in the defaults of MMPretrain's own tools, for any number of workers, with or without a GPU."""
    missing = [key for key in needed if cfg.get(key) is None]
    if missing:
        raise OptionError(f"{path}: the config has no {', '.join(missing)}")
    cfg.launcher = launcher
    if launcher != "none" and not torch.cuda.is_available():  # MMEngine's default wraps for the device of a process
        unused = cfg.get("find_unused_parameters", False)
        default = dict(type="MMDistributedDataParallel", broadcast_buffers=False, find_unused_parameters=unused)
        cfg.model_wrapper_cfg = dict(cfg.get("model_wrapper_cfg") or default, device_ids=None)
    if work_dir is not None:
        cfg.work_dir = str(work_dir)
    elif cfg.get("work_dir") is None:
        cfg.work_dir = os.path.join("work_dirs", Path(path).stem)
    if cfg.get("experiment_name") is None:
        # MMEngine's default name is the same for all runs that start within a second, which then share a log.
        cfg.experiment_name = f"{Path(path).stem}_{next(_run_numbers)}"
    for part in ("train", "val", "test"):
        loader = cfg.get(f"{part}_dataloader")
        if loader is None:
            continue
        loader.setdefault("collate_fn", dict(type="default_collate"))
        loader.setdefault("pin_memory", torch.cuda.is_available())
        loader.setdefault("persistent_workers", True)
        if not loader.get("num_workers"):
            loader.persistent_workers = False


def _prepare_checkpoint(cfg: Config, resume: str | Path | None) -> None:
    """Write into a config the checkpoint that a run begins with, and the seed of the run that it continues."""
    if resume is not None:
        cfg.load_from, cfg.resume = None if resume == "auto" else str(resume), True
    if cfg.get("resume") and cfg.get("load_from") is None:
        cfg.load_from = latest_checkpoint(cfg.work_dir)
        cfg.resume = cfg.load_from is not None
    if cfg.get("load_from") is None:
        return
    meta = check_checkpoint(cfg.load_from, resume=cfg.get("resume", False))
    randomness = cfg.get("randomness") or {}
    if cfg.get("resume") and randomness.get("seed") is None:
        # MMEngine takes it from the checkpoint after it has built the samplers and the workers with another one.
        cfg.randomness = dict(randomness, seed=meta.get("seed"))


def _build_runner(cfg: Config, *hooks: Hook) -> Runner:
    runner = RUNNERS.build(cfg) if "runner_type" in cfg else Runner.from_cfg(cfg)
    for hook in hooks:
        runner.register_hook(hook)
    return runner


def _load_strictly(runner: Runner) -> None:
    """Raise for missing weights and other shapes; MMEngine only warns and goes on with random weights."""
    runner.load_checkpoint = partial(runner.load_checkpoint, strict=True)  # type: ignore[method-assign]
