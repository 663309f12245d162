"""MMEngine loads checkpoints without running code from them: weights, NumPy arrays, and its own log histories."""

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
from mmengine.logging import HistoryBuffer
from mmengine.optim import _ParamScheduler
from mmengine.runner.checkpoint import CheckpointLoader, load_from_local

from ..checkpoint_file import find_weights, read_checkpoint
from ..checkpoint_pickle import MOST_OPCODES, MOST_TIMES, numpy_globals, shown
from ..errors import OptionError

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
