"""Files that a stranger could send: every class of opcode, claims, references, tricks of zip and tar, special files.

A row of :data:`FILES` writes a file to a path. None of them holds weights that may be used; ``tests/checkpoints`` sends
them all through every way in.
"""

from __future__ import annotations

import io
import json
import os
import pickletools
import socket
import struct
import tarfile
import zipfile
from collections import OrderedDict
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


def _zip(change: Callable[[bytearray], object]) -> bytes:
    data = bytearray(HONEST)
    changed = change(data)
    return bytes(changed if isinstance(changed, (bytes, bytearray)) else data)


def _add_archives() -> None:
    end = HONEST.rindex(b"PK\x05\x06")
    directory = HONEST.index(b"PK\x01\x02")
    put = lambda place, data: lambda b: b.__setitem__(slice(place, place + len(data)), data)  # noqa: E731
    add("zip compressed", archive(program(tensor()), {"0": bytes(16)}, compression=zipfile.ZIP_DEFLATED))
    bomb = archive(
        program(tensor((1 << 22,), (1,), 0, 1 << 22)), {"0": bytes(1 << 24)}, compression=zipfile.ZIP_DEFLATED
    )
    add("zip bomb", bomb)
    add("zip compressed by lzma", archive(program(tensor()), {"0": bytes(16)}, compression=zipfile.ZIP_LZMA))
    add("zip without its end", HONEST[:end])
    add("zip with a comment", _zip(lambda b: b[:-2] + b"\x04\0abcd"))
    add("zip behind something", b"PK\x03\x04" + HONEST)
    add("zip before something", HONEST + bytes(100))
    add("zip twice", HONEST + HONEST)
    add("zip with two ends", HONEST[:end] + HONEST[end:] + HONEST[end:])
    add("zip with wrong sums", _zip(put(directory + 16, b"abcd")))
    add("zip with a changed number", HONEST.replace(bytes(16), bytes(15) + b"\x01", 1))
    add("zip encrypted", _zip(put(directory + 8, b"\x01\0")))
    add("zip with another method", _zip(put(directory + 10, b"\x63\0")))
    add("zip with large parts", _zip(put(directory + 20, b"\xff\xff\xff\x7f\xff\xff\xff\x7f")))
    add("zip with a part elsewhere", _zip(put(directory + 42, b"\xff\xff\0\0")))
    add("zip with a directory elsewhere", _zip(put(end + 16, b"\x01\0\0\0")))
    add("zip with 60,000 entries", _zip(put(end + 8, b"\x60\xea\x60\xea")))
    add("zip with a name of 65,535 letters", _zip(put(directory + 28, b"\xff\xff")))
    add("zip with zip64 fields", _zip(put(end + 8, b"\xff" * 12)))
    locator = (
        b"PK\x06\x06"
        + struct.pack("<Q2H2I4Q", 44, 45, 45, 0, 0, 1, 1, 60, 0)
        + b"PK\x06\x07"
        + struct.pack("<IQI", 0, end, 1)
    )
    add("zip with a zip64 end of its own", HONEST[:end] + locator + HONEST[end:])
    for name, part in {
        "a pickle in capitals": {"archive/DATA.PKL": b"\x80\x02}."},
        "two roots": {"other/data.pkl": b"\x80\x02}."},
        "a way up": {"../HACKED": b"x"},
        "an absolute name": {"/tmp/HACKED": b"x"},
        "a TorchScript program": {"archive/constants.pkl": b"\x80\x02)."},
    }.items():
        add(f"zip with {name}", archive(program(tensor()), {"0": bytes(16)}, **part))
    add(
        "zip with a null in a name",
        archive(program(tensor()), {"0": bytes(16)}).replace(b"archive/version", b"archive/vers\0on"),
    )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("readme.txt", "hello")
    add("zip of a text", buffer.getvalue())
    add("zip without storages", archive(program(tensor())))
    add("zip with an order of bytes", archive(program(tensor()), {"0": bytes(16)}).replace(b"little", b"middle"))
    add("zip without a pickle", archive(b""))
    _add_lies(directory, end)


