"""What a checkpoint is, told from its keys and shapes; what keys leave open, from hints; what does not fit, refused."""

import argparse
import json
import re
import sys

import pytest
import safetensors.torch
import skimage.data
import timm
import torch
from PIL import Image
from support.checkpoints import saved, small

from covpool_plugins.checkpoints import CheckpointError, load_original, write
from covpool_plugins.checkpoints.heads import ORIGINAL_HEADS, names
from covpool_plugins.checkpoints.placement import CHANGES
from covpool_plugins.checkpoints.triangle import PHOTOGRAPHS, columns
from covpool_plugins.errors import OptionError, UnknownNameError

SCRATCH = "fmpn__resnet18__MPNCOV__finetune"  # 50 classes, no reduction
# Each takes a second; the others differ in nothing but their name.
SOME_ROOTS = ("svdtopn",)
OTHERS = ("gap", "bcnn", "cbp")
ROOTS = sorted({row.head for _, row in ORIGINAL_HEADS.items() if row.head not in OTHERS and not row.identity})


@pytest.fixture(scope="module")
def resnet18():
    return small(SCRATCH)


def bare(state):
    return {key.replace("module.", ""): tensor for key, tensor in state.items()}


STYLES = {
    "as main.py": lambda state: state,
    "one GPU": bare,
    "distributed": lambda state: {f"module.{key}": tensor for key, tensor in bare(state).items()},
    "compiled": lambda state: {f"_orig_mod.{key}": tensor for key, tensor in state.items()},
    "a part of a model": lambda state: {f"model.{key}": tensor for key, tensor in state.items()},
    "a part of a part": lambda state: {f"module.net._orig_mod.backbone.{key}": t for key, t in bare(state).items()},
}


@pytest.mark.parametrize("style", STYLES)
def test_prefixes(style, resnet18, tmp_path):
    converted = load_original(saved(STYLES[style](resnet18), tmp_path), head="isqrt")
    assert converted.model_name == "resnet18_isqrt"
    assert [row.original for row in converted.keys if row.original] == list(STYLES[style](resnet18))


def test_lightning(resnet18, tmp_path):
    """Weights under ``model.``, and the state of its loops."""
    state = {f"model.{key}": tensor for key, tensor in bare(resnet18).items()}
    content = {"state_dict": state, "pytorch-lightning_version": "2.4.0", "loops": {}, "hyper_parameters": {"lr": 0.1}}
    converted = load_original(saved(content, tmp_path, "last.ckpt"), head="isqrt")
    assert converted.model_name == "resnet18_isqrt"
    assert any("hyper_parameters" in note for note in converted.notes)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_folders_of_other_tools(name, resnet18, tmp_path):
    """Accelerate writes no config.json, Hugging Face's tools one that is not timm's."""
    state = {key: tensor.clone() for key, tensor in bare(resnet18).items()}
    if name.endswith("bin"):
        (tmp_path / "config.json").write_text('{"architectures": ["Net"], "model_type": "net"}')
        saved(state, tmp_path, name)
    else:
        safetensors.torch.save_file(state, tmp_path / name)
    assert load_original(tmp_path, head="isqrt").model_name == "resnet18_isqrt"


def test_decorrelated_batch_norm_is_no_pca_layer(tmp_path):
    """Its keys are those of the PCA layer."""
    state = bare(small("pisvd__resnet18__pcanormsvdpi__c10"))
    state = {key: tensor for key, tensor in state.items() if not re.fullmatch(r"bn1\.\d+", key)}
    state |= {key: tensor.unsqueeze(0) for key, tensor in state.items() if key.startswith("bn1.")}
    with pytest.raises(OptionError, match="own batch norm"):
        load_original(saved({"net": state}, tmp_path))


@pytest.mark.parametrize("name", ["dbn__resnet18__zcanormbatch__c10", "pisvd__resnet18__zcanormsvdunstable__c10"])
def test_shapes_of_whitening_layers_are_exact(name, tmp_path):
    state = bare(small(name))
    for key in [key for key in state if key.startswith("bn1.")]:
        changed = {**state, key: state[key].unsqueeze(-1)}
        with pytest.raises(OptionError, match=r"would have to be"):
            load_original(saved({"net": changed}, tmp_path))


