"""Files that a stranger could send: hostile pickles, tricks of zip, tar and safetensors, odd weights, special files.

None of the files of :data:`FILES` holds weights that may be used; ``tests/checkpoints`` sends them all through every
way in.
"""

from __future__ import annotations

import io
import json
import os
import socket
import struct
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .hostile_pickles import FILES, HONEST, add, archive, called, program, saved, tensor, text


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


for _part in (_add_archives, _add_tars_and_legacy, _add_safetensors, _add_weights, _add_special_files):
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
