"""Files that are damaged or hostile: refused in one line, nothing in them is run, nothing large is made."""

import argparse
import json
import multiprocessing
import random
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.logging import MessageHub
from mmengine.optim import CosineAnnealingLR, LinearLR, OptimWrapper
from support.hostile_files import FILES, HONEST, archive, saved
from support.ways_in import WAYS, main

from covpool_plugins import create_model
from covpool_plugins.checkpoint_file import CheckpointError, read_checkpoint
from covpool_plugins.checkpoints import load_original
from covpool_plugins.errors import OptionError
from covpool_plugins.explain import load_timm_model
from covpool_plugins.mmpretrain_plugin.safe_checkpoints import check_checkpoint

FORMATS = {"zip": True, "legacy": False}
EXAMPLES = settings(max_examples=40, deadline=None)
BASE_MEGABYTES = 150  # of Python's objects; files of the list have 4 MB at most


def contents():
    """What the original scripts save: weights, an optimizer, NumPy scalars, the run's settings."""
    network = torch.nn.Sequential(torch.nn.Linear(30, 20), torch.nn.BatchNorm1d(20))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])
    network(torch.randn(4, 30)).sum().backward()
    optimizer.step()
    optimizer.param_groups[0]["lr"] = np.float64(0.05)
    arguments = argparse.Namespace(lr=np.float64(0.1), workers=4, model="so_vit_7", sizes=[1, 2], device="cpu")
    return dict(
        epoch=3,
        arch="resnet18",
        state_dict=network.state_dict(),
        best_prec1=torch.tensor(71.5),
        optimizer=optimizer.state_dict(),
        scheduler=scheduler.state_dict(),
        args=arguments,
        history=np.arange(5.0),
        half=torch.ones(3, dtype=torch.float16),
        parameter=torch.nn.Parameter(torch.ones(2)),
        empty=torch.ones(0, 3),
        step=torch.ones(4, 6)[::2, 1:3],
    )


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


@pytest.mark.parametrize("kind", FORMATS.values(), ids=FORMATS)
def test_what_scripts_save_is_read(kind, tmp_path):
    content = contents()
    (tmp_path / "file.pth").write_bytes(saved(content, kind))
    read = read_checkpoint(tmp_path / "file.pth")
    assert read["epoch"] == 3
    assert read["args"] == content["args"]
    assert read["scheduler"]["milestones"] == content["scheduler"]["milestones"]
    assert read["optimizer"]["param_groups"][0]["lr"] == 0.05
    assert (read["history"] == content["history"]).all()
    assert torch.equal(read["step"], content["step"])
    assert read["empty"].shape == (0, 3)
    for key, tensor in content["state_dict"].items():
        assert torch.equal(read["state_dict"][key], tensor)
        assert read["state_dict"][key].dtype == tensor.dtype


def test_the_forged_archive_is_read_if_it_is_honest(tmp_path):
    """So that the others are refused for what is wrong with them."""
    (tmp_path / "file.pth").write_bytes(HONEST)
    assert read_checkpoint(tmp_path / "file.pth")["fc.weight"].tolist() == [[0, 0], [0, 0]]


def sent(tmp_path, *ways, start="spawn"):
    """What becomes of all hostile files on some ways in, in a process of limited memory."""
    folder, out = tmp_path / "files", tmp_path / "out"
    folder.mkdir()
    process = multiprocessing.get_context(start).Process(target=main, args=(folder, out, list(ways)))
    process.start()
    process.join(1800)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == len(ways) * len(FILES), process.exitcode
    assert not list(tmp_path.rglob("HACKED"))
    return rows


def wrong(rows):
    """Calls that are not refused in one short line, take long or much."""
    return [
        row
        for row in rows
        if not row["outcome"].startswith("refused: ")
        or len(row["outcome"]) > 1000
        or row["seconds"] > 20
        or row["megabytes"] > BASE_MEGABYTES
    ]


def test_every_file_is_refused(tmp_path):
    assert len(FILES) > 270
    assert wrong(sent(tmp_path, "read", start="fork")) == []  # which need not import anything


@pytest.mark.slow
def test_every_file_is_refused_on_every_way_in(tmp_path):
    rows = sent(tmp_path, *WAYS)
    assert wrong(rows) == []
    assert len(rows) > 2_200