UNSAFE = {
    "checkpoint_path": "/dev/zero",
    "pretrained": True,
    "pretrained_cfg": {"file": "/dev/zero"},
    "pretrained_cfg_overlay": {"url": "http://localhost:9/"},
    "cache_dir": "cache",
    "act_layer": "os.system",
    "img_size": 10**9,
    "head_kwargs": [1],
}


def test_settings_of_a_file_lead_nowhere(tmp_path):
    """Only widths and options of pools reach the constructor of a model."""
    state = timm.create_model("resnet18_isqrt", num_classes=5, reduce_channels=64).state_dict()
    settings = argparse.Namespace(model="resnet18_isqrt", model_kwargs={**UNSAFE, "reduce_channels": 64})
    converted = load_original(saved({"state_dict": state, "args": settings}, tmp_path))
    assert converted.model_kwargs == {"num_classes": 5, "head_kwargs": {"reduce_channels": 64}}
    for name in UNSAFE:
        assert any(f"{name!r} of the file not used" in note for note in converted.notes)
    write(converted, "timm", tmp_path / "timm")
    config = json.loads((tmp_path / "timm" / "config.json").read_text())
    config["model_args"] |= {name: value for name, value in UNSAFE.items() if name != "head_kwargs"}
    (tmp_path / "timm" / "config.json").write_text(json.dumps(config))
    assert load_original(tmp_path / "timm").model_kwargs == converted.model_kwargs
    listed = argparse.Namespace(model=["resnet18_isqrt"], model_kwargs=[1, 2], representation=3)
    with pytest.raises(OptionError):
        load_original(saved({"net": {"fc.weight": torch.ones(2, 2)}, "args": listed}, tmp_path))


PARTS = {
    None: [{i: torch.full((2, 3), float(i)) for i in range(12)}, {None: torch.arange(3.0)}],
    "lower": [{None: torch.arange(30.0).reshape(2, 15)}],
    "unbiased": [{None: torch.arange(8.0)}],
}
PARTS["mean"] = PARTS["sum"] = [
    {0: torch.arange(6.0).reshape(2, 3), 1: torch.arange(8.0).reshape(2, 4)},
    {0: torch.ones(2), 1: torch.ones(2)},
]


@pytest.mark.parametrize("name", CHANGES, ids=str)
def test_the_way_back_of_what_is_changed(name):
    for parts in PARTS[name]:
        whole = CHANGES[name].join(parts)
        for number, part in parts.items():
            torch.testing.assert_close(CHANGES[name].split(whole, number, part.shape), part)


def mpncov(classes=3):
    """A small network in fast-MPN-COV's keys, and its state dict."""
    model = timm.create_model("resnet18_isqrt", num_classes=classes, reduce_channels=16, last_stride=1).eval()
    names = {"head.global_pool.reduction.conv": "layer_reduce", "head.global_pool.reduction.norm": "layer_reduce_bn"}
    names |= {"head.fc": "fc"}
    state = {}
    for key, tensor in model.state_dict().items():
        module, _, leaf = key.rpartition(".")
        state[f"{names.get(module, module)}.{leaf}"] = tensor
    return model, state


