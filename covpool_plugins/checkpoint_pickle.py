"""The pickle of a checkpoint, followed opcode by opcode without making what it asks for.

``torch.load(weights_only=True)`` runs no code of a pickle, but makes whatever it claims: buffers of any length, copies
of copies, tensors that are larger than the file. :class:`Program` follows the same opcodes and makes only containers.
What :data:`GLOBALS` does not name is refused, and so is whatever would be larger than the file.
"""

from __future__ import annotations

import pickletools
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from .errors import OptionError

# A network with 3,000 tensors, averages and the two states of an optimizer takes 500,000 opcodes.
MOST_OPCODES = 600_000
MOST_TIMES = 3  # what is made of texts, lists and tensors, in sizes of the file
ENTRY = 100  # bytes of an entry of a set or a dictionary
MOST_DIMENSIONS, MOST_NUMBERS = 16, 1 << 48


class CheckpointError(OptionError):
    """A file that is no checkpoint, is damaged, or holds more than weights and plain data."""


class HostileError(CheckpointError):
    """A file that contradicts itself, by damage or on purpose."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"is damaged or hostile: {reason}")


def shown(value: object) -> str:
    """A text or number of a file for a message: short and without control characters; of all else the type."""
    if not isinstance(value, (str, int, float)):
        return type(value).__name__
    text = repr(value) if not isinstance(value, int) or abs(value) < MOST_NUMBERS else "a large integer"
    return text if len(text) <= 100 else f"{text[:100]}…"


class StorageClaim(NamedTuple):
    """What a pickle says of a storage: its name in the file, numbers and the bytes of one."""

    key: str
    numel: int
    itemsize: int


class _Ordered(dict):  # type: ignore[type-arg]
    """Stands for an ordered dictionary."""


class _Object(NamedTuple):
    """Stands for what does not matter here: what it is, which says what state it may get, and its bytes."""

    kind: str = ""
    size: int = 0


STORAGES = {
    f"torch.{name}Storage": itemsize
    for name, itemsize in dict(
        Float=4, Double=8, Half=2, BFloat16=2, Long=8, Int=4, Short=2, Char=1, Byte=1, Bool=1
    ).items()
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
WITH_ARGUMENT = ("BININT", "BININT1", "BININT2", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "LONG1")
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Program:
    """A pickle, followed without making anything but its containers, and without values where none is needed.

    Args:
        size: of the file.
        more: names of further classes and functions.
    """

    def __init__(self, size: int, more: Mapping[str, Any]) -> None:
        self.size = size
        self.more = more
        self.opcodes = self.made = 0
        self.storages: dict[str, StorageClaim] = {}
        self.tensors: set[tuple[Any, ...]] = set()

    def run(self, file: Any) -> Any:
        """The object of the pickle that begins at the file's position; the position is behind it afterwards."""
        stack: list[Any] = []
        marks: list[list[Any]] = []
        memo: dict[Any, Any] = {}
        for opcode, argument, _ in pickletools.genops(file):
            name = opcode.name
            self.opcodes += 1
            if self.opcodes > MOST_OPCODES:
                raise HostileError(f"a pickle of more than {MOST_OPCODES} opcodes")
            if name in WITH_ARGUMENT:
                if isinstance(argument, str):
                    self._count(sys.getsizeof(argument) - 64)
                if name == "SHORT_BINSTRING" and not str(argument).isascii():
                    raise HostileError("a text of Python 2 that is not ASCII")  # which readers decode differently
                stack.append(argument)
            elif name == "BINPUT" or name == "LONG_BINPUT":
                memo[argument] = stack[-1]
            elif name == "BINGET" or name == "LONG_BINGET":
                stack.append(memo[argument])
            elif name == "PROTO" and argument == 2:
                continue
            elif name in CONSTANTS:
                stack.append(CONSTANTS[name])
            elif name == "EMPTY_DICT":
                stack.append({})
            elif name == "EMPTY_LIST":
                stack.append([])
            elif name == "MARK":
                marks.append(stack)
                stack = []
            elif name in ("TUPLE", "APPENDS", "SETITEMS"):
                items, stack = stack, marks.pop()
                self._collect(name, items, stack)
            elif name in TUPLES:
                stack[-TUPLES[name] :] = [tuple(stack[-TUPLES[name] :])]
            elif name == "APPEND":
                self._collect("APPENDS", [stack.pop()], stack)
            elif name == "SETITEM":
                value, key = stack.pop(), stack.pop()
                self._collect("SETITEMS", [key, value], stack)
            elif name == "GLOBAL":
                stack.append(self._global(argument))
            elif name == "BINPERSID":
                stack.append(self._storage(stack.pop()))
            elif name in ("REDUCE", "NEWOBJ"):
                arguments = stack.pop()
                stack[-1] = self._call(stack[-1], arguments)
            elif name == "BUILD":
                self._build(stack.pop(), stack[-1])
            elif name == "STOP":
                return stack.pop()
            else:
                raise CheckpointError(
                    f"has the opcode {name} {shown(argument)} in its pickle, which torch.save does not write"
                )
        raise EOFError("a pickle without an end")

    def _count(self, size: int) -> None:
        self.made += size
        if self.made > MOST_TIMES * self.size:
            raise HostileError("what it makes is larger than the file")

    def _collect(self, name: str, items: list[Any], stack: list[Any]) -> None:
        if name == "TUPLE":
            stack.append(tuple(items))
        elif name == "APPENDS" and type(stack[-1]) is list:
            stack[-1].extend(items)
        elif name == "SETITEMS" and isinstance(stack[-1], dict):
            for key in items[::2]:
                _check_plain(key)  # a nested key takes for ever to be hashed
                stack[-1][key] = None
        else:
            raise HostileError(f"{name} on {type(stack[-1]).__name__}")

    def _global(self, argument: Any) -> Any:
        name = argument.replace(" ", ".").replace("__builtin__.", "builtins.")  # Python 2's name, which protocol 2 has
        if argument.count(" ") == 1 and (name in GLOBALS or name in STORAGES or name in self.more):
            return name
        if name.startswith("torch._utils._rebuild"):
            raise CheckpointError(f"holds a tensor that is not dense, or of another kind than weights ({shown(name)})")
        raise CheckpointError(f"asks for {shown(name)}, which is neither a tensor nor plain data; it is not loaded")

    def _storage(self, pid: Any) -> StorageClaim:
        if type(pid) is not tuple or len(pid) not in (5, 6) or type(pid[0]) is not str or pid[0] != "storage":
            raise HostileError("it refers to something that is no storage")
        _, kind, key, place, numel, *view = pid
        if type(kind) is not str or kind not in STORAGES or type(key) is not str or type(place) is not str:
            raise HostileError("it claims a storage of another kind")
        if not _sizes((numel,)) or (view and view[0] is not None):
            raise HostileError(f"it claims a storage of {shown(numel)} numbers")
        claim = StorageClaim(key, numel, STORAGES[kind])
        if self.storages.setdefault(key, claim) != claim:
            raise HostileError(f"it claims two sizes of storage {shown(key)}")
        return claim

    def _call(self, name: Any, arguments: Any) -> Any:
        if type(name) is not str or type(arguments) is not tuple or name in STORAGES:
            raise HostileError("it calls what is no function")
        self._count(sum(len(value) for value in arguments if isinstance(value, str)))
        self._count(ENTRY * sum(len(value) for value in arguments if isinstance(value, (list, dict))))
        if name in self.more:  # nested tuples would be copied without their references
            return _Object("more") if all(isinstance(value, str) for value in arguments) else _refuse()
        made = GLOBALS[name](*arguments)
        if isinstance(made, _Object) and made.kind == "tensor":
            place = (arguments[0].key, arguments[1], tuple(arguments[2]), tuple(arguments[3]))
            if place not in self.tensors:  # another name of a tensor takes nothing
                self.tensors.add(place)
                self._count(made.size)
        return made

    def _build(self, state: Any, instance: Any) -> None:
        kind = "ordered" if isinstance(instance, _Ordered) else instance.kind if isinstance(instance, _Object) else ""
        if isinstance(state, dict):
            self._count(ENTRY * len(state))
            allowed = kind in ("namespace", "more") or (kind == "ordered" and set(state) <= {"_metadata"})
        else:
            self._count(sum(value.size for value in state if isinstance(value, _Object)))
            allowed = kind == "array" or (kind == "dtype" and state[2:] == (None, None, None, -1, -1, 0))
        if not allowed:
            raise HostileError("it gives a state to what has none")