def _add_lies(directory: int, end: int) -> None:
    """Archives whose directory says one thing and whose parts say another."""

    def with_extra(extra: bytes, sizes: bytes = b"\xff" * 8) -> bytes:
        """The first entry of the directory with an extra field of zip64."""
        data = bytearray(HONEST)
        data[directory + 20 : directory + 28] = sizes
        name = struct.unpack("<H", data[directory + 28 : directory + 30])[0]
        data[directory + 30 : directory + 32] = struct.pack("<H", len(extra))
        place = directory + 46 + name
        data[place:place] = extra
        size = struct.unpack("<I", data[end + len(extra) + 12 : end + len(extra) + 16])[0]
        data[end + len(extra) + 12 : end + len(extra) + 16] = struct.pack("<I", size + len(extra))
        return bytes(data)

    for name, sizes in {"1 TB": (1 << 40, 1 << 40), "2^63": (1 << 63, 1 << 63), "other sizes": (4, 4)}.items():
        add(f"zip64 that claims {name}", with_extra(struct.pack("<2H2Q", 1, 16, *sizes)))
    add("zip64 without its field", with_extra(b""))
    add("zip64 cut", with_extra(struct.pack("<2HI", 1, 4, 7)))
    second = HONEST.index(b"PK\x01\x02", directory + 1)
    first = HONEST[directory + 42 : directory + 46]
    add("zip with two entries in one place", HONEST[: second + 42] + first + HONEST[second + 46 :])
    add("zip with an entry twice", HONEST.replace(b"archive/byteorder", b"archive/data.pkl\0"))
    add("zip with other names in its parts", HONEST.replace(b"archive/version", b"archive/versioN", 1))
    inner = archive(program(called("os.system", text("touch HACKED"))))
    add("zip in a zip", archive(program(tensor()), {"0": inner}))
    for name, part in {
        "a backslash": "archive\\data.pkl",
        "a name that is not ASCII": "archivé/data.pkl",
        "a name of dots": "archive/../../HACKED",
    }.items():
        add(f"zip with {name}", archive(program(tensor()), {"0": bytes(16)}, **{part: b"x"}))


def _tar(header: Callable[[tarfile.TarInfo], object] = lambda info: None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as file:
        for name in ("storages", "tensors", "pickle"):
            info = tarfile.TarInfo(name)
            info.size = 4
            header(info)
            file.addfile(info, io.BytesIO(b"\x80\x02K\0"))
    return buffer.getvalue()


def _add_tars_and_legacy() -> None:
    add("tar", _tar())
    add("tar with a way up", _tar(lambda info: setattr(info, "name", "../" + info.name)))
    add("tar of links", _tar(lambda info: setattr(info, "type", tarfile.SYMTYPE)))
    long = bytearray(_tar(lambda info: setattr(info, "type", tarfile.GNUTYPE_LONGNAME)))
    long[124:136] = b"77777777777\0"
    long[148:156] = b"%06o\0 " % (sum(long[:148]) + 8 * 32 + sum(long[156:512]))
    add("tar with a long name of 8 GB", bytes(long))
    legacy = saved({"fc.weight": torch.ones(3, 5)}, archive=False)
    magic = legacy[: legacy.index(b".") + 1]
    add("tar that begins as a legacy file", magic + _tar()[len(magic) :])
    add("legacy with a large storage", legacy.replace(b"K\x0f", b"J\0\0\0\x7f"))
    add("legacy with another storage", legacy.replace(struct.pack("<q", 15), struct.pack("<q", 1 << 40)))
    add("legacy with a negative storage", legacy.replace(struct.pack("<q", 15), struct.pack("<q", -15)))
    add("legacy cut", legacy[:-8])
    add("legacy with a text of 4 GB", magic + b"\x80\x02X\xff\xff\xff\xff")
    add("legacy with a buffer of 1 TB", magic + b"\x80\x02\x96\0\0\0\0\0\1\0\0.")
    add("legacy that runs", magic + b"\x80\x02cos\nsystem\n" + text("touch HACKED") + b"\x85R.")
    add("legacy without its storages", magic * 1)
    add("tar that begins as safetensors", struct.pack("<Q", 504) + b"{}" + bytes(502) + _tar())
    for name, data in {
        "a pickle": b"\x80\x04}.",
        "text": b"<html>",
        "gzip": b"\x1f\x8b" + bytes(30),
        "zeros": bytes(5_000),
    }.items():
        add(name, data)


def _safetensors(header: Any, data: bytes = bytes(16)) -> bytes:
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(head)) + head + data