def lower(state):
    """The same network as before December 2018."""
    n = 16
    row, column = torch.tril_indices(n, n)
    matrix = torch.zeros(n, n, dtype=torch.int64)
    upper = torch.triu_indices(n, n)
    matrix[upper[0], upper[1]] = torch.arange(n * (n + 1) // 2)
    return {**state, "fc.weight": state["fc.weight"][:, matrix[column, row]]}


def test_columns_of_a_triangle():
    """The numbers of a symmetric matrix in both orders, and the way back."""
    A = torch.arange(16).reshape(4, 4)
    A = A + A.mT
    rows, cols = torch.tril_indices(4, 4)
    lower_vector, upper_vector = A[rows, cols], A[tuple(torch.triu_indices(4, 4))]
    assert torch.equal(lower_vector[columns(10, "lower")], upper_vector)
    assert torch.equal(upper_vector[columns(10, "upper")], lower_vector)


@pytest.mark.slow
def test_the_order_of_the_triangle(tmp_path):
    model, state = mpncov()
    path = saved(lower(state), tmp_path)
    converted = load_original(path, triangle="lower")
    assert torch.equal(converted.state_dict["head.fc.weight"], model.head.fc.weight)
    assert not torch.equal(load_original(path, triangle="upper").state_dict["head.fc.weight"], model.head.fc.weight)
    write(converted, "timm", tmp_path / "timm")
    write(load_original(tmp_path / "timm"), "original", tmp_path / "again")
    assert torch.equal(torch.load(tmp_path / "again" / path.name)["fc.weight"], lower(state)["fc.weight"])
    assert any("is a guess" in note and "--triangle" in note for note in load_original(path).notes)
    named = load_original(saved(lower(state), tmp_path, "mpncovresnet50-15991845.pth"))
    assert torch.equal(named.state_dict["head.fc.weight"], model.head.fc.weight)
    assert any("lower" in note for note in named.notes)
    with pytest.raises(OptionError, match="no triangle"):
        load_original(saved(timm.create_model("resnet18").state_dict(), tmp_path), triangle="lower")
    with pytest.raises(OptionError, match="upper"):
        load_original(path, triangle="left")


@pytest.mark.slow
@pytest.mark.parametrize("order", ["lower", "upper"])
def test_the_network_is_asked_for_the_order(order, tmp_path):
    """One that tells four photographs apart in the right order, and is undecided in the wrong one."""
    model, state = mpncov(1000)
    transform = timm.data.create_transform((3, 224, 224))
    pictures = torch.stack([transform(Image.fromarray(getattr(skimage.data, name)())) for name in PHOTOGRAPHS])
    with torch.no_grad():
        vectors = model.forward_head(model.forward_features(pictures), pre_logits=True).double()
        wrong = [vectors[:, columns(vectors.shape[1], way)] for way in ("upper", "lower")]
        inverse = torch.linalg.pinv(torch.cat([vectors, *wrong]) - vectors.mean(0))[:, :4]
        model.head.fc.weight.zero_()[:4] = 30 * inverse.T
        model.head.fc.bias.copy_(-model.head.fc.weight @ vectors.mean(0).float())
    state |= {"fc.weight": model.head.fc.weight.detach(), "fc.bias": model.head.fc.bias.detach()}
    converted = load_original(saved(lower(state) if order == "lower" else state, tmp_path))
    (note,) = [note for note in converted.notes if "triangle" in note]
    assert f"triangle: {order}, told by the network" in note
    assert note.count("nats") == 2
    assert torch.equal(converted.state_dict["head.fc.weight"], model.head.fc.weight)


@pytest.mark.slow
def test_photographs_may_be_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    notes = load_original(saved(mpncov(1000)[1], tmp_path)).notes
    assert any("guess" in note and "demo" in note for note in notes)


@pytest.mark.parametrize(
    "head", [head if head in SOME_ROOTS else pytest.param(head, marks=pytest.mark.slow) for head in ROOTS]
)
def test_roots_are_told_apart_by_hints(head, resnet18, tmp_path):
    """By the user, by the run's settings, by the name of the file, in this order."""
    original = next(name for name, row in ORIGINAL_HEADS.items() if row.head == head)
    other = "svdtaylor" if head != "svdtaylor" else "isqrt"
    plain = saved({"state_dict": resnet18}, tmp_path, "x.pth")
    assert load_original(plain, head=head).network.head == head
    named = saved({"state_dict": resnet18}, tmp_path, f"res18-{original}-best.pth")
    assert load_original(named).network.head == head
    assert load_original(named, head=other).network.head == other
    settings = {"state_dict": resnet18, "args": argparse.Namespace(representation=original)}
    converted = load_original(saved(settings, tmp_path, f"{other}.pth"))
    assert converted.network.head == head
    assert any("setting of the run" in note and head in note for note in converted.notes)


def test_a_guess_is_reported(resnet18, tmp_path):
    converted = load_original(saved({"state_dict": resnet18, "epoch": 3}, tmp_path))
    assert converted.network.head == "svdpade"
    (note,) = [note for note in converted.notes if "guess" in note and "head" in note]
    assert all(head in note for head in ROOTS)
    assert any("stride" in note and "guess" in note for note in converted.notes)
    assert any("epsilon" in note for note in load_original(saved(resnet18, tmp_path), head="seb").notes)


@pytest.mark.parametrize("head, hint", [("powtmlr", None), ("cholesky", "r18-Cho-TMLR.pth"), ("cholesky", "cholesky")])
def test_heads_of_riemgcp_with_an_identity(head, hint, resnet18, tmp_path):
    """It tells them from the roots, and is kept for the way back; which of the two it is, is a hint's to say."""
    state = {**resnet18, "representation.I": torch.eye(512, dtype=torch.float64)}
    path = saved(state, tmp_path, hint if hint and "." in hint else "x.pth")
    converted = load_original(path, head=hint if hint == head else None)
    assert converted.network.head == head
    assert any("a guess: the keys fit powtmlr, cholesky" in note for note in converted.notes) == (hint is None)
    (row,) = [row for row in converted.keys if row.original == "representation.I"]
    assert row.remark == "dropped: an identity, which the head makes itself"
    assert torch.equal(converted.left_out["representation.I"], state["representation.I"])
    with pytest.raises(OptionError, match=r"would have to be \[512, 512\]"):
        load_original(saved({**state, "representation.I": torch.eye(256)}, tmp_path))


def test_what_isice_leaves_open_is_said(resnet18, tmp_path):
    (note,) = [note for note in load_original(saved(resnet18, tmp_path, "r18-SICE.pth")).notes if "step" in note]
    assert "tr Λ" in note


@pytest.mark.parametrize(
    "name, text, found",
    [
        ("SVD_Pade", "r50-svd-pade-e60.pth", True),
        ("SVD_Pade", "SVDPade_model_best.pth.tar", True),
        ("SEB", "sebastian.pth", False),
        ("MPNCOV", "mpncovresnet50-15991845.pth", True),
        ("MPNCOV", "MPN-COV_r18.pth", True),
        ("SVD_PI", "svd_pipeline.pth", False),
        ("SVD_PI", "svd_pi.pth", True),
        ("isqrt", "iSQRT-COV.pth", True),
    ],
)
def test_names_in_texts(name, text, found):
    assert names(name, text) is found


@pytest.mark.slow
def test_last_stride(tmp_path):
    state = small("fmpn__resnet50__MPNCOV__scratch")
    state |= {"classifier.weight": torch.zeros(3, 32896), "classifier.bias": torch.zeros(3)}
    path = saved({"state_dict": state}, tmp_path)
    assert load_original(path).network.last_stride is None
    assert load_original(path, arch="mpncovresnet50").network.last_stride == 1
    assert load_original(path, arch="mpncovresnet50").network.head == "isqrt"
    assert load_original(path, arch="resnet50").network.last_stride is None
    for arch, stride in (("mpncovresnet50", 1), ("resnet50", None)):
        path = saved({"state_dict": state, "arch": arch}, tmp_path)
        assert load_original(path).network.last_stride == stride
        assert not any("stride" in note and "guess" in note for note in load_original(path).notes)
    last = {key: state.pop(key) for key in list(state) if key.startswith("representation.")}  # as mpncovresnet has it
    assert load_original(saved({**state, **last}, tmp_path)).network.last_stride == 1


def test_averaged_weights_come_first(resnet18, tmp_path):
    averaged = {key: torch.ones_like(tensor) for key, tensor in resnet18.items()}
    path = saved({"state_dict": resnet18, "state_dict_ema": averaged}, tmp_path)
    first = load_original(path)
    assert first.state_dict["conv1.weight"].sum() > 0
    assert any("state_dict (" in note for note in first.notes)
    plain = load_original(path, averaged=False)
    assert plain.state_dict["conv1.weight"].sum() == 0
    assert any("state_dict_ema (" in note for note in plain.notes)


@pytest.mark.parametrize("name", ["resnet18", pytest.param("resnet50", marks=pytest.mark.slow)])
def test_plain_resnets(name, tmp_path):
    model = timm.create_model(name, num_classes=7).eval()
    path = saved(model.state_dict(), tmp_path)
    converted = load_original(path)
    assert converted.model_name == f"{name}_gap"
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(converted.create_model()(images), model(images))


def test_a_plain_resnet_with_another_head(tmp_path):
    model = timm.create_model("resnet18", num_classes=7)
    path = saved({"arch": "resnet18", "state_dict": model.state_dict()}, tmp_path)
    first, second = (load_original(path, head="isqrt") for _ in range(2))
    assert first.model_name == "resnet18_isqrt"
    assert [row.original for row in first.keys if not row.ours] == ["fc.weight", "fc.bias"]
    assert {row.ours.split(".")[0] for row in first.keys if not row.original} == {"head"}
    assert torch.equal(first.state_dict["head.fc.weight"], second.state_dict["head.fc.weight"])
    assert torch.equal(first.state_dict["layer4.1.conv2.weight"], model.layer4[1].conv2.weight)


@pytest.mark.slow
def test_our_own_models_as_timm_saves_them(tmp_path):
    model = timm.create_model("resnet18_seb", num_classes=5, reduce_channels=64).eval()
    settings = argparse.Namespace(model="resnet18_seb", model_kwargs={"reduce_channels": 64})
    content = {"epoch": 2, "arch": "resnet18_seb", "state_dict": model.state_dict(), "args": settings, "metric": 71.0}
    converted = load_original(saved(content, tmp_path))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(converted.create_model()(images), model(images))


OWN = {
    "resnet18_seb": dict(reduce_channels=64),
    "resnet18_isqrt": dict(last_stride=1, head_kwargs=dict(iterations=7)),
    "resnet18_cifar_zca": dict(norm_kwargs=dict(groups=8)),
    "resnet18_cifar_pca": {},
    "resnet18_cifar_zca_mpa": {},
    "so_vit_7": dict(img_size=64),
    "alexnet_mpa": {},
}


@pytest.mark.fast_for("resnet18_cifar_zca", "so_vit_7")
@pytest.mark.parametrize("name", OWN)
def test_our_own_models_with_their_arguments(name, tmp_path):
    model = timm.create_model(name, num_classes=5, **OWN[name]).eval()
    settings = argparse.Namespace(model=name, model_kwargs=OWN[name])
    content = {"arch": name, "state_dict": model.state_dict(), "args": settings}
    converted = load_original(saved(content, tmp_path))
    assert converted.model_name == name
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(converted.create_model()(images), model(images))


@pytest.mark.slow
def test_our_own_resnet_without_its_name(tmp_path):
    state = timm.create_model("resnet18_isqrt", num_classes=5).state_dict()
    converted = load_original(saved(state, tmp_path))
    assert (converted.model_name, len(converted.notes)) == ("resnet18_svdpade", 2)
    assert load_original(saved(state, tmp_path), head="isqrt").model_name == "resnet18_isqrt"
    assert load_original(saved(state, tmp_path), arch="resnet18_isqrt").model_name == "resnet18_isqrt"
    assert load_original(saved(state, tmp_path), arch="resnet18", head="isqrt").model_name == "resnet18_isqrt"
    assert load_original(saved({"arch": "resnet18_isqrt", "net": state}, tmp_path)).model_name == "resnet18_isqrt"


@pytest.mark.slow
def test_hints_are_not_passed_over(tmp_path):
    state = timm.create_model("resnet18_mpa", num_classes=5).state_dict()
    with pytest.raises(OptionError, match="--head seb"):
        load_original(saved({"arch": "resnet18_mpa", "state_dict": state}, tmp_path), head="seb")
    plain = saved(timm.create_model("resnet18").state_dict(), tmp_path)
    assert load_original(plain, arch="mpncovresnet18").network.last_stride == 1
    (tmp_path / "empty").mkdir()
    with pytest.raises(OptionError, match="no folder of weights"):
        load_original(tmp_path / "empty", head="isqrt")
    (tmp_path / "config.json").write_text('{"architecture": "resnet18"}')
    with pytest.raises(OptionError, match="says itself"):
        load_original(tmp_path, head="isqrt")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnext50_32x4d", "wide_resnet50_2"])
def test_other_residual_networks_are_no_resnets(name, tmp_path):
    path = saved(timm.create_model(name, num_classes=3).state_dict(), tmp_path)
    with pytest.raises(OptionError, match="no known kind"):
        load_original(path)
    assert load_original(path, arch=name).model_name == name


def test_halved_weights(resnet18, tmp_path):
    converted = load_original(saved({key: tensor.half() for key, tensor in resnet18.items()}, tmp_path))
    assert converted.state_dict["conv1.weight"].dtype == torch.float16
    assert converted.state_dict["bn1.num_batches_tracked"].dtype == torch.int64


@pytest.mark.slow
def test_the_head_is_known_again_after_a_round_trip(resnet18, tmp_path):
    settings = argparse.Namespace(representation="SVD_Taylor")
    first = load_original(saved({"state_dict": resnet18, "args": settings}, tmp_path))
    write(first, "original", tmp_path / "again")
    assert load_original(tmp_path / "again" / "checkpoint.pth").network.head == "svdtaylor"


def test_counters_of_batch_norm_may_be_missing(resnet18, tmp_path):
    """PyTorch 0.4 had none."""
    old = {key: tensor for key, tensor in resnet18.items() if not key.endswith("num_batches_tracked")}
    converted = load_original(saved(old, tmp_path))
    assert converted.state_dict["bn1.num_batches_tracked"] == 0
    assert sum(row.original is None for row in converted.keys) == 20


def test_not_a_number_is_noted(resnet18, tmp_path):
    broken = dict(resnet18)
    broken["classifier.bias"] = torch.full((50,), torch.nan)
    assert any("NaN" in note and "head.fc.bias" in note for note in load_original(saved(broken, tmp_path)).notes)


def changed(state, **changes):
    return {**state, **changes}


REFUSALS = {
    "an unknown key": (
        lambda s: changed(s, **{"features.module.11.weight": torch.zeros(3)}),
        "features.module.11.weight",
    ),
    "a missing key": (lambda s: {k: v for k, v in s.items() if "7.1.bn2.bias" not in k}, "layer4.1.bn2.bias"),
    "swapped shapes": (
        lambda s: changed(s, **{"features.module.0.weight": torch.zeros(3, 64, 7, 7)}),
        r"\[3, 64, 7, 7\], the model needs \[64, 3, 7, 7\]",
    ),
    "another width": (lambda s: changed(s, **{"classifier.weight": torch.zeros(50, 1000)}), "takes 1000 numbers"),
    "integers": (
        lambda s: changed(s, **{"features.module.0.weight": torch.zeros(64, 3, 7, 7, dtype=torch.int64)}),
        "torch.int64",
    ),
    "no tensor": (lambda s: changed(s, **{"classifier.bias": 3}), "holds no tensor, but int"),
    "twice the same key": (lambda s: changed(s, **{"features.0.weight": torch.zeros(64, 3, 7, 7)}), "twice"),
    "no weights": (lambda s: {}, "no weights"),
    "a list": (lambda s: [1, 2], "holds a list"),
    "another network": (lambda s: {"conv1.weight": torch.zeros(3, 3)}, "no known kind"),
    "a sparse tensor": (lambda s: changed(s, **{"classifier.bias": torch.zeros(50).to_sparse()}), "sparse"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case, resnet18, tmp_path):
    change, message = REFUSALS[case]
    with pytest.raises((OptionError, CheckpointError), match=message) as error:
        load_original(saved(change(resnet18), tmp_path))
    assert "\n" not in str(error.value)


def test_hints_that_do_not_fit(resnet18, tmp_path):
    path = saved(resnet18, tmp_path)
    with pytest.raises(OptionError, match="resnet18"):
        load_original(path, arch="resnet50")
    with pytest.raises(OptionError, match="262144"):
        load_original(path, head="bcnn")
    with pytest.raises(UnknownNameError, match="svdpade"):
        load_original(path, head="svdpad")


def test_the_so_vit_that_cannot_run(tmp_path):
    """Its classifier is as wide as nothing that its representation gives."""
    with pytest.raises(OptionError, match=r"head\.fc\.weight"):
        load_original(saved(small("sovit__So_vit_19"), tmp_path))
