"""Files as training loops and their wrappers write them: every way in takes the network out of them."""

import argparse
import copy
import json
import zipfile

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from timm.utils import CheckpointSaver, ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import covpool_plugins
from covpool_plugins.checkpoint_file import CheckpointError, find_weights, read_checkpoint, weights_file
from covpool_plugins.checkpoints import load_original, write
from covpool_plugins.errors import OptionError
from covpool_plugins.explain import load_timm_model

NAME, CLASSES = "test_resnet", 5


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = timm.create_model(NAME, num_classes=CLASSES)
    made.train()(torch.randn(8, 3, 64, 64))  # statistics of batch norm
    return made.eval()


class Loop(nn.Module):
    """What Lightning's module is in a checkpoint: the network among the loop's other modules."""

    def __init__(self, network, **others):
        super().__init__()
        self.model = network
        for name, module in others.items():
            setattr(self, name, module)


class Compiled(nn.Module):
    """What torch.compile makes of a network, which takes seconds to import."""

    def __init__(self, network):
        super().__init__()
        self._orig_mod = network


class Metric(nn.Module):
    """As torchmetrics' with ``persistent=True``: counts."""

    def __init__(self):
        super().__init__()
        self.register_buffer("tp", torch.zeros(CLASSES, dtype=torch.int64))
        self.register_buffer("total", torch.tensor(3))


def lightning(loop):
    optimizer = torch.optim.AdamW(loop.parameters())
    (sum(p.sum() for p in loop.parameters())).backward()
    optimizer.step()
    return {
        "epoch": 3,
        "global_step": 40,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": loop.state_dict(),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 4}}}},
        "callbacks": {
            "ModelCheckpoint{'monitor': 'val_loss'}": {"best_model_score": torch.tensor(0.1), "dirpath": "."}
        },
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 0.1},
    }


def averaged(network):
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    average.update_parameters(network)
    return average


def flat(network):
    """Views of one storage, as flattened parameters are."""
    state = network.state_dict()
    storage = torch.cat([value.flatten() for value in state.values() if value.is_floating_point()])
    places = iter(storage.split([value.numel() for value in state.values() if value.is_floating_point()]))
    return {k: next(places).view(v.shape) if v.is_floating_point() else v for k, v in state.items()}


def prefixed(prefix, network):
    return {prefix + key: value for key, value in network.state_dict().items()}


def parameters(network):
    """Parameters themselves instead of their data."""
    return {**network.state_dict(), **dict(network.named_parameters())}


# What torch.save is given.
CONTENTS = {
    "a state dict": lambda m: m.state_dict(),
    "parameters": parameters,
    "views of one storage": flat,
    "DataParallel": lambda m: nn.DataParallel(m).state_dict(),
    "torch.compile": lambda m: Compiled(m).state_dict(),
    "DDP in torch.compile": lambda m: Compiled(nn.DataParallel(m)).state_dict(),
    "torch.compile in DDP": lambda m: nn.DataParallel(Compiled(m)).state_dict(),
    "Lightning": lambda m: lightning(Loop(m)),
    "Lightning, compiled": lambda m: lightning(Loop(Compiled(m))),
    "Lightning with a loss and metrics": lambda m: lightning(
        Loop(m, criterion=nn.CrossEntropyLoss(weight=torch.ones(CLASSES)), center=nn.Linear(3, 2), val_acc=Metric())
    ),
    "Lightning with an average": lambda m: lightning(Loop(m, ema_model=averaged(m))),
    "Lightning with five names of one network": lambda m: lightning(Loop(m, ema_model=m, teacher=m, best=m, last=m)),
    "an average": lambda m: averaged(m).state_dict(),
    "torchvision's references": lambda m: {
        "model": m.state_dict(),
        "model_ema": averaged(m).state_dict(),
        "optimizer": torch.optim.SGD(m.parameters(), lr=0.1).state_dict(),
        "args": argparse.Namespace(lr=0.1, model="x"),
        "scaler": {"scale": 65536.0, "_growth_tracker": 0},
    },
    "a script's": lambda m: {"net": prefixed("module.", m), "acc": 71.5, "epoch": 3},
    "DeepSpeed": lambda m: {"module": m.state_dict(), "global_steps": 3, "ds_version": "0.16", "buffer_names": ["a"]},
    "MMPretrain's wrapper of timm alone": lambda m: {"state_dict": prefixed("backbone.timm_model.", m), "meta": {}},
    "Hugging Face's wrapper": lambda m: prefixed("timm_model.", m),
}


def timms_saver(network, folder):
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    average = ModelEmaV3(network)
    settings = argparse.Namespace(model="x", model_kwargs={}, lr=0.1)
    saver = CheckpointSaver(network, optimizer, settings, average, checkpoint_dir=str(folder), recovery_dir=str(folder))
    saver.save_checkpoint(3, metric=71.5)
    return folder / "last.pth.tar"


def accelerates_folder(network, folder):
    folder = folder / "checkpoint_0"
    folder.mkdir()
    safetensors.torch.save_model(network, str(folder / "model.safetensors"))
    torch.save(torch.optim.SGD(network.parameters(), lr=0.1).state_dict(), folder / "optimizer.bin")
    (folder / "random_states_0.pkl").write_bytes(b"\x80\x04N.")
    return folder


