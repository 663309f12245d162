"""Checkpoints of runs: read without running code from them, and whole whenever a run was killed.

MMEngine removes the checkpoint that is replaced, then writes the new one under its final name: a run that is killed
meanwhile leaves half a file and, with ``max_keep_ckpts=1``, nothing else. Here a file is moved into place when it is
complete, and the older one is removed after that.
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.fileio import LocalBackend, get_file_backend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.logging import HistoryBuffer
from mmengine.optim import _ParamScheduler
from mmengine.runner import Runner, find_latest_checkpoint
from mmengine.runner.checkpoint import CheckpointLoader, load_from_local

from ..checkpoint_file import find_weights, read_checkpoint
from ..checkpoint_pickle import MOST_OPCODES, MOST_TIMES, numpy_globals, shown
from ..errors import OptionError
from ..files import write_atomically

WHOLE_FILES = "covpool_plugins.whole_files"
FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
HUB = ("log_scalars", "runtime_info", "resumed_keys")
MOST_NUMBER = 1 << 32  # the seeds that NumPy takes are below
ADDRESS = "://"  # in https://, torchvision://, s3://, ..., which MMEngine would fetch


@contextmanager
def weights_only_checkpoints() -> Iterator[None]:
    """Within it, every ``torch.load`` is ``weights_only=True`` and knows MMEngine's log histories.

    Files that ``load_from`` and ``init_cfg`` name are read by the package's own reader first.

    Raises:
        OptionError: from within, for a checkpoint that holds anything else.
    """
    before = os.environ.get(FORCE)
    os.environ[FORCE] = "1"
    CheckpointLoader.register_scheme("", _load_from_checked_file, force=True)
    try:
        known = [(make, name) for name, make in _log_globals().items()]
        with torch.serialization.safe_globals([*numpy_globals(), *known]):
            yield
    except pickle.UnpicklingError as error:
        raise OptionError(f"the checkpoint {_reason(error)}") from error
    finally:
        CheckpointLoader.register_scheme("", load_from_local, force=True)
        os.environ.pop(FORCE)
        if before is not None:
            os.environ[FORCE] = before


def read_mmengine_checkpoint(path: str | Path, mmap: bool = True) -> Any:
    """What a file holds that MMEngine has written, or any other file of weights; raises as :func:`check_checkpoint`."""
    if ADDRESS in str(path):
        raise OptionError(f"checkpoint {shown(str(path))} is an address; download the file and name it")
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"checkpoint {str(path)!r} does not exist")
    return read_checkpoint(path, more=_log_globals(), mmap=mmap)


def check_checkpoint(path: str | Path, *, resume: bool = False) -> dict[str, Any]:
    """What a checkpoint says of its run (``meta``); raise in one line what would fail deep inside a run.

    Raises:
        FileNotFoundError: if there is no such file.
        OptionError: for an address, and for a file that holds no weights, more than weights and the state of a run, or,
            to ``resume``, no run.
    """
    checkpoint = read_mmengine_checkpoint(path)
    _check_weights(checkpoint, path)
    meta = checkpoint.get("meta")
    if not resume:
        return meta if isinstance(meta, dict) else {}
    if not isinstance(meta, dict) or not {"message_hub", "optimizer"} <= checkpoint.keys():
        raise OptionError(f"{path} holds no run to resume; for its weights use --cfg-options load_from={path}")
    for wrong in _wrong_in_run(checkpoint, meta):
        raise OptionError(f"{path}: {wrong}")
    _check_copies([checkpoint[name] for name in checkpoint if not name.endswith("state_dict")], path)
    return meta


def _is_number(value: Any) -> bool:
    return type(value) is int and 0 <= value < MOST_NUMBER


def _wrong_in_run(checkpoint: dict[str, Any], meta: dict[str, Any]) -> Iterator[str]:
    """What MMEngine would take into its objects, to fail when the run is under way, or run as Python."""
    if "config" in meta:
        yield "it carries a config to be executed (meta['config']) and is not resumed"
    for name in ("epoch", "iter", "seed"):
        value = meta.get(name)
        if not (_is_number(value) or (name == "seed" and value is None)):
            yield f"meta[{name!r}] is no number of a run, but {shown(value)}"
    hub, schedulers = checkpoint["message_hub"], checkpoint.get("param_schedulers", [])
    if not isinstance(hub, dict) or not all(isinstance(hub.get(name), dict) for name in HUB):
        yield f"message_hub has to hold the dictionaries {', '.join(HUB)}"
    for name, history in hub["log_scalars"].items():
        if not isinstance(history, HistoryBuffer) or not _is_history(vars(history)):
            yield f"message_hub holds no history of numbers for {shown(name)}"
    lists = list(schedulers.values()) if isinstance(schedulers, dict) else [schedulers]
    states = [state for part in lists for state in (part if isinstance(part, list) else [part])]
    methods = {name for name in dir(_ParamScheduler) if callable(getattr(_ParamScheduler, name))} | {"optimizer"}
    if not all(isinstance(state, dict) and not methods & {*state} for state in states):
        yield "param_schedulers are no states of schedulers"
    if not isinstance(checkpoint["optimizer"], dict):
        yield f"optimizer is no state of an optimizer, but {shown(checkpoint['optimizer'])}"


def _is_history(state: dict[str, Any]) -> bool:
    arrays = [state.get("_log_history"), state.get("_count_history")]
    numbers = all(isinstance(array, np.ndarray) and array.ndim == 1 and array.dtype.kind in "biuf" for array in arrays)
    return numbers and len({len(array) for array in arrays}) == 1 and _is_number(state.get("max_length"))  # type: ignore[arg-type]


def _check_copies(parts: list[Any], path: str | Path) -> None:
    """Raise if the parts are larger than the file when every reference in them is followed, as an optimizer does."""
    left = MOST_TIMES * Path(path).expanduser().stat().st_size
    for _ in range(MOST_OPCODES):
        if not parts:
            return
        part = parts.pop()
        left -= part.nbytes if isinstance(part, torch.Tensor) else 0
        if left < 0:
            break
        parts += part.values() if isinstance(part, dict) else part if isinstance(part, (list, tuple)) else []
    raise OptionError(f"{path} is damaged or hostile: the state of its run is larger than the file")


def _load_from_checked_file(filename: str, map_location: Any) -> Any:
    """In place of MMEngine's loader of files: on the CPU."""
    checkpoint = read_mmengine_checkpoint(filename, mmap=False)  # a run may write a file of this name
    _check_weights(checkpoint, filename)
    return checkpoint


