"""What a pickle asks for and what it claims, found out without doing anything that it says.

An original checkpoint is a pickle: a program. Here it is run on a machine that has no instructions but "make a
container" and "note a claim": every global is one of a short list, and stands for something that does nothing.
``torch.load(weights_only=True)`` reads the file afterwards; it is safe with the globals, but allocates what a file
claims to hold, and knows more of them than these checkpoints need.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from ..safe_globals import numpy_scalar_globals

STORAGES = {
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}


class UnsafeGlobalError(pickle.UnpicklingError):
    """A global that is not on the list."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class ClaimError(pickle.UnpicklingError):
    """A tensor that does not fit what the file says of its storage."""


class InertDict(dict):
    """An ordered dictionary; attributes that come with it (``_metadata``) are passed over."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        pass


class PlainNamespace:
    """``argparse.Namespace`` as plain data."""

    values: dict[str, Any]

    def __setstate__(self, state: object) -> None:
        self.values = dict(state) if isinstance(state, dict) else {}


@dataclass(frozen=True)
class StorageType:
    """``torch.FloatStorage`` and its like: bytes of a number."""

    itemsize: int


@dataclass(frozen=True)
class StorageClaim:
    """What a pickle says of a storage: its name in the file, numbers and bytes."""

    key: str
    numel: int
    itemsize: int

    @property
    def nbytes(self) -> int:
        return self.numel * self.itemsize


@dataclass
class Inert:
    """What a pickle holds: its object made of plain containers, and the storages that it claims."""

    storages: dict[str, StorageClaim] = field(default_factory=dict)

    def load(self, file: Any) -> Any:
        """The object of the pickle that begins at the file's position; the position is behind it afterwards.

        Raises:
            UnsafeGlobalError: for a global that is not on the list.
            ClaimError: for a tensor larger than its storage, or of impossible sizes.
            Exception: what a damaged pickle raises.
        """
        return _Unpickler(file, self.storages).load()


class _Unpickler(pickle._Unpickler):  # type: ignore[name-defined]
    """The one written in Python: its memory does not grow with an index that the pickle names."""

    def __init__(self, file: Any, storages: dict[str, StorageClaim]) -> None:
        super().__init__(file, encoding="utf-8", errors="replace")
        self.storages = storages

    def find_class(self, module: str, name: str) -> Any:
        found = ALLOWED.get(f"{module}.{name}")
        if found is None:
            raise UnsafeGlobalError(f"{module}.{name}")
        return found

    def load_build(self) -> None:
        state = self.stack.pop()  # type: ignore[attr-defined]
        if type(self.stack[-1]) not in (InertDict, PlainNamespace, _NumPyType):  # type: ignore[attr-defined]
            raise ClaimError("a state for what has none")  # and this table's own entries could be changed by one
        self.stack[-1].__setstate__(state)  # type: ignore[attr-defined]

    dispatch: ClassVar[dict[int, Any]] = {**pickle._Unpickler.dispatch, pickle.BUILD[0]: load_build}  # type: ignore

    def get_extension(self, code: int) -> Any:
        raise UnsafeGlobalError(f"extension {code}")

    def persistent_load(self, pid: Any) -> StorageClaim:
        if not isinstance(pid, tuple) or not pid or pid[0] != "storage":
            raise UnsafeGlobalError(str(pid[0] if isinstance(pid, tuple) and pid else pid))
        kind, key, numel = pid[1], pid[2], pid[4]
        if not isinstance(kind, StorageType) or not isinstance(key, str) or not _sizes((numel,)):
            raise ClaimError(f"storage {key!r} of {numel!r} numbers")
        if len(pid) > 5 and pid[5] is not None:
            raise ClaimError(f"storage {key!r} is a view of another")
        claim = StorageClaim(key, numel, kind.itemsize)
        if self.storages.setdefault(key, claim) != claim:
            raise ClaimError(f"storage {key!r} has two sizes")
        return claim


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> None:
    """Stands for the functions that make a tensor of a storage."""
    if not isinstance(storage, StorageClaim) or not _sizes((offset, *size, *stride)) or len(size) != len(stride):
        raise ClaimError(f"a tensor of sizes {size!r} and strides {stride!r}")
    numel = 1
    for extent in size:
        numel *= extent
    last = offset + sum((extent - 1) * step for extent, step in zip(size, stride, strict=True))
    if numel and (last >= storage.numel or numel > storage.numel):
        raise ClaimError(f"a tensor of sizes {tuple(size)} in a storage of {storage.numel} numbers")


def _sizes(values: Any) -> bool:
    return all(type(value) is int and value >= 0 for value in values)


def _inert(*_: Any) -> None:
    """Stands for a value that does not matter here."""


def _ordered(items: Any = ()) -> InertDict:
    return InertDict(items)


class _NumPyType:
    """``numpy.dtype``: its state says the byte order."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _allowed() -> dict[str, Callable[..., Any] | StorageType | None]:
    storages = {f"torch.{name}Storage": StorageType(dtype.itemsize) for name, dtype in STORAGES.items()}
    tensors = {f"torch._utils.{name}": _tensor for name in ("_rebuild_tensor", "_rebuild_tensor_v2")}
    numpy_names = [name for _, name in numpy_scalar_globals()]
    values = ["torch._utils._rebuild_parameter", "torch.device", "_codecs.encode", "builtins.set", "__builtin__.set"]
    return {
        **storages,
        **tensors,
        "collections.OrderedDict": _ordered,
        "torch.Size": tuple,
        "argparse.Namespace": PlainNamespace,
        **{name: _inert for name in values},
        **{name: _NumPyType if "dtype" in name else _inert for name in numpy_names},
    }


ALLOWED = _allowed()
