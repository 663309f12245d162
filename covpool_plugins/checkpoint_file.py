"""The one reader of checkpoint files: nothing in a file is run, and nothing much larger than the file is made.

``torch.load(weights_only=True)`` runs no code of a file, but makes whatever the file claims to hold. So the file is
checked first: the entries of an archive and their sums, then the pickle (:mod:`.checkpoint_pickle`), then that every
storage it names lies in the file.
"""

from __future__ import annotations

import argparse
import io
import mmap
import os
import re
import stat
import struct
import zipfile
from collections.abc import Callable, Container, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .checkpoint_pickle import MOST_TIMES, CheckpointError, HostileError, Program, numpy_globals, shown
from .errors import one_line

ARCHIVE = b"PK\x03\x04"
# How torch.save began its files before they were archives.
LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
# A network with 5,000 tensors, averages and an optimizer takes 15,000 entries.
MOST_ENTRIES, MOST_HEADER = 50_000, 1 << 22
CHUNK = 1 << 22
# Of files of weights in folders, the first that there is counts.
USUAL_NAMES = (
    *("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth", "model.bin", "model.ckpt"),
    *("pytorch_model.safetensors", "open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
)
SUFFIXES = (".safetensors", ".pth", ".pth.tar", ".bin", ".ckpt", ".pt")
# Where training scripts put the weights, the first that there is counts; averaged weights come first, as in timm.
AVERAGED = ("state_dict_ema", "model_ema")
CONTAINERS = (*AVERAGED, "state_dict", "net", "model", "model_state_dict", "module")
# What DataParallel, DistributedDataParallel and torch.compile put between the parts of a key; what training loops
# (Lightning, scripts) and wrappers of networks put before all keys of the network.
WRAPPERS = ("module", "_orig_mod")
LOOPS = ("model", "net", "network")
OWNERS = (*LOOPS, "backbone", "timm_model")
COUNTERS = ("n_averaged",)  # of torch.optim.swa_utils, beside the averaged network
# How keys of parameters and statistics end in timm and MMPretrain, whose integers count or point.
REAL_NUMBERS = re.compile(
    r"(\w+_)?(weights?|bias(es)?|mean|var|subspace|gamma|alpha|scale|gain|token|embed|table|temperature)_?\d*"
)

Progress = Callable[[int], object]


def read_checkpoint(
    path: Path | str,
    progress: Progress = lambda _: None,
    more: Mapping[str, Callable[..., Any]] | None = None,
    mmap: bool = True,
) -> Any:
    """What ``torch.save`` or safetensors wrote: dictionaries, lists, text, numbers and dense tensors.

    Args:
        path: the file.
        progress: called with numbers of bytes as they are checked, in all the file's size at most.
        more: classes and functions by their names in the file that may be used besides.
        mmap: tensors of an archive and of safetensors are read when they are used: the file has to stay as it is.

    Raises:
        FileNotFoundError, OSError: if there is no such file or it cannot be read.
        CheckpointError: for anything else that does not give such an object; the message is one line.

    Examples:
        >>> torch.save({"epoch": 3, "bias": torch.zeros(2)}, "best.pth")
        >>> read_checkpoint("best.pth")
        {'epoch': 3, 'bias': tensor([0., 0.])}
    """
    path = Path(path)
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise CheckpointError(f"{path} is no regular file")
    try:
        with open(path, "rb") as file:
            return _read(path, file, progress, dict(more or {}), mmap)
    except CheckpointError as error:
        raise CheckpointError(f"{path} {error}") from None
    except OSError as error:
        if error.filename is not None:
            raise
        raise _damaged(path, error) from None
    except Exception as error:  # what damage raises depends on where it is
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path} is no checkpoint of PyTorch or is damaged ({one_line(error)[:100]})")