def _check_plain(*keys: Any) -> None:
    for key in keys:  # large integers can be chosen to have one hash
        if type(key) not in (str, int, bool, type(None)) or (type(key) is int and abs(key) >= MOST_NUMBERS):
            raise HostileError("a name in it is neither text nor a number")


def _sizes(values: Any) -> bool:
    """Whether these are numbers that a tensor's size or place in a storage may have."""
    if type(values) not in (tuple, list) or len(values) > MOST_DIMENSIONS:
        return False
    return all(type(value) is int and 0 <= value < MOST_NUMBERS for value in values)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> _Object:
    """Stands for the functions that make a tensor of a storage: it has to lie in it and be no larger."""
    if not isinstance(storage, StorageClaim) or not _sizes((offset,)) or not _sizes(size) or not _sizes(stride):
        raise HostileError("it claims a tensor of impossible sizes")
    numel = 1
    for extent in size:
        numel *= extent
    last = offset + sum((extent - 1) * step for extent, step in zip(size, stride, strict=True))
    if numel and (last >= storage.numel or numel > storage.numel):
        raise HostileError(f"it claims {numel} numbers of storage {shown(storage.key)}")
    if len(rest) > 2 and rest[2] is not None:
        raise CheckpointError("holds a tensor that is not dense, or of another kind than weights")
    return _Object("tensor", numel * storage.itemsize)


