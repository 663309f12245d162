"""Pickles that a stranger could send, as archives of torch.save: every opcode, calls, claims and references.

A row of :data:`FILES` writes a file to a path. :mod:`support.hostile_files` adds those whose container is at fault.
"""

from __future__ import annotations

import io
import pickletools
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from covpool_plugins.checkpoint_pickle import CONSTANTS, TUPLES, WITH_ARGUMENT

FILES: dict[str, Callable[[Path], object]] = {}
KNOWN = {*WITH_ARGUMENT, *CONSTANTS, *TUPLES, "PROTO", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "EMPTY_DICT"}
KNOWN |= {"EMPTY_LIST", "MARK", "TUPLE", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "GLOBAL", "BINPERSID", "REDUCE"}
KNOWN |= {"NEWOBJ", "BUILD", "STOP"}


def add(name: str, content: bytes | Callable[[Path], object]) -> None:
    assert name not in FILES, name
    FILES[name] = content if callable(content) else lambda path: path.write_bytes(content)


def saved(content: Any, archive: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=archive)
    return buffer.getvalue()


def archive(program: bytes, storages: dict[str, bytes] | None = None, **options: Any) -> bytes:
    """An archive as torch.save writes it, with any program for its pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", options.pop("compression", zipfile.ZIP_STORED)) as file:
        file.writestr("archive/data.pkl", program)
        file.writestr("archive/byteorder", "little")
        file.writestr("archive/version", "3\n")
        for key, data in (storages or {}).items():
            file.writestr(f"archive/data/{key}", data)
        for name, data in options.items():
            file.writestr(name, data)
    return buffer.getvalue()


# Pieces of programs.
def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    if 0 <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def tupled(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def called(name: str, *arguments: bytes) -> bytes:
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode() + tupled(*arguments) + b"R"


def storage(kind: str = "Float", key: bytes | None = None, numel: int = 4, *more: bytes) -> bytes:
    kind_global = f"ctorch\n{kind}Storage\n".encode()
    return tupled(text("storage"), kind_global, key or text("0"), text("cpu"), number(numel), *more) + b"Q"


def tensor(size: Any = (2, 2), stride: Any = (2, 1), offset: int = 0, numel: int = 4, more: bytes = b"") -> bytes:
    sizes, strides = (tupled(*map(number, values)) for values in (size, stride))
    hooks = called("collections.OrderedDict")
    arguments = (storage(numel=numel), number(offset), sizes, strides, b"\x89", hooks + more)
    return called("torch._utils._rebuild_tensor_v2", *arguments)


def _tensor_of(numel: int) -> bytes:
    return tensor((numel,), (1,), 0, numel)


def program(value: bytes, key: bytes | None = None) -> bytes:
    """A state dict with one weight."""
    return b"\x80\x02}" + (key or text("fc.weight")) + value + b"s."


def whole(value: bytes, key: bytes | None = None) -> bytes:
    return archive(program(value, key), {"0": bytes(16)})


HONEST = whole(tensor())


def _add_opcodes() -> None:
    lengths = {pickletools.TAKEN_FROM_ARGUMENT1: b"\xff", pickletools.TAKEN_FROM_ARGUMENT4: b"\xff\xff\xff\x7f"}
    lengths |= {
        pickletools.TAKEN_FROM_ARGUMENT4U: b"\xff\xff\xff\xff",
        pickletools.TAKEN_FROM_ARGUMENT8U: b"\xff" * 7 + b"\0",
    }
    for opcode in pickletools.opcodes:
        code = opcode.code.encode("latin1")
        if opcode.name in KNOWN:
            size = opcode.arg.n if opcode.arg is not None else 0
            if size < 0 and size in lengths:  # a length that is not there
                add(f"opcode {opcode.name}", archive(b"\x80\x02" + code + lengths[size] + b"."))
            continue
        size = opcode.arg.n if opcode.arg is not None else 0
        argument = bytes(size) if size >= 0 else lengths.get(size, b"1\n1\n")
        add(f"opcode {opcode.name}", archive(b"\x80\x02})" + code + argument + b"."))
    for protocol in (0, 3, 4, 5, 255):
        add(f"protocol {protocol}", archive(b"\x80" + bytes([protocol]) + b"}."))
    add("opcode unknown", archive(b"\x80\x02\xff."))


def _add_calls() -> None:
    big, words = number(1 << 40), text("touch HACKED")
    for name, arguments in {
        "os.system": [words],
        "posix.system": [words],
        "builtins.eval": [text("open('HACKED', 'w')")],
        "__builtin__.exec": [text("open('HACKED', 'w')")],
        "builtins.getattr": [text("a"), text("upper")],
        "builtins.bytearray": [big],
        "builtins.complex": [number(1)],
        "subprocess.Popen": [words],
        "webbrowser.open": [words],
        "os.mkdir": [text("HACKED")],
        "torch.load": [text("HACKED")],
        "torch.jit.load": [text("HACKED")],
        "torch.hub.load_state_dict_from_url": [text("http://localhost:9/")],
        "torch.nn.modules.linear.Linear": [number(1 << 20), number(1 << 20)],
        "torch.FloatTensor": [big],
        "torch.Tensor": [big],
        "torch.storage.UntypedStorage": [big],
        "torch.storage.TypedStorage": [big],
        "torch.FloatStorage": [big],
        "torch.nn.parameter.Parameter": [tensor()],
        "torch.serialization._get_layout": [text("torch.strided")],
        "torch._tensor._rebuild_from_type_v2": [text("f"), text("t"), tupled(), tupled()],
        "torch._utils._rebuild_sparse_tensor": [text("l"), tupled()],
        "torch._utils._rebuild_qtensor": [storage(), number(0), tupled(big), tupled(number(0)), tupled()],
        "torch._utils._rebuild_meta_tensor_no_storage": [text("float32"), tupled(big), tupled(number(1)), b"\x89"],
        "torch._utils._rebuild_wrapper_subclass": [text("t")],
        "torch._utils._rebuild_device_tensor_from_numpy": [text("t")],
        "torch._utils._rebuild_tensor_v3": [storage(), number(0), tupled(big), tupled(number(0))],
        "torch._utils._rebuild_parameter_with_state": [tensor(), b"\x88", called("collections.OrderedDict"), b"}"],
        "numpy.zeros": [big],
        "numpy.core.multiarray._reconstruct": [b"cnumpy\nndarray\n", tupled(big), text("b")],
        "numpy.ndarray": [tupled(big)],
        "numpy.dtype": [text("V2000000000")],
        "_codecs.encode": [text("a" * 50_000), text("punycode")],
        "collections.OrderedDict": [number(3)],
        "collections.Counter": [text("abc")],
        "argparse.Namespace": [number(3)],
        "argparse.FileType": [text("w")],
        "pathlib.PosixPath": [text("HACKED")],
        "functools.partial": [words],
        "operator.attrgetter": [text("a")],
        "torch.Size": [tupled(*[number((1 << 2000) - 1)] * 500)],
    }.items():
        add(f"calls {name}", whole(called(name, *arguments)))
    add("calls a storage", whole(b"ctorch\nFloatStorage\n)R"))
    add("calls a text", whole(text("f") + b")R"))
    add("calls with no tuple", whole(b"ccollections\nOrderedDict\n" + number(1) + b"R"))
    add("a global with a space", whole(b"c\ntorch Size\n"))
    add("a global that is not ASCII", whole("ctorch\nSizé\n".encode()))
    add("new object of a storage", whole(b"ctorch\nFloatStorage\n)\x81"))
    add("a state for a list", whole(b"]}b"))
    add("a state for a tensor", whole(tensor() + b"}b"))
    add(
        "a state that hides a method",
        whole(called("collections.OrderedDict") + b"}" + text("items") + number(1) + b"sb"),
    )
    add("a state of pairs", whole(b"cargparse\nNamespace\n)\x81]b"))


def _add_claims() -> None:
    for name, options in {
        "a large storage": dict(numel=1 << 40),
        "a negative storage": dict(numel=-4),
        "another storage": dict(numel=5),
        "stride 0": dict(size=(1 << 40,), stride=(0,)),
        "two strides 0": dict(size=(1 << 20, 1 << 20), stride=(0, 0)),
        "a negative size": dict(size=(-2, 2)),
        "too large": dict(size=(3, 2)),
        "a negative stride": dict(stride=(-2, 1)),
        "ranks": dict(size=(2,)),
        "an offset": dict(offset=2),
        "a negative offset": dict(offset=-1),
        "a million dimensions": dict(size=[(1 << 2000) - 1] * 20_000, stride=[1] * 20_000),
        "an integer of 2,000 bits": dict(size=((1 << 2000) - 1, 2)),
        "metadata": dict(more=b"}"),
    }.items():
        add(f"claims {name}", whole(tensor(**options)))  # type: ignore[arg-type]
    add(
        "claims two sizes of a storage",
        archive(program(tensor() + tensor(numel=3) + b"\x86"), {"0": bytes(16)}),
    )
    add("claims a view", whole(storage("Float", None, 4, tupled(number(0)))))
    for kind in ("ComplexFloat", "QInt8", "Untyped", "Other"):
        add(f"claims a storage of {kind}", whole(storage(kind)))


def _nested(levels: int) -> bytes:
    return tupled() + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(levels))


def _add_references() -> None:
    add("nested references as a key", whole(number(1), _nested(60)))
    add("nested references as an id", whole(_nested(60) + b"Q"))
    add("nested references as a storage's key", whole(storage(key=_nested(60))))
    add("nested references in a set", whole(called("builtins.set", b"]" + _nested(60) + b"a")))
    add(
        "nested references in pairs",
        whole(called("collections.OrderedDict", b"]" + _nested(60) + number(1) + b"\x86a")),
    )
    add("nested references as a state", whole(called("collections.OrderedDict") + _nested(60) + b"b"))
    same = b"".join(number(i * ((1 << 61) - 1)) + b"N" for i in range(1, 60_000))
    add("integers of one hash", whole(b"}(" + same + b"u"))
    kind = called("numpy.dtype", text("f8"))
    sizes = tupled(number(3), text("<"), b"NNN", number(1 << 30), number(1), number(0))
    add("a type of numbers of 1 GB", whole(kind + sizes + b"b"))
    add("a dictionary in itself", whole(b"}q\x01" + text("state_dict") + b"h\x01s"))
    add("a list in itself", whole(b"]q\x01h\x01a"))
    add("weights in themselves", archive(b"\x80\x02}q\x01" + text("state_dict") + b"h\x01s."))
    add("an id that is a number", whole(number(3) + b"Q"))
    add("an id that is a list", whole(b"]Q"))
    add("an id without an end", whole(b")Q"))
    flood = b"\x80\x02]" + b"(" + b"]" * 700_000 + b"e."
    add("a flood of lists", archive(flood))
    add("a flood of marks", archive(b"\x80\x02" + b"(" * 700_000 + b"."))
    add("a deep list", archive(b"\x80\x02" + b"]" * 300_000 + b"a" * 299_999 + b"."))
    long = text("a" * 200_000) + b"q\x01"
    encode = b"c_codecs\nencode\nh\x01" + text("latin1") + b"\x86R"
    add("copies of a text", whole(b"(" + long + encode * 5_000 + b"t"))
    pairs = b"](" + b"".join(number(i) + b"N\x86" for i in range(1_000)) + b"eq\x01"
    add("copies of pairs", whole(b"(" + pairs + b"ccollections\nOrderedDict\nh\x01\x85R" * 5_000 + b"t"))
    numbers = b"".join(number(i) for i in range(30_000))
    named = b"".join(number(i) + b"N" for i in range(30_000))
    for name, make, items in (
        ("sets of a list", "builtins\nset", b"](" + numbers + b"e"),
        ("dictionaries of a dictionary", "collections\nOrderedDict", b"}(" + named + b"u"),
    ):
        calls = f"c{make}\nq\x02".encode() + b"h\x02h\x01\x85R" * 390
        add(
            f"copies in a large file: {name}",
            archive(program(b"(" + items + b"q\x01" + calls + b"t"), {"0": bytes(4 << 20)}),
        )
    numel = 1 << 20
    again = b"q\x01" + b"h\x01" * 3 + _tensor_of(numel) * 4
    add("tensors of one storage", archive(program(b"(" + _tensor_of(numel) + again + b"t"), {"0": bytes(4 * numel)}))
    history = b"cmmengine.logging.history_buffer\nHistoryBuffer\n"
    add("a history of nested references", whole(history + tupled(_nested(28), _nested(28)) + b"R"))
    add("a wide text", whole(text("a" * 3_000_000 + "\U0001f600")))
    make = "torch._utils._rebuild_tensor"
    arguments = tupled(storage(), number(0), tupled(), tupled()) + b"q\x01"
    again = f"ctorch._utils\n{make.rpartition('.')[2]}\nq\x02".encode()
    add("a flood of tensors", whole(b"(" + arguments + again + b"h\x02h\x01R" * 250_000 + b"t"))


for _part in (_add_opcodes, _add_calls, _add_claims, _add_references):
    _part()
