"""Files that are damaged or hostile: refused in one line, nothing in them is run, nothing large is made."""

import argparse
import io
import os
import pathlib
import pickle
import random
import resource
import struct
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from covpool_plugins.checkpoints import CheckpointError, load_original, read_checkpoint

FORMATS = {"zip": True, "legacy": False}
EXAMPLES = settings(max_examples=60, deadline=None)


class Command:
    """Runs a command when it is unpickled by one who does not look."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def contents():
    """What the original scripts save: weights, an optimizer, NumPy scalars, the run's settings."""
    network = torch.nn.Sequential(torch.nn.Linear(30, 20), torch.nn.BatchNorm1d(20))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network(torch.randn(4, 30)).sum().backward()
    optimizer.step()
    optimizer.param_groups[0]["lr"] = np.float64(0.05)
    arguments = argparse.Namespace(lr=np.float64(0.1), workers=4, model="so_vit_7", sizes=[1, 2])
    return dict(
        epoch=3,
        arch="resnet18",
        state_dict=network.state_dict(),
        best_prec1=torch.tensor(71.5),
        optimizer=optimizer.state_dict(),
        args=arguments,
        half=torch.ones(3, dtype=torch.float16),
        parameter=torch.nn.Parameter(torch.ones(2)),
    )


def saved(content, archive=True):
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=archive)
    return buffer.getvalue()


def refused(data, folder, name="file.pth"):
    """The message with which a file is refused."""
    path = folder / name
    path.write_bytes(data)
    before = sorted(folder.rglob("*"))
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    assert sorted(folder.rglob("*")) == before
    return str(error.value)


@pytest.mark.parametrize("archive", FORMATS.values(), ids=FORMATS)
def test_what_the_originals_save_is_read(archive, tmp_path):
    content = contents()
    (tmp_path / "file.pth").write_bytes(saved(content, archive))
    read = read_checkpoint(tmp_path / "file.pth")
    assert read["epoch"] == 3
    assert read["args"] == content["args"]
    assert read["optimizer"]["param_groups"][0]["lr"] == 0.05
    for key, tensor in content["state_dict"].items():
        assert torch.equal(read["state_dict"][key], tensor)
        assert read["state_dict"][key].dtype == tensor.dtype


@pytest.mark.parametrize("archive", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize(
    "command",
    [
        Command(os.system, "touch HACKED"),
        Command(eval, "open('HACKED', 'w')"),
        Command(exec, "open('HACKED', 'w')"),
        Command(os.mkdir, "HACKED"),
        Command(getattr, "text", "upper"),
        Command(torch.load, "HACKED"),
        Command(bytearray, 1 << 40),
        Command(torch.nn.Linear, 1 << 20, 1 << 20),
        Command(np.zeros, 1 << 40),
        Command(argparse.FileType, "w"),
    ],
    ids=lambda command: command.function.__name__,
)
def test_a_pickle_that_would_run_something(archive, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = refused(saved({"state_dict": {"fc.weight": torch.ones(2)}, "more": command}, archive), tmp_path)
    assert command.function.__qualname__ in message
    assert not (tmp_path / "HACKED").exists()


@pytest.mark.parametrize("archive", FORMATS.values(), ids=FORMATS)
def test_truncated_at_every_kilobyte(archive, tmp_path):
    data = saved({f"layer{i}.weight": torch.randn(40, 40) for i in range(10)}, archive)
    assert len(data) > 60_000
    for length in range(0, len(data) - 1, 1024):
        refused(data[:length], tmp_path)


@pytest.mark.parametrize("archive", FORMATS.values(), ids=FORMATS)
@EXAMPLES
@given(seed=st.integers(0, 1 << 30))
def test_flipped_bytes(archive, seed, tmp_path_factory):
    """A changed file is refused, or what is read is no larger than the file."""
    content = {"state_dict": OrderedDict((f"l{i}.weight", torch.ones(8, 8)) for i in range(4)), "epoch": 3}
    data = bytearray(saved(content, archive))
    generator = random.Random(seed)
    for _ in range(generator.randint(1, 8)):
        data[generator.randrange(len(data))] = generator.randrange(256)
    path = tmp_path_factory.mktemp("flipped") / "file.pth"
    path.write_bytes(bytes(data))
    try:
        read_checkpoint(path)
    except CheckpointError as error:
        assert "\n" not in str(error)


@EXAMPLES
@given(data=st.binary(max_size=4096))
def test_random_bytes(data, tmp_path_factory):
    refused(data, tmp_path_factory.mktemp("random"))


@EXAMPLES
@given(data=st.binary(max_size=400))
def test_random_programs(data, tmp_path_factory):
    """Random opcodes as the pickle of an archive; some make a number or a text, which is no checkpoint."""
    path = tmp_path_factory.mktemp("program") / "file.pth"
    path.write_bytes(archive_of(b"\x80\x02" + data + b"."))
    with pytest.raises(CheckpointError) as error:
        load_original(path)
    assert "\n" not in str(error.value)


def archive_of(program, storages=(), compression=zipfile.ZIP_STORED):
    """An archive as torch.save writes it, with any program for its pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/version", "3\n")
        for key, data in storages:
            archive.writestr(f"archive/data/{key}", data)
    return buffer.getvalue()


def program_of(numel=4, size=(2, 2), stride=(2, 1), offset=0):
    """The pickle of a dictionary with one tensor, as claimed."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", torch.FloatStorage, "0", "cpu", numel) if isinstance(value, Storage) else None

    class Storage:
        pass

    class Tensor:
        def __reduce__(self):
            rebuild = torch._utils._rebuild_tensor_v2
            return rebuild, (Storage(), offset, size, stride, False, OrderedDict())

    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump({"fc.weight": Tensor()})
    return buffer.getvalue()


def test_the_forged_archive_is_read_if_it_is_honest(tmp_path):
    (tmp_path / "file.pth").write_bytes(archive_of(program_of(), [("0", struct.pack("<4f", 1, 2, 3, 4))]))
    assert read_checkpoint(tmp_path / "file.pth")["fc.weight"].tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    "claim",
    [
        dict(numel=1 << 40),
        dict(numel=-4),
        dict(numel=5),
        dict(size=(1 << 40,), stride=(0,)),
        dict(size=(1 << 20, 1 << 20), stride=(0, 0)),
        dict(size=(-2, 2)),
        dict(size=(3, 2)),
        dict(stride=(-2, 1)),
        dict(stride=(2, 1), size=(2,)),
        dict(offset=2),
        dict(offset=-1),
        dict(size=(True, 2)),
        dict(size=("2", 2)),
    ],
    ids=str,
)
def test_claims_larger_than_the_file(claim, tmp_path):
    data = archive_of(program_of(**claim), [("0", bytes(16))])
    assert "claims" in refused(data, tmp_path)