def _check_weights(checkpoint: Any, path: str | Path) -> None:
    find_weights(checkpoint, path, averaged=False)
    if "ema_state_dict" in checkpoint:  # which EMAHook takes
        find_weights({"state_dict": checkpoint["ema_state_dict"]}, path)


def _log_globals() -> dict[str, Callable[..., Any]]:
    HistoryBuffer()  # fills its table of statistics, which _statistic reads
    return {"mmengine.logging.history_buffer.HistoryBuffer": HistoryBuffer, "builtins.getattr": _statistic}


def _statistic(owner: Any, name: str) -> Callable[..., Any]:
    """Stands in for ``getattr``, which a log history needs for its own statistics and for nothing else."""
    statistics = HistoryBuffer._statistics_methods
    if owner is HistoryBuffer and name in statistics:
        return statistics[name]
    raise pickle.UnpicklingError(f"GLOBAL builtins.getattr of {name!r}")


def _reason(error: pickle.UnpicklingError) -> str:
    blocked = re.search(r"(?:GLOBAL|class|function) ([\w.]+\.[\w.]+)", str(error))
    what = f" ({blocked[1]})" if blocked else ""
    return f"is damaged or holds more than weights and the state of a run{what}; it is not loaded"


class WholeFiles(LocalBackend):
    """Local files that are written atomically; a removed file stays until the next one has been written."""

    def __init__(self, outdated: list[str]) -> None:
        self.outdated = outdated  # shared by the two objects that MMEngine makes, one to write and one to remove

    def put(self, obj: bytes, filepath: str | Path) -> None:
        write_atomically(filepath, lambda file: file.write(obj))
        while self.outdated:
            path = Path(self.outdated.pop())
            if path != Path(filepath):
                path.unlink(missing_ok=True)

    def remove(self, filepath: str | Path) -> None:
        self.outdated.append(str(filepath))


register_backend(WHOLE_FILES, WholeFiles)


def write_whole_checkpoints(runner: Runner) -> None:
    """Let the checkpoint hooks of a runner write to local folders by :class:`WholeFiles`."""
    for hook in runner.hooks:
        if not isinstance(hook, CheckpointHook) or hook.backend_args or hook.file_client_args:
            continue
        if type(get_file_backend(hook.out_dir or runner.work_dir)) is LocalBackend:
            hook.backend_args = dict(backend=WHOLE_FILES, outdated=[])


def latest_checkpoint(work_dir: str) -> str | None:
    """The checkpoint that a run in this folder wrote last; ``None`` if there is none.

    The file ``last_checkpoint`` names it, but a run may be killed after it has removed that checkpoint and before it
    has written the name of the next: then it is the newest one.
    """
    named = find_latest_checkpoint(work_dir)
    if named and ("://" in named or Path(named).exists()):
        return named
    checkpoints = [path for pattern in ("epoch_*.pth", "iter_*.pth") for path in Path(work_dir).glob(pattern)]
    return str(max(checkpoints, key=lambda path: path.stat().st_mtime_ns)) if checkpoints else named or None


def load_or_resume(cfg: Config, resume: str | None) -> None:
    """Write into a config the checkpoint that a run begins with, and the seed of the run that it continues.

    That is the one to ``resume``, or the latest in the ``work_dir`` for ``auto``, if there is one.
    """
    if resume is not None:
        cfg.load_from, cfg.resume = None if resume == "auto" else resume, True
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
