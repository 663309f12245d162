"""MMEngine loads checkpoints without running code from them.

MMEngine asks ``torch.load`` for everything a pickle can do, because its own log histories are more than tensors. Within
:func:`weights_only_checkpoints` only tensors, plain containers, NumPy arrays and those histories are loaded, wherever
the checkpoint comes from. Files are read by the package's own reader first.
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner.checkpoint import CheckpointLoader, load_from_local

from ..checkpoint_file import find_weights, read_checkpoint
from ..checkpoint_pickle import numpy_globals, shown
from ..errors import OptionError

FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
ADDRESS = "://"  # in https://, torchvision://, s3://, ..., which MMEngine would fetch


@contextmanager
def weights_only_checkpoints() -> Iterator[None]:
    """Within it, every ``torch.load`` is ``weights_only=True`` and knows MMEngine's log histories.

    MMEngine's loader of files, which ``load_from`` and ``init_cfg`` come to, has them checked first.

    Raises:
        OptionError: from within, for a checkpoint that holds anything else.
    """
    before = os.environ.get(FORCE)
    os.environ[FORCE] = "1"
    CheckpointLoader.register_scheme("", load_from_checked_file, force=True)
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


def read_mmengine_checkpoint(path: str | Path) -> Any:
    """What a file holds that MMEngine has written, or any other file of weights.

    Raises:
        FileNotFoundError: if there is no such file.
        OptionError: for an address, and for a file that is no checkpoint or holds more than weights and the state of a
            run.
    """
    if ADDRESS in str(path):
        raise OptionError(f"checkpoint {shown(str(path))} is an address; download the file and name it")
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"checkpoint {str(path)!r} does not exist")
    return read_checkpoint(path, more=_log_globals())


def check_checkpoint(path: str | Path, *, resume: bool = False) -> dict[str, Any]:
    """Raise in one line what would otherwise fail deep inside a run.

    Args:
        path: a file.
        resume: the run is to be continued, so the file has to hold the state of a run.

    Returns:
        What the checkpoint says of its run (``meta``).

    Raises:
        FileNotFoundError: if there is no such file.
        OptionError: for an address, and for a file that holds no weights, more than weights and the state of a run, or
            no run to resume.
    """
    checkpoint = read_mmengine_checkpoint(path)
    find_weights(checkpoint, path)
    meta = checkpoint.get("meta")
    if not resume:
        return meta if isinstance(meta, dict) else {}
    if not isinstance(meta, dict) or not {"message_hub", "optimizer"} <= checkpoint.keys():
        raise OptionError(f"{path} holds no run to resume; for its weights use --cfg-options load_from={path}")
    if "config" in meta:
        # MMEngine would run this text as Python.
        raise OptionError(f"{path} carries a config to be executed (meta['config']) and is not resumed")
    for name in ("epoch", "iter"):
        if type(meta.get(name, 0)) is not int:
            raise OptionError(f"{path}: meta[{name!r}] is no number, but {shown(meta[name])}")
    return meta


def load_from_checked_file(filename: str, map_location: Any) -> Any:
    """What MMEngine's loader of files gives, after a look at the file."""
    check_checkpoint(filename)
    return load_from_local(filename, map_location)


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