def _add_safetensors() -> None:
    good = dict(dtype="F32", shape=[2, 2], data_offsets=[0, 16])
    for name, header in {
        "out of the file": dict(w={**good, "data_offsets": [0, 1 << 40]}),
        "backwards": dict(w={**good, "data_offsets": [16, 0]}),
        "a large shape": dict(w={**good, "shape": [1 << 40]}),
        "shapes that overflow": dict(w={**good, "shape": [1 << 33, 1 << 33]}),
        "a negative shape": dict(w={**good, "shape": [-2, -2]}),
        "no type": dict(w={**good, "dtype": "F33"}),
        "numbers of 8 bits": dict(w={**good, "dtype": "F8_E4M3", "shape": [4, 4]}),
        "overlaps": dict(a=good, b=good),
        "a hole": dict(w={**good, "data_offsets": [4, 16], "shape": [3]}),
        "metadata of numbers": dict(__metadata__={"a": 3}, w=good),
        "no dictionary": [1, 2],
        "deep JSON": b'{"a":' * 50_000,
        "no JSON": b"{" + bytes(40),
        "no UTF-8": b'{"\xff": 3}',
        "integers": dict(**{"fc.weight": {**good, "dtype": "I32"}}),
        "complex numbers": dict(**{"fc.weight": {**good, "dtype": "C64", "shape": [2]}}),
        "numbers of 4 bits": dict(**{"fc.weight": {**good, "dtype": "F4", "shape": [32]}}),
        "sizes of its own kind": dict(w={**good, "shape": [2.5, True]}),
        "a key twice": b'{"w":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"w":{"dtype":"F32"}}',
        "a tensor of no numbers and no more": dict(w=dict(dtype="F32", shape=[0, 1 << 62], data_offsets=[0, 0])),
    }.items():
        add(f"safetensors with {name}.safetensors", _safetensors(header))
    add("safetensors with a header of 2^63 bytes.safetensors", struct.pack("<Q", 1 << 63) + b"{}")
    add("safetensors with a header of 1 GB.safetensors", struct.pack("<Q", 1 << 30) + b"{}")
    add("safetensors cut.safetensors", b"\x10\0")
    add("safetensors under another name", _safetensors({"fc.weight": {**good, "dtype": "I32"}}))
    add(
        "an archive named safetensors.safetensors",
        lambda path: path.write_bytes(HONEST.replace(bytes(16), bytes(15) + b"a", 1)),
    )


def _add_weights() -> None:
    ones, large = torch.ones(2, 2), torch.ones(100, 100)
    for name, content in {
        "integers": {"fc.weight": ones.long()},
        "truth values": {"fc.weight": ones.bool()},
        "complex numbers": {"fc.weight": ones * 1j},
        "a sparse tensor": {"fc.weight": ones.to_sparse()},
        "a compressed sparse tensor": {"fc.weight": ones.to_sparse_csr()},
        "a meta tensor": {"fc.weight": ones.to("meta")},
        "float8": {"fc.weight": ones.to(torch.float8_e4m3fn)},
        "a list": [1, 2],
        "a tensor": ones,
        "a number": {"fc.weight": 3},
        "a list among weights": {"fc.weight": [1.0]},
        "numbers as keys": {3: ones},
        "nothing": {},
        "control characters": {"\x1b[31m\n\u202e": 3},
        "an empty container": {"state_dict": {}},
        "a container of text": {"state_dict": {"fc.weight": "text"}},
        "the same twice": {"module.fc.weight": ones, "fc.weight": ones},
        "a whole module": torch.nn.Linear(2, 2),
        "overlapping tensors": {f"{i}.weight": large.flatten()[i:] for i in range(50)},
    }.items():
        for kind in (True, False):
            add(f"{name} ({'archive' if kind else 'legacy'})", saved(content, kind))
    quantised = torch.quantize_per_tensor(ones, 0.1, 0, torch.qint8)
    add("a quantised tensor", saved({"fc.weight": quantised}))


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # names of sockets are short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(here)


def _sparse(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(1 << 40)


def _add_special_files() -> None:
    add("a pipe", os.mkfifo)
    add("a socket", _socket)
    add("a folder", lambda path: path.mkdir())
    add("an empty file", b"")
    add("a file of 1 TB", _sparse)
    add("a link to /dev/zero", lambda path: path.symlink_to("/dev/zero"))
    add("a link to /dev/null", lambda path: path.symlink_to("/dev/null"))
    add("a link to nothing", lambda path: path.symlink_to("nothing"))
    add("a link to itself", lambda path: path.symlink_to(path.name))
    add("a link to a pipe", lambda path: (os.mkfifo(f"{path}.pipe"), path.symlink_to(f"{path}.pipe")))
    add("a name with\na line break", b"text")


for _part in (_add_opcodes, _add_calls, _add_claims, _add_references, _add_archives, _add_tars_and_legacy):
    _part()
for _part in (_add_safetensors, _add_weights, _add_special_files):
    _part()


def write_all(folder: Path) -> dict[str, Path]:
    """Write every file into a folder."""
    paths = OrderedDict()
    for number_of_file, (name, write) in enumerate(FILES.items()):
        suffix = ".safetensors" if name.endswith(".safetensors") else ".pth"
        odd = "a\nb" if "\n" in name else ""
        paths[name] = folder / f"{number_of_file:03}{odd}{suffix}"
        write(paths[name])
    return paths
