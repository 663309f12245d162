"""Files written to a temporary name and moved into place, so that no half-written one is ever seen."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from .errors import OptionError


def write_atomically(path: Path | str, write: Callable[[BinaryIO], object]) -> Path:
    """Let ``write`` fill a temporary file beside ``path``, then move it to ``path``; folders are made as needed."""

    def open_and_write(temporary: str) -> None:
        with open(temporary, "wb") as file:
            write(file)

    return write_file_atomically(path, open_and_write)


def write_file_atomically(path: Path | str, write: Callable[[str], object]) -> Path:
    """As :func:`write_atomically`, for a ``write`` that takes the name of the temporary file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(descriptor)
    try:
        write(temporary)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return path


def write_json(path: Path | str, data: Any) -> Path:
    """Write numbers, texts, lists and dictionaries as JSON; NaN and infinity, which JSON does not have, become null."""
    text = json.dumps(_finite(data), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    return write_atomically(path, lambda file: file.write(text.encode()))


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def check_file(path: Path | str, suffixes: Collection[str] = ()) -> None:
    """Raise unless a file can be written to ``path``; nothing is made.

    Args:
        path: of the file; the folders above need not be there yet.
        suffixes: those allowed, such as ``".png"``; any if empty.

    Raises:
        OptionError: if it is a folder, its folder cannot be written to, or it has another suffix.
    """
    if Path(path).is_dir():
        raise OptionError(f"{path} is a folder; name a file")
    if suffixes and Path(path).suffix not in suffixes:
        raise OptionError(f"{path} must end in {' or '.join(suffixes)}")
    check_folder(Path(path).parent)


def check_folder(path: Path | str) -> None:
    """Raise unless files can be written into ``path``, which need not be there yet; nothing is made.

    Raises:
        OptionError: if it is or lies in something that is no folder, or one that cannot be written to.
    """
    existing = next(parent for parent in (Path(path).absolute(), *Path(path).absolute().parents) if parent.exists())
    if not existing.is_dir():
        raise OptionError(f"{path}: {existing} is there and is no folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise OptionError(f"{path}: {existing} cannot be written to")


@contextmanager
def new_folder(path: Path | str, replace: Container[str] | None = None) -> Iterator[Path]:
    """A temporary folder beside ``path`` that becomes ``path`` at the end; after an exception nothing is there.

    Args:
        path: where it comes to be; the folders above are made as needed, a link is followed.
        replace: names of files that a folder which is there may hold to be replaced; by default it has to be empty.

    Raises:
        OptionError: if ``path`` is no folder, the working directory, or holds something else.
    """
    path = Path(path).resolve()
    if path.exists() and not path.is_dir():
        raise OptionError(f"{path} is there and is no folder")
    if path == Path.cwd() or path in Path.cwd().parents:
        raise OptionError(f"{path} is the working directory or above it; name a new folder")
    inside = sorted(entry.name for entry in path.iterdir()) if path.exists() else []
    if inside and replace is None:
        raise OptionError(f"{path} is there and not empty; --force replaces what an earlier call has written")
    strange = [name for name in inside if replace is not None and name not in replace]
    if strange:
        raise OptionError(f"{path} holds {strange[0]!r}, which no earlier call has written; name another folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield temporary
        os.chmod(temporary, 0o777 & ~_umask())
        if replace is not None and path.exists():
            _replace_folder(temporary, path)
            return
        try:
            os.rename(temporary, path)  # over an empty folder, too
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            raise OptionError(f"{path} has been written by another process in the meantime") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace_folder(new: Path, path: Path) -> None:
    """Folders cannot be exchanged in one step: the old one is put aside, and back if the new one cannot be moved."""
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent)) / path.name
    try:
        os.rename(path, aside)
        try:
            os.rename(new, path)
        except BaseException:
            os.rename(aside, path)
            raise
    finally:
        shutil.rmtree(aside.parent, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
