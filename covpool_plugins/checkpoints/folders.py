"""Folders with weights: what they hold, and which of their files a conversion may replace."""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checkpoint_file import CheckpointError
from ..errors import one_line
from .placement import CHANGES

DESCRIPTION, RECORD, LEFT_OUT = "config.json", "original.json", "original.safetensors"
MANIFEST, REPORT = "conversion.json", "conversion.md"
MOST_BYTES = 1 << 24


def read_json(path: Path) -> dict[str, Any]:
    """A dictionary from a JSON file; empty if there is no such file.

    Raises:
        CheckpointError: for anything else; the message is one line.
    """
    if not path.exists():
        return {}
    if not path.is_file() or path.stat().st_size > MOST_BYTES:
        raise CheckpointError(f"{path} is no file, or larger than {MOST_BYTES} bytes")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError, MemoryError) as error:
        raise CheckpointError(f"{path} is damaged ({one_line(error)[:100]})") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is damaged: no dictionary, but {type(content).__name__}")
    return content


def read_record(folder: Path) -> dict[str, Any]:
    """What is needed besides the weights to write the original again; empty if they were not converted.

    Raises:
        CheckpointError: for a damaged record, or one that names a file in another folder.
    """
    path = folder / RECORD
    record = read_json(path)
    if not record:
        return {}
    name, container = record.get("file_name"), record.get("container")
    rows = record.get("keys")
    if not isinstance(name, str) or not is_file_name(name) or name in (MANIFEST, REPORT):
        raise CheckpointError(f"{path} is damaged or hostile: its file_name is no name of a checkpoint")
    fitting = isinstance(rows, list) and all(isinstance(row, list) and _is_row(*row) for row in rows)
    plain = [record.get("plain"), record.get("settings", {})]
    if not fitting or not isinstance(container, (str, type(None))) or not all(isinstance(p, dict) for p in plain):
        raise CheckpointError(f"{path} is damaged")
    return record


def _is_row(key: Any = None, ours: Any = None, part: Any = None, transposed: Any = False, *rest: Any) -> bool:
    texts = isinstance(key, str) and isinstance(ours, (str, type(None)))
    known = len(rest) == 1 or (len(rest) == 2 and rest[1] in list(CHANGES))
    numbers = known and isinstance(rest[0], list) and all(type(n) is int and 0 <= n < 1 << 32 for n in rest[0])
    return texts and isinstance(part, (int, type(None))) and isinstance(transposed, bool) and numbers


def is_file_name(name: str) -> bool:
    """Whether this is a file's name without folders or control characters."""
    return name.isprintable() and name not in ("", ".", "..") and Path(name).name == name and len(name) < 256


def manifest(folder: Path) -> dict[str, int]:
    """The files of a folder and their sizes."""
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir())}


def replaceable(folder: Path) -> set[str]:
    """Names of the files that an earlier conversion has written and nobody has changed, by its manifest.

    Raises:
        CheckpointError: for a damaged manifest.
    """
    path = folder / MANIFEST
    if not path.exists():
        return set()
    files: Mapping[str, Any] = read_json(path)
    return {MANIFEST, *(name for name, size in files.items() if is_file_name(name) and _has_size(folder / name, size))}


def _has_size(path: Path, size: Any) -> bool:
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == size