def test_a_legacy_file_with_a_large_storage(tmp_path):
    """PyTorch would allocate what is claimed before it reads it."""
    data = saved({"fc.weight": torch.ones(3, 5)}, archive=False)
    assert data.count(b"K\x0f") == 1  # the number of numbers
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(data.replace(b"K\x0f", b"J\x00\x00\x00\x7f"), tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_a_zip_bomb(tmp_path):
    data = archive_of(program_of(1 << 22, (1 << 22,), (1,)), [("0", bytes(1 << 24))], zipfile.ZIP_DEFLATED)
    assert len(data) < 100_000
    assert "compressed" in refused(data, tmp_path)


def test_many_names_for_the_same_bytes(tmp_path):
    """Each is honest, together they are larger than the file; this is what writing them out would take."""
    shared = torch.ones(1000, 1000)
    path = tmp_path / "file.pth"
    torch.save({f"layer{i}.weight": shared for i in range(50)}, path)
    with pytest.raises(CheckpointError, match="larger than the file"):
        load_original(path)


def test_other_files(tmp_path):
    assert "empty" in refused(b"", tmp_path)
    assert "torch.save" in refused(zipped(b"hello"), tmp_path)
    refused(b"# a page\n" * 100, tmp_path)
    assert "text" in refused(b"<html>not found</html>", tmp_path)
    assert "incomplete" in refused(saved({"w": torch.ones(1000)})[:3000], tmp_path)
    refused(pickle.dumps({"fc.weight": [1.0]}), tmp_path)
    refused(b"\x10" + bytes(7) + b"{}", tmp_path, "file.safetensors")
    module = torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2))
    buffer = io.BytesIO()
    torch.jit.save(module, buffer)
    assert "TorchScript" in refused(buffer.getvalue(), tmp_path)
    with pytest.raises(FileNotFoundError):
        read_checkpoint(tmp_path / "nothing.pth")
    with pytest.raises(IsADirectoryError):
        read_checkpoint(tmp_path)


def zipped(data):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("readme.txt", data)
    return buffer.getvalue()


def test_a_whole_module(tmp_path):
    assert "Linear" in refused(saved(torch.nn.Linear(2, 2)), tmp_path)


def test_objects_in_the_settings(tmp_path):
    """Only plain data may stand in the settings of a run."""
    arguments = argparse.Namespace(output=pathlib.PurePosixPath("out"))
    assert "pathlib.PurePosixPath" in refused(saved({"args": arguments, "w": torch.ones(1)}), tmp_path)