@pytest.mark.parametrize(
    "name, message",
    [
        ("calls os.system", "os.system"),
        ("claims a large storage", "claims storage '0'"),
        ("zip bomb", "compressed"),
        ("zip with wrong sums", "CRC"),
        ("zip without its end", "incomplete"),
        ("zip with a TorchScript program", "TorchScript"),
        ("a whole module (archive)", "Linear"),
        ("a sparse tensor (archive)", "sparse"),
        ("an empty file", "empty"),
        ("text", "text"),
        ("a pipe", "no regular file"),
        ("safetensors with a header of 1 GB.safetensors", "header"),
    ],
)
def test_messages(name, message, tmp_path):
    path = tmp_path / ("file.safetensors" if name.endswith(".safetensors") else "file.pth")
    FILES[name](path)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(path)


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize(
    "address", ["https://localhost:9/a.pth", "torchvision://resnet18", "s3://a/b.pth", "petrel:s3://a", "file:///a.pth"]
)
def test_addresses_are_refused(address, resume):
    """MMEngine would fetch them, and run the config in what it gets."""
    with pytest.raises(OptionError, match="address"):
        check_checkpoint(address, resume=resume)


def a_run():
    """The state of a run as MMEngine saves it."""
    network = torch.nn.Linear(2, 2)
    wrapper = OptimWrapper(torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9))
    schedulers = [LinearLR(wrapper, start_factor=0.1, end=5), CosineAnnealingLR(wrapper, T_max=10)]
    network(torch.ones(1, 2)).sum().backward()
    wrapper.step()
    hub = MessageHub("a_run")
    hub.update_scalar("train/loss", 0.5)
    hub.update_info("epoch", 1)
    state = network.state_dict()
    average = {"steps": torch.tensor(3), **{f"module.{key}": value for key, value in state.items()}}
    return {
        "meta": {"epoch": 1, "iter": 3, "seed": 7, "dataset_meta": {"classes": ["a"]}},
        "state_dict": state,
        "ema_state_dict": average,
        "message_hub": hub.state_dict(),
        "optimizer": wrapper.state_dict(),
        "param_schedulers": [scheduler.state_dict() for scheduler in schedulers],
    }


def nested(levels):
    value = [0]
    for _ in range(levels):
        value = [value, value]
    return value


def many(value):
    """Names of one tensor, which an optimizer would copy each into another type."""
    return {f"{i}": value for i in range(200)}


ODD_RUNS = {
    "a config to be run": ("meta", "config", "x = 1"),
    "an epoch as text": ("meta", "epoch", "three"),
    "a truth value": ("meta", "epoch", True),
    "no epoch": ("meta", "epoch", None),
    "a negative iteration": ("meta", "iter", -1),
    "a list": ("meta", "iter", [1]),
    "a seed as text": ("meta", "seed", "seven"),
    "a large seed": ("meta", "seed", 1 << 40),
    "no scalars": ("message_hub", "log_scalars", None),
    "a list of scalars": ("message_hub", "log_scalars", []),
    "scalars that are none": ("message_hub", "log_scalars", {"train/loss": 3}),
    "no keys": ("message_hub", "resumed_keys", None),
    "information as text": ("message_hub", "runtime_info", "epoch"),
    "an optimizer of one tensor": ("optimizer", "state", {0: many(torch.ones(1000, dtype=torch.float64))}),
    "an optimizer of nested lists": ("optimizer", "state", {0: nested(60)}),
    "an average of integers": ("ema_state_dict", "module.weight", torch.ones(2, 2, dtype=torch.int64)),
    "weights of integers": ("state_dict", "weight", torch.ones(2, 2, dtype=torch.bool)),
    "a scheduler without its methods": ("param_schedulers", 0, {"step": 3}),
    "a scheduler of another optimizer": ("param_schedulers", 0, {"optimizer": {}}),
    "a scheduler as text": ("param_schedulers", 0, "cosine"),
    "schedulers as text": ("param_schedulers", None, "cosine"),
    "an optimizer as text": ("optimizer", None, "SGD"),
    "a hub as text": ("message_hub", None, "hub"),
}


@pytest.mark.parametrize("case", ODD_RUNS)
def test_what_a_run_may_say_of_itself(case, tmp_path):
    part, name, value = ODD_RUNS[case]
    run = a_run()
    if name is None:
        run[part] = value
    else:
        run[part][name] = value
    torch.save(run, tmp_path / "epoch_1.pth")
    with pytest.raises(OptionError) as error:
        check_checkpoint(tmp_path / "epoch_1.pth", resume=True)
    assert "\n" not in str(error.value)


