"""MMEngine loads checkpoints without running code from them.

MMEngine asks ``torch.load`` for everything a pickle can do, because its own log histories are more than tensors. Within
:func:`weights_only_checkpoints` only tensors, plain containers, NumPy arrays and those histories are loaded, wherever
the checkpoint comes from.
"""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import HistoryBuffer

from ..errors import OptionError
from ..safe_globals import numpy_array_globals, numpy_scalar_globals

FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


@contextmanager
def weights_only_checkpoints() -> Iterator[None]:
    """Within it, every ``torch.load`` is ``weights_only=True`` and knows MMEngine's log histories.

    Raises:
        OptionError: from within, for a checkpoint that holds anything else.
    """
    before = os.environ.get(FORCE)
    os.environ[FORCE] = "1"
    try:
        with torch.serialization.safe_globals(_known_globals()):
            yield
    except pickle.UnpicklingError as error:
        raise OptionError(f"the checkpoint {_reason(error)}") from error
    finally:
        os.environ.pop(FORCE)
        if before is not None:
            os.environ[FORCE] = before


def check_checkpoint(path: str | Path, *, resume: bool = False) -> dict[str, Any]:
    """Raise in one line what would otherwise fail deep inside a run.

    Args:
        path: a file, or an address with a scheme (``https://``, ``torchvision://``), which is left to MMEngine.
        resume: the run is to be continued, so the file has to hold the state of a run.

    Returns:
        What the checkpoint says of its run (``meta``); nothing for an address.

    Raises:
        FileNotFoundError: if there is no such file.
        OptionError: if it is not a checkpoint, or holds more than weights and the state of a run.
    """
    if "://" in str(path):
        return {}
    if not Path(path).expanduser().is_file():
        raise FileNotFoundError(f"checkpoint {str(path)!r} does not exist")
    try:
        with weights_only_checkpoints():
            checkpoint = torch.load(Path(path).expanduser(), map_location="cpu", mmap=zipfile.is_zipfile(path) or None)
    except OptionError as error:
        raise OptionError(f"{path}: {error}") from error
    except PermissionError:
        raise
    except Exception as error:  # what torch.load raises for a damaged file depends on where the damage is
        raise OptionError(f"{path} is not a checkpoint, or is damaged") from error
    if not isinstance(checkpoint, dict):
        raise OptionError(f"{path} holds a {type(checkpoint).__name__}, not a state dict")
    meta = checkpoint.get("meta")
    if not resume:
        return meta if isinstance(meta, dict) else {}
    if not isinstance(meta, dict) or not {"message_hub", "optimizer"} <= checkpoint.keys():
        raise OptionError(f"{path} holds no run to resume; for its weights use --cfg-options load_from={path}")
    if "config" in meta:
        # MMEngine would run this text as Python.
        raise OptionError(f"{path} carries a config to be executed (meta['config']) and is not resumed")
    return meta


def _known_globals() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    HistoryBuffer()  # fills its table of statistics, which _statistic reads
    return [HistoryBuffer, *numpy_array_globals(), *numpy_scalar_globals(), (_statistic, "builtins.getattr")]


def _statistic(owner: Any, name: str) -> Callable[..., Any]:
    """Stands in for ``getattr``, which a log history needs for its own statistics and for nothing else."""
    statistics = HistoryBuffer._statistics_methods
    if owner is HistoryBuffer and name in statistics:
        return statistics[name]
    raise pickle.UnpicklingError(f"GLOBAL builtins.getattr of {name!r}")


def _reason(error: pickle.UnpicklingError) -> str:
    found = re.search(r"(?:GLOBAL|class|function) ([\w.]+\.[\w.]+)", str(error))
    what = f" ({found[1]})" if found else ""
    return f"is damaged or holds more than weights and the state of a run{what}; it is not loaded"