def _read(path: Path, file: BinaryIO, progress: Progress, more: dict[str, Callable[..., Any]], mapped: bool) -> Any:
    size, start = os.fstat(file.fileno()).st_size, file.read(9)
    if not size:
        raise CheckpointError("is empty")
    known: list[Any] = [*numpy_globals(), argparse.Namespace, *((make, name) for name, make in more.items())]
    # At its end the context takes away what an outer one has allowed, too.
    allowed = torch.serialization.get_safe_globals()
    with torch.serialization.safe_globals([known_global for known_global in known if known_global not in allowed]):
        if start.startswith(ARCHIVE):
            _check_archive(path, file, size, progress, Program(size, more))
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        if path.suffix == ".safetensors":
            if int.from_bytes(start[:8], "little") > MOST_HEADER:
                raise CheckpointError("is no file of safetensors, or has a header of more than 4 MB")
            return _read_safetensors(path)
        if start[8:] == b"{":  # others would read it in another way
            raise CheckpointError("may be a file of safetensors; then its name has to end in .safetensors")
        if start[:1] in (b"<", b"{"):
            raise CheckpointError("is text, not a checkpoint of PyTorch")
        # Without a file descriptor PyTorch does not try to read a tar archive, whose headers claim any length.
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            _check_legacy(content, size, progress, more)
            content.seek(0)
            return torch.load(content, map_location="cpu", weights_only=True)  # type: ignore[arg-type]


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors by all their names: of those that are one, the metadata name the one that was saved."""
    tensors: dict[str, Tensor] = safetensors.torch.load_file(path)
    with safetensors.safe_open(path, "pt") as file:
        for name, saved in (file.metadata() or {}).items():
            if saved in tensors:
                tensors.setdefault(name, tensors[saved])
    return tensors


def weights_file(folder: Path) -> Path:
    """The file of weights in a folder of timm, of Hugging Face's tools or of Accelerate.

    Raises:
        CheckpointError: if there is none, or several of which none has a usual name.
    """
    usual = [folder / name for name in USUAL_NAMES if (folder / name).exists()]
    others = sorted(path for path in folder.iterdir() if path.name.endswith(SUFFIXES))
    if not usual and len(others) != 1:
        found = (
            f"several files of weights ({others[0].name}, {others[1].name}, ...); name one"
            if others
            else (f"none of {', '.join(USUAL_NAMES)}: it is no folder of weights")
        )
        raise CheckpointError(f"{folder} holds {found}")
    return (usual or others)[0]


class Weights(NamedTuple):
    """The weights of a network in what a file holds.

    ``tensors`` are by their keys without what wrappers add, ``keys`` has for each of these keys the one in the file.
    ``container`` is the name under which the weights are in the file, ``None`` if they are all of it. ``beside`` holds
    by the file's keys what is saved with the network: a loss, metrics, an average.
    """

    tensors: dict[str, Tensor]
    keys: dict[str, str]
    container: str | None
    beside: dict[str, Any]


def find_weights(content: Any, path: Path | str, averaged: bool = True, known: Container[str] = ()) -> Weights:
    """The weights of the network in what a file holds.

    Args:
        content: of :func:`read_checkpoint`.
        path: of the file.
        averaged: take averaged weights (EMA), where there are some.
        known: keys of the network, which are kept as they are.

    Raises:
        CheckpointError: if there are none, if one of them is no tensor or holds integers where a network has real
            numbers, if two keys would become one, or if the tensors overlap and are together much larger than the file.
    """
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a dictionary of weights")
    containers = CONTAINERS if averaged else [name for name in CONTAINERS if name not in AVERAGED]
    container = next((name for name in containers if isinstance(content.get(name), dict)), None)
    stored = content if container is None else content[container]
    for key in stored:
        if not isinstance(key, str):
            raise CheckpointError(f"{path}: {shown(key)} is no name of a tensor")
    keys = bare_keys([key for key in stored if key not in COUNTERS], path, known)
    tensors = {bare: stored[key] for bare, key in keys.items()}
    places = {}
    for bare, value in tensors.items():
        _check_weight(bare, value, f"{path}: {shown(keys[bare])}")
        places[value.data_ptr(), value.shape, value.stride()] = value.nbytes
    if not tensors:
        raise CheckpointError(f"{path} holds no weights")
    if sum(places.values()) > MOST_TIMES * Path(path).stat().st_size:
        raise CheckpointError(f"{path} is damaged or hostile: its tensors overlap and are larger than the file")
    used = set(keys.values())
    return Weights(tensors, keys, container, {key: value for key, value in stored.items() if key not in used})


def _check_weight(key: str, value: Any, name: str) -> None:
    if not isinstance(value, Tensor):
        raise CheckpointError(f"{name} holds no tensor, but {type(value).__name__}")
    if not value.is_floating_point() and REAL_NUMBERS.fullmatch(key.rpartition(".")[2]):
        raise CheckpointError(f"{name} is of {value.dtype}, weights are real numbers")
    if value.is_floating_point() and value.itemsize < 2:  # which mean nothing without their scales
        raise CheckpointError(f"{name} is of {value.dtype}, weights have 16 bits or more")


def check_real_numbers(weights: Mapping[str, Tensor], model: Mapping[str, Tensor], path: Path | str) -> None:
    """Raise if a file has integers or truth values where a model has real numbers, whatever their name is.

    Args:
        weights: of the file, by the model's keys.
        model: the model's state dict.
        path: of the file.

    Raises:
        CheckpointError: naming the key and both types.
    """
    for key, value in weights.items():
        own = model.get(key)
        if isinstance(value, Tensor) and own is not None and value.is_floating_point() < own.is_floating_point():
            raise CheckpointError(f"{path}: {shown(key)} is of {value.dtype}, the model needs {own.dtype}")


def check_numpy(path: Path) -> None:
    """Raise if a NumPy archive, which timm reads without pickles, unpacks to much more than its size.

    Raises:
        CheckpointError: for such an archive, or a damaged one.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(part.file_size for part in archive.infolist())
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise _damaged(path, error) from None
    if unpacked > MOST_TIMES * path.stat().st_size:
        raise CheckpointError(f"{path} is damaged or hostile: unpacked it has {unpacked} bytes")