def test_an_honest_run_is_resumed(tmp_path):
    run = a_run()
    torch.save(run, tmp_path / "epoch_1.pth")
    assert check_checkpoint(tmp_path / "epoch_1.pth", resume=True) == run["meta"]
    run["message_hub"]["log_scalars"]["train/loss"]._count_history = np.ones(3)
    torch.save(run, tmp_path / "epoch_1.pth")
    with pytest.raises(OptionError, match="no history of numbers for 'train/loss'"):
        check_checkpoint(tmp_path / "epoch_1.pth", resume=True)


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_checkpoint(tmp_path / "nothing.pth")
    with pytest.raises(IsADirectoryError):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("kind", FORMATS.values(), ids=FORMATS)
def test_truncated_at_every_two_kilobytes(kind, tmp_path):
    data = saved({f"layer{i}.weight": torch.randn(40, 40) for i in range(10)}, kind)
    assert len(data) > 60_000
    for length in range(0, len(data) - 1, 2048):
        refused(data[:length], tmp_path)


@pytest.mark.parametrize("kind", FORMATS.values(), ids=FORMATS)
@EXAMPLES
@given(seed=st.integers(0, 1 << 30))
def test_flipped_bytes(kind, seed, tmp_path_factory):
    """A changed file is refused, or what is read is no larger than the file."""
    content = {"state_dict": OrderedDict((f"l{i}.weight", torch.ones(8, 8)) for i in range(4)), "epoch": 3}
    data = bytearray(saved(content, kind))
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
    path = tmp_path_factory.mktemp("program") / "file.pth"
    path.write_bytes(archive(b"\x80\x02" + data + b"."))
    try:
        read_checkpoint(path)
    except CheckpointError as error:
        assert "\n" not in str(error)


def test_control_characters_are_not_printed(tmp_path):
    with pytest.raises(CheckpointError) as error:
        FILES["control characters (archive)"](tmp_path / "file.pth")
        load_original(tmp_path / "file.pth")
    assert str(error.value).isprintable()


def test_aliases_besides_the_weights(tmp_path):
    """Of one storage as the state of many parameters: an optimizer would copy each into another type."""
    large = torch.ones(100_000, dtype=torch.float64)
    content = {"state_dict": {"fc.weight": torch.ones(2)}, "optimizer": {i: large[: 90_000 + i] for i in range(200)}}
    assert "larger than the file" in refused(saved(content), tmp_path)


def test_a_history_is_made_of_no_tuples(tmp_path):
    """NumPy would make an array of as many numbers as nested references claim."""
    FILES["a history of nested references"](tmp_path / "file.pth")
    with pytest.raises(OptionError, match="plain data in another way"):
        check_checkpoint(tmp_path / "file.pth", resume=True)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_integers_for_real_numbers_are_not_explained(dtype, tmp_path):
    """Whatever their name is."""
    content = timm.create_model("test_vit", num_classes=2).state_dict()
    torch.save(content | {"pos_embed": content["pos_embed"].to(dtype)}, tmp_path / "vit.pth")
    with pytest.raises(OptionError, match="pos_embed"):
        load_timm_model("test_vit", tmp_path / "vit.pth", num_classes=2)


@pytest.mark.parametrize("value", [torch.ones(5), torch.ones(0), np.arange(5.0)])
def test_arrays_besides_the_weights_are_left_out(value, tmp_path):
    content = {"state_dict": timm.create_model("test_resnet", num_classes=2).state_dict(), "history": value}
    torch.save(content, tmp_path / "file.pth")
    assert any("history" in note for note in load_original(tmp_path / "file.pth", arch="test_resnet").notes)


def test_a_numpy_archive_is_no_bomb(tmp_path):
    path = tmp_path / "jax.npz"
    overlay = dict(file=str(path), num_classes=2, custom_load=True)
    np.savez_compressed(path, **{"embedding/kernel": np.zeros((16, 16, 3, 1 << 14), np.float32)})
    with pytest.raises(OptionError, match="unpacked"):
        create_model("test_vit", "gap", pretrained=True, pretrained_cfg_overlay=overlay)
    header = str({"descr": "<f4", "fortran_order": False, "shape": (10**15,)}).encode().ljust(117) + b"\n"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("embedding/kernel.npy", b"\x93NUMPY\x01\0\x76\0" + header)
    with pytest.raises(OptionError, match="Unable to allocate"):
        create_model("test_vit", "gap", pretrained=True, pretrained_cfg_overlay=overlay)


@pytest.mark.parametrize("name", ["calls os.system", "copies of pairs"])
def test_a_pickle_that_is_named_as_a_numpy_archive(name, tmp_path):
    """timm would read it as any other file, unchecked."""
    FILES[name](tmp_path / "file.npz")
    with pytest.raises(CheckpointError, match=r"os\.system|larger than the file"):
        create_model("test_vit", "gap", pretrained=tmp_path / "file.npz")
