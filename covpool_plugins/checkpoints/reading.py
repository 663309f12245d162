"""Checkpoint files, read so that nothing in them is run and nothing larger than the file is made.

First the file is checked: its globals against a list, its storages against its length, its sums against its bytes.
Then ``torch.load(weights_only=True)`` reads it, a zip archive without copying it into memory.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from ..errors import OptionError
from ..safe_globals import numpy_scalar_globals
from .inert import ClaimError, Inert, PlainNamespace, StorageClaim, UnsafeGlobalError

# How torch.save has begun its files before they were zip archives, from 0.1 to 1.5.
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
CHUNK = 1 << 22
# What damage raises depends on where it is; an OSError that names no file comes of a place that is not in the file.
DAMAGED = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    struct.error,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
)

Progress = Callable[[int], object]


class CheckpointError(OptionError):
    """A file that is no checkpoint, is damaged, or holds more than weights and plain data."""


def read_checkpoint(path: Path | str, progress: Progress = lambda _: None) -> Any:
    """What ``torch.save`` or safetensors wrote: dictionaries, lists, text, numbers and dense tensors.

    Tensors of a zip archive and of safetensors are read from the file when they are used: it has to stay as it is.

    Args:
        path: the file.
        progress: called with numbers of bytes as they are checked, in all the file's size at most.

    Raises:
        FileNotFoundError, OSError: if there is no such file or it cannot be read.
        CheckpointError: for anything else that does not give such an object; the message is one line.

    Examples:
        >>> torch.save({"epoch": 3, "bias": torch.zeros(2)}, "best.pth")
        >>> read_checkpoint("best.pth")
        {'epoch': 3, 'bias': tensor([0., 0.])}
    """
    path = Path(path)
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
    if not size:
        raise CheckpointError(f"{path} is empty")
    try:
        if zipfile.is_zipfile(path) and start[:2] == b"PK":
            _check_archive(path, size, progress)
            return _torch_load(path, True)
        if start[:2] == b"PK":
            raise CheckpointError("is incomplete: a zip archive without its end; get it again")
        if start[:1] in (b"<", b"{"):
            raise CheckpointError("is text, not a checkpoint of PyTorch")
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        _check_legacy(path, size, progress)
        return _torch_load(path, False)
    except UnsafeGlobalError as error:
        raise CheckpointError(
            f"{path} asks for {error.name!r}, which is neither a tensor nor plain data; it is not loaded"
        ) from None
    except ClaimError as error:
        raise CheckpointError(f"{path} is damaged or hostile: it claims {error}") from None
    except CheckpointError as error:
        raise CheckpointError(f"{path} {error}") from None
    except (*DAMAGED, OSError, safetensors.SafetensorError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise
        raise CheckpointError(f"{path} is no checkpoint of PyTorch or is damaged{_said(error)}") from None


def _torch_load(path: Path, archive: bool) -> Any:
    with torch.serialization.safe_globals([*numpy_scalar_globals(), (PlainNamespace, "argparse.Namespace")]):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=archive)


def _check_archive(path: Path, size: int, progress: Progress) -> None:
    """Check an archive of PyTorch 1.6 and later: every sum, the pickle, and every storage that it names."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        pickles = [name for name in entries if name.endswith("/data.pkl")]
        if any(name.endswith("/constants.pkl") for name in entries):
            raise CheckpointError("is a TorchScript program, not a checkpoint")
        if len(pickles) != 1 or len(entries) != len(archive.infolist()):
            raise CheckpointError("is a zip archive, but none that torch.save has written")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
            raise CheckpointError("is a zip archive with compressed parts, which torch.save does not write")
        if sum(entry.file_size for entry in entries.values()) > size:
            raise ClaimError("parts that are larger than the file together")
        for name in entries:
            _check_sum(archive, name, progress)
        inert = Inert()
        with archive.open(pickles[0]) as file:
            inert.load(io.BytesIO(file.read()))  # whose read allocates no more than there is
    root = pickles[0].removesuffix("data.pkl")
    for claim in inert.storages.values():
        entry = entries.get(f"{root}data/{claim.key}")
        if entry is None or entry.file_size != claim.nbytes:
            raise ClaimError(f"{claim.nbytes} bytes for storage {claim.key!r}, which are not there")


def _check_sum(archive: zipfile.ZipFile, name: str, progress: Progress) -> None:
    with archive.open(name) as file:  # at the end of an entry its sum is compared
        while chunk := file.read(CHUNK):
            progress(len(chunk))


def _check_legacy(path: Path, size: int, progress: Progress) -> None:
    """Check a file of PyTorch before 1.6: pickles one behind the other, then the storages."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if Inert().load(content) != LEGACY_MAGIC or Inert().load(content) != LEGACY_PROTOCOL:
            raise CheckpointError("is no checkpoint of PyTorch")
        Inert().load(content)  # sizes of numbers on the machine that wrote it
        inert = Inert()
        inert.load(content)
        keys = Inert().load(content)
        if not isinstance(keys, list) or sorted(keys) != sorted(inert.storages):
            raise ClaimError("storages other than those that it has")
        progress(content.tell())
        for key in keys:
            _skip_storage(content, inert.storages[key], size)
            progress(inert.storages[key].nbytes)


def _skip_storage(content: Any, claim: StorageClaim, size: int) -> None:
    (numel,) = struct.unpack("<q", content.read(8))
    if numel != claim.numel or content.tell() + claim.nbytes > size:
        raise ClaimError(f"{claim.nbytes} bytes for storage {claim.key!r}, which are not there")
    content.seek(claim.nbytes, os.SEEK_CUR)


def _said(error: BaseException) -> str:
    said = " ".join(str(error).split())[:100]
    return f" ({said})" if said else ""