def trainers_folder(network, folder):
    folder = folder / "checkpoint-500"
    folder.mkdir()
    safetensors.torch.save_file(prefixed("timm_model.", network), folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"architectures": ["TimmWrapper"], "model_type": "timm_wrapper"}))
    (folder / "training_args.bin").write_bytes(b"\x80\x04N.")
    return folder


def shared_safetensors(network, folder):
    """Of tensors with several names, safetensors saves one, and the others' names."""
    safetensors.torch.save_model(Loop(network, ema_model=network), str(folder / "shared.safetensors"))
    return folder / "shared.safetensors"


def one_file_in_a_folder(network, folder):
    (folder / "run").mkdir()
    torch.save(network.state_dict(), folder / "run" / "epoch_3.pt")
    return folder / "run"


WRITERS = {
    "timm's CheckpointSaver": timms_saver,
    "Accelerate": accelerates_folder,
    "Trainer": trainers_folder,
    "safetensors with shared tensors": shared_safetensors,
    "one file in a folder": one_file_in_a_folder,
}


def written(name, network, folder):
    network = copy.deepcopy(network)
    if name in WRITERS:
        return WRITERS[name](network, folder)
    torch.save(CONTENTS[name](network), folder / "file.pth")
    return folder / "file.pth"


def converted(path):
    return load_original(path, arch=NAME).create_model()


def explained(path):
    return load_timm_model(NAME, path, num_classes=CLASSES)


def begun_with(path):
    return covpool_plugins.create_model(NAME, "gap", num_classes=CLASSES, pretrained=path).eval()


def test_the_other_order_of_bytes(tmp_path):
    """An archive of a machine that writes the highest byte first."""
    torch.save({"fc.weight": torch.arange(6.0)}, tmp_path / "little.pth")
    with zipfile.ZipFile(tmp_path / "little.pth") as ours, zipfile.ZipFile(tmp_path / "big.pth", "w") as theirs:
        for name in ours.namelist():
            data = ours.read(name)
            data = b"big" if name.endswith("byteorder") else data
            theirs.writestr(name, np.frombuffer(data, "<f4").astype(">f4").tobytes() if "/data/" in name else data)
    for mmap in (False, True):
        assert read_checkpoint(tmp_path / "big.pth", mmap=mmap)["fc.weight"].tolist() == [0, 1, 2, 3, 4, 5]


def read(path):
    class Read:
        def state_dict(self):
            return find_weights(read_checkpoint(path), path).tensors

    path = weights_file(path) if path.is_dir() else path
    return Read()


# Of all files these go every way in the fast tests.
ALL_WAYS = ("Lightning with a loss and metrics", "safetensors with shared tensors", "Trainer")
WAYS = {"reader": read, "conversion": converted, "explanation": explained, "create_model": begun_with}


@pytest.mark.parametrize(
    "name, way",
    [
        pytest.param(name, way, marks=[] if way == "reader" or name in ALL_WAYS else pytest.mark.slow)
        for name in (*CONTENTS, *WRITERS)
        for way in WAYS
    ],
)
def test_the_network_is_found(name, way, model, tmp_path):
    path = written(name, model, tmp_path)
    if path.is_dir() and way == "explanation":
        pytest.skip("explain takes a file")
    expected = model.state_dict()
    if name.startswith("Lightning"):  # one step of an optimizer
        stored = torch.load(path, weights_only=True)["state_dict"]
        expected = {key: stored.get(f"model.{key}", stored.get(f"model._orig_mod.{key}")) for key in expected}
    state = WAYS[way](path).state_dict()
    for key, value in expected.items():
        assert torch.equal(state[key if key in state else f"head.{key}"], value), key


def test_what_stands_beside_the_network_is_reported(model, tmp_path):
    path = written("Lightning with a loss and metrics", model, tmp_path)
    found = load_original(path, arch=NAME)
    beside = {row.original: row.remark for row in found.keys if row.ours is None}
    names = {"criterion.weight", "center.weight", "center.bias", "val_acc.tp", "val_acc.total"}
    assert beside == dict.fromkeys(names, "left out: beside the network")
    write(found, "timm", tmp_path / "timm")
    assert all(f"`{key}`" in (tmp_path / "timm" / "conversion.md").read_text() for key in beside)
    write(load_original(tmp_path / "timm"), "original", tmp_path / "again")
    again = torch.load(tmp_path / "again" / "file.pth", weights_only=True)["state_dict"]
    assert list(again) == [f"model.{key}" for key in model.state_dict()]


def test_a_head_of_the_loops_own_is_not_left_out(tmp_path):
    """A backbone under ``model.`` and a classifier beside it: no network with fresh weights is made of that."""
    loop = Loop(timm.create_model("resnet18", num_classes=0), classifier=nn.Linear(512, 3))
    torch.save(lightning_weights(loop), tmp_path / "file.ckpt")
    with pytest.raises(OptionError, match=r"'classifier.weight', 'classifier.bias' may be the head"):
        load_original(tmp_path / "file.ckpt")
    torch.save({"backbone.conv1.weight": torch.ones(2), "head.fc.weight": torch.ones(2)}, tmp_path / "parts.pth")
    assert set(find_weights(read_checkpoint(tmp_path / "parts.pth"), tmp_path / "parts.pth").tensors) == {
        "backbone.conv1.weight",
        "head.fc.weight",
    }