def bare_keys(keys: Iterable[str], path: Path | str, known: Container[str]) -> dict[str, str]:
    """The network's keys without what wrappers add to them, and for each of these the one in the file.

    Where a training loop's own modules are saved too, the network is what stands under ``model.`` and the like.
    """
    bare = {key: [part for part in key.split(".") if part not in WRAPPERS] for key in keys}
    while not any(".".join(parts) in known for parts in bare.values()):
        owners = {parts[0] for parts in bare.values() if len(parts) > 1 and parts[0] in OWNERS}
        owned = {key: parts[1:] for key, parts in bare.items() if parts[0] in owners and len(parts) > 1}
        if len(owners) != 1 or (len(owned) < len(bare) and not owners <= set(LOOPS)):
            break
        bare = owned
    originals: dict[str, str] = {}
    for key, parts in bare.items():
        name = ".".join(parts)
        if originals.setdefault(name, key) != key:
            raise CheckpointError(
                f"{path} has weights for {shown(name)} twice: {shown(originals[name])} and {shown(key)}"
            )
    return originals


def _check_archive(path: Path, file: BinaryIO, size: int, progress: Progress, program: Program) -> None:
    """Check an archive of PyTorch 1.6 and later: its entries, every sum, the pickle, every storage that it names."""
    _check_end(file, size)
    with zipfile.ZipFile(file) as archive:
        entries = {entry.orig_filename: entry for entry in archive.infolist()}
        if any(name.endswith("/constants.pkl") for name in entries):
            raise CheckpointError("is a TorchScript program, not a checkpoint")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
            raise CheckpointError("is a zip archive with compressed parts, which torch.save does not write")
        root = next((name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl")), None)
        names = {name.casefold() for name in entries}  # PyTorch takes DATA.PKL for data.pkl
        strange = [n for n in entries if root is None or not n.startswith(root) or {"", ".", ".."} & {*n.split("/")}]
        if root is None or len(names) != len(archive.infolist()) or strange:
            raise CheckpointError("is a zip archive, but none that torch.save has written")
        if sum(max(entry.file_size, entry.compress_size) for entry in entries.values()) > size:
            raise HostileError("it claims parts that are larger than the file together")
        for entry in entries.values():
            with archive.open(entry) as part:  # at the end of an entry its sum is compared
                while chunk := part.read(CHUNK):
                    progress(len(chunk))
        _check_same_places(path, file, entries, root)
        with archive.open(f"{root}data.pkl") as part:
            program.run(io.BufferedReader(part))  # type: ignore[type-var]
    for claim in program.storages.values():
        part_of_it = entries.get(f"{root}data/{claim.key}")
        if part_of_it is None or part_of_it.file_size != claim.numel * claim.itemsize:
            raise HostileError(f"it claims storage {shown(claim.key)}, which is not there")


def _check_end(file: BinaryIO, size: int) -> None:
    """The directory of an archive has to lie right before its end records, so that all readers find the same one."""
    file.seek(-min(size, 98), os.SEEK_END)
    tail = file.read().rjust(98, b"\0")
    signature, *disks, count, length, offset, comment = struct.unpack("<4s3H H2LH", tail[76:])
    begin = size - 22
    if tail[56:60] == b"PK\x06\x07":
        large = struct.unpack("<QQQ", tail[32:56])
        if any(
            small not in (value, most)
            for small, value, most in zip((count, length, offset), large, (0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF), strict=True)
        ):
            raise HostileError("a zip archive with two ends")
        begin, (count, length, offset) = size - 98, large
    if signature != b"PK\x05\x06" or comment:
        raise CheckpointError("is damaged or incomplete: a zip archive without its end; get it again")
    if offset + length != begin or any(disks[:2]) or count > MOST_ENTRIES or length > 512 * max(count, 1):
        raise CheckpointError("is a zip archive, but none that torch.save has written")


def _check_same_places(path: Path, file: BinaryIO, entries: Mapping[str, zipfile.ZipInfo], root: str) -> None:
    """PyTorch's reader of archives has to find what Python's finds."""
    reader: Any = torch._C.PyTorchFileReader(str(path))
    if {f"{root}{name}" for name in reader.get_all_records()} != set(entries):
        raise HostileError("a zip archive that readers see differently")
    for name, entry in entries.items():
        file.seek(entry.header_offset + 26)
        place = entry.header_offset + 30 + sum(struct.unpack("<2H", file.read(4)))
        if reader.get_record_offset(name.removeprefix(root)) != place:
            raise HostileError("a zip archive that readers see differently")
    if len(reader.get_record("data.pkl")) != entries[f"{root}data.pkl"].file_size:
        raise HostileError("a zip archive that readers see differently")


def _check_legacy(content: mmap.mmap, size: int, progress: Progress, more: Mapping[str, Any]) -> None:
    """Check a file of PyTorch before 1.6: pickles one behind the other, then the storages."""
    program = Program(size, more)
    if program.run(content) != LEGACY_MAGIC or program.run(content) != LEGACY_PROTOCOL:
        raise CheckpointError("is no checkpoint of PyTorch")
    program.run(content)  # sizes of numbers on the machine that wrote it
    program.run(content)
    keys = program.run(content)
    if type(keys) is not list or any(type(key) is not str for key in keys) or sorted(keys) != sorted(program.storages):
        raise HostileError("it claims other storages than those that it has")
    progress(content.tell())
    for key in keys:
        claim = program.storages[key]
        (numel,) = struct.unpack("<q", content.read(8))
        nbytes = claim.numel * claim.itemsize
        if numel != claim.numel or content.tell() + nbytes > size:
            raise HostileError(f"it claims storage {shown(key)}, which is not there")
        content.seek(nbytes, os.SEEK_CUR)
        progress(nbytes)