def _ordered(items: Any = ()) -> _Ordered:
    pairs = [tuple(pair) for pair in (() if isinstance(items, dict) else items)]
    _check_plain(*(key for key, _ in pairs))
    return _Ordered(dict.fromkeys(key for key, _ in pairs))


def _size(items: Any = ()) -> tuple[Any, ...]:
    return tuple(items) if _sizes(items) else _refuse()


def _counter(items: Any = None) -> _Object:
    return _Object() if isinstance(items, dict) else _refuse()


def _set(items: Any = ()) -> _Object:
    _check_plain(*items)
    return _Object()


def _latin1(text: Any, encoding: Any) -> _Object:
    return _Object(size=len(text)) if type(text) is str and encoding in ("latin1", "latin-1") else _refuse()


def _dtype(name: Any, *_: Any) -> _Object:
    return _Object("dtype") if type(name) is str and re.fullmatch(r"[biuf]\d{1,2}", name) else _refuse()


def _array(kind: Any, shape: Any, *_: Any) -> _Object:
    return _Object("array") if kind == "numpy.ndarray" and shape == (0,) else _refuse()


def _namespace() -> _Object:
    return _Object("namespace")


def _object(*_: Any) -> _Object:
    return _Object()


def _refuse(*_: Any) -> Any:
    raise HostileError("it makes plain data in another way than torch.save")


GLOBALS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _object,
    "torch.Size": _size,
    "torch.device": _object,
    "collections.OrderedDict": _ordered,
    "collections.Counter": _counter,
    "argparse.Namespace": _namespace,
    "builtins.set": _set,
    "_codecs.encode": _latin1,
    "numpy.dtype": _dtype,
    "numpy.ndarray": _refuse,
    **{f"numpy.{core}.multiarray.scalar": _object for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray._reconstruct": _array for core in ("core", "_core")},
}


def numpy_globals() -> list[tuple[Callable[..., Any], str]]:
    """NumPy's scalars and arrays, by every name that NumPy 1 and 2 have written, and the types of their numbers."""
    multiarray = np._core.multiarray  # type: ignore[attr-defined]
    functions = [(getattr(multiarray, name), name) for name in ("scalar", "_reconstruct")]
    named = [(f, f"numpy.{core}.multiarray.{name}") for core in ("core", "_core") for f, name in functions]
    types = [(getattr(np.dtypes, name), f"numpy.dtypes.{name}") for name in np.dtypes.__all__]
    return [*named, (np.dtype, "numpy.dtype"), (np.ndarray, "numpy.ndarray"), *types]