def lightning_weights(loop):
    return {"state_dict": loop.state_dict(), "pytorch-lightning_version": "2.5.0"}


def test_several_files_in_a_folder(model, tmp_path):
    for name in ("checkpoint-1.pth.tar", "last.pth.tar"):
        torch.save(model.state_dict(), tmp_path / name)
    for way in (converted, begun_with):
        with pytest.raises(CheckpointError, match=r"several files of weights \(checkpoint-1.pth.tar, last.pth.tar"):
            way(tmp_path)


def second_order(**options):
    return timm.create_model(
        "second_order", backbone=NAME, head="isqrt", reduce_channels=8, num_classes=CLASSES, **options
    )


@pytest.mark.parametrize(
    "name", ["a state dict", "torch.compile in DDP", "Lightning, compiled", "an average", "Hugging Face's wrapper"]
)
def test_timms_own_ways(name, tmp_path):
    """``checkpoint_path=``, ``--initial-checkpoint`` and ``--resume`` end in load_state_dict."""
    model = second_order().eval()
    state = CONTENTS[name](copy.deepcopy(model))
    state = state.get("state_dict", state)
    torch.save({"state_dict": state}, tmp_path / "file.pth")
    model = second_order(checkpoint_path=str(tmp_path / "file.pth"))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), weights_of(state), strict=True))
    again = second_order()
    timm.models.resume_checkpoint(again, str(tmp_path / "file.pth"))
    assert torch.equal(again.head.fc.weight, model.head.fc.weight)
    again = second_order(pretrained=str(tmp_path / "file.pth"))
    assert torch.equal(again.head.fc.weight, model.head.fc.weight)


def weights_of(state):
    return (value for key, value in state.items() if key != "n_averaged")


def test_a_plain_backbones_file(model, tmp_path):
    """Strictly it is no whole network; the error says how to begin with it, and that works."""
    torch.save(model.state_dict(), tmp_path / "plain.pth")
    with pytest.raises(RuntimeError, match=r"pretrained=FILE\), or --pretrained --pretrained-path FILE") as error:
        second_order(checkpoint_path=str(tmp_path / "plain.pth"))
    assert "\n" not in str(error.value)
    lax = second_order()
    assert "head.fc.weight" in lax.load_state_dict(model.state_dict(), strict=False).missing_keys
    for begun in (lax, second_order(pretrained=tmp_path / "plain.pth")):
        assert torch.equal(first(begun), first(model))
    with pytest.raises(RuntimeError, match="Missing key"):  # of another network, as torch says it
        second_order().load_state_dict({"conv9.weight": torch.ones(2)})


def first(network):
    return next(network.parameters())


def test_features_only_are_read_once_by_our_reader(model, tmp_path, monkeypatch):
    torch.save(prefixed("model.", model), tmp_path / "plain.pth")
    monkeypatch.setattr("timm.models._builder.load_state_dict", None)
    features = second_order(features_only=True, pretrained=tmp_path / "plain.pth")
    assert torch.equal(first(features), first(model))
    assert features.pretrained_cfg["state_dict"] is None
    begun = second_order(pretrained=tmp_path / "plain.pth")
    assert torch.equal(first(begun), first(model))
    with pytest.raises(OptionError, match="no weights at"):
        second_order(features_only=True, pretrained=tmp_path / "nothing.pth")


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
@pytest.mark.parametrize("key", ["cls_token", "pos_embed", "blocks.0.ls1.gamma", "an_own_name"])
def test_integers_for_real_numbers(dtype, key, tmp_path):
    """Whatever their name is: what is known of the model decides, and for the usual names the reader itself."""
    name = "test_vit"
    state = timm.create_model(name, num_classes=CLASSES, init_values=1e-5).state_dict()
    if key == "an_own_name":
        key = "head.weight"
    torch.save(state | {key: state[key].to(dtype)}, tmp_path / "file.pth")
    options = dict(num_classes=CLASSES, init_values=1e-5)
    for load in (
        lambda path: covpool_plugins.create_model(name, "gap", pretrained=path, **options),
        lambda path: load_timm_model(name, path, **options),
        lambda path: load_original(path, arch=name),
        lambda path: find_weights(read_checkpoint(path), path),
    ):
        with pytest.raises(OptionError, match=rf"{key}.* is of {dtype}"):
            load(tmp_path / "file.pth")


def test_weights_of_another_width(tmp_path):
    torch.save(timm.create_model("test_resnet", in_chans=3, stem_width=8).state_dict(), tmp_path / "file.pth")
    with pytest.raises(OptionError, match=r"the weights at '.*file.pth' cannot be loaded: .*size mismatch") as error:
        covpool_plugins.create_model("resnet10t", "gap", pretrained=tmp_path / "file.pth")
    assert "\n" not in str(error.value)
