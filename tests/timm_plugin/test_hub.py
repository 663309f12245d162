"""Folders that timm loads by ``local-dir:``."""

import json
import logging

import pytest
import timm
import torch
from timm.models import save_for_hf
from timm.utils import unwrap_model
from torch import nn

import covpool_plugins
from covpool_plugins.errors import OptionError

NARROW = {"channels": (4, 4, 4, 16), "stem_width": 8}


def small(head, *, backbone="resnet10t", **options):
    options = (NARROW if backbone == "resnet10t" else {}) | {"num_classes": 5} | options
    return covpool_plugins.create_model(backbone, head, **options)


def two_streams():
    options = {"num_classes": 5, "head_kwargs": {"reduce_channels": 8}} | NARROW
    return covpool_plugins.create_two_stream_model("resnet10t", second_kwargs={"last_stride": 1}, **options)


def of_another_size():
    model = small("isqrt", backbone="test_vit", reduce_channels=8, img_size=96)
    model.set_input_size(64)
    return model


def with_the_users_classifier():
    model = small("isqrt", reduce_channels=8)
    model.fc = nn.Linear(model.fc.in_features, 3)
    return model


def with_another_head():
    model = small("isqrt", reduce_channels=8)
    model.reset_classifier(3, "mpa")
    return model


CASES = {
    "registered": lambda: timm.create_model("resnet18_isqrt", num_classes=5, reduce_channels=16, last_stride=1),
    "options": lambda: small("isqrt", head_kwargs={"reduce_channels": 8, "iterations": 3, "vectorize": "full"}),
    "tokens": lambda: small("svdpade", backbone="test_vit", reduce_channels=8, fuse_class_token=True, img_size=64),
    "norm": lambda: small("seb", backbone="test_convnext", reduce_channels=8),
    "without the last norm": lambda: small("isqrt", backbone="test_convnext", reduce_channels=8, final_norm=False),
    "the backbone's False": lambda: small("isqrt", backbone="test_vit", reduce_channels=8, qkv_bias=False, img_size=64),
    "hashes": lambda: small("cbp", head_kwargs={"projection": 64, "seed": 3}),
    "frames": lambda: small("temporal", frames=2, head_kwargs={"reduce_channels": 8, "level": "frame"}),
    "hidden layers": lambda: small("svdpade", hidden_features=(24, 12), reduce_channels=8),
    "beside": lambda: small("isqrt", backbone="selecsls42", reduce_channels=8),
    "no classifier": lambda: small("isqrt", num_classes=0, reduce_channels=8),
    "another head": with_another_head,
    "the user's classifier": with_the_users_classifier,
    "another size": of_another_size,
    "compiled": lambda: torch.compile(small("isqrt", reduce_channels=8), backend="eager"),
    "two streams": two_streams,
    "So-ViT": lambda: timm.create_model("so_vit_7", num_classes=5, img_size=64, depth=1, global_pool="isqrt"),
    "whitened": lambda: timm.create_model("resnet18_cifar_zca", num_classes=5, norm_kwargs={"groups": 8}),
    "timm's own": lambda: timm.create_model("resnet10t", num_classes=5, **NARROW),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A function from a case to its model and the folder it is saved to, made once."""
    done = {}

    def save(case):
        if case not in done:
            model, folder = CASES[case]().eval(), tmp_path_factory.mktemp("hub") / "folder"
            covpool_plugins.save_for_hub(model, folder)
            done[case] = model, folder
        return done[case]

    return save


def photos(channels=3):
    return torch.randn(2, channels, 64, 64)


@pytest.mark.parametrize("case", [pytest.param(c, marks=[pytest.mark.slow] if c == "beside" else []) for c in CASES])
def test_the_same_logits(case, saved, caplog):
    model, folder = saved(case)
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]
    with caplog.at_level(logging.WARNING):
        again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert caplog.text == ""
    x = photos()
    assert torch.equal(again(x), model(x)) and list(again.state_dict()) == list(unwrap_model(model).state_dict())
    if case in ("another head", "two streams"):
        name = {"another head": "head", "two streams": "backbone_a"}[case]
        assert json.loads((folder / "config.json").read_text())["model_args"][name] in ("mpa", "resnet10t")


@pytest.mark.parametrize("case", ["registered", *(case for case in CASES if case not in ("registered", "beside"))])
def test_timms_own_way_to_save(case, saved, tmp_path):
    model, _ = saved(case)
    if case == "compiled":
        pytest.skip("timm cannot save the config of a compiled model, of its own neither")
    save_for_hf(model, tmp_path, safe_serialization=True)
    again, x = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval(), photos()
    assert torch.equal(again(x), model(x)) and type(again) is type(model)
    architecture = json.loads((tmp_path / "config.json").read_text())["architecture"]
    assert timm.is_model(architecture) and architecture == again.pretrained_cfg["architecture"]


@pytest.mark.parametrize("case", ["options", pytest.param("tokens", marks=pytest.mark.slow)])
def test_another_number_of_classes_or_channels(case, saved):
    model, folder = saved(case)
    name, x = f"local-dir:{folder}", photos()
    other = timm.create_model(name, pretrained=True, num_classes=3).eval()
    assert other(x).shape == (2, 3)
    assert torch.equal(
        other.forward_head(other.forward_features(x), True), model.forward_head(model.forward_features(x), True)
    )
    assert timm.create_model(name, pretrained=True, in_chans=1)(photos(1)).shape == (2, 5)
    assert len(timm.create_model(name, pretrained=True, features_only=True, out_indices=[-1])(x)) == 1


def test_options_at_loading_go_before_those_saved(saved):
    model, folder = saved("options")
    again = timm.create_model(f"local-dir:{folder}", pretrained=True, head_kwargs={"iterations": 7})
    assert again.head.global_pool.method.iterations == 7
    assert torch.equal(again.get_classifier().weight, model.get_classifier().weight)
    assert timm.create_model(f"local-dir:{folder}", reduce_channels=4).head.global_pool.channels == 4


def test_what_cannot_be_built_again_is_refused(tmp_path):
    model = small("isqrt", backbone="test_byobnet", reduce_channels=8)
    model.add_module("other", nn.Linear(2, 2))
    on_meta = covpool_plugins.create_model("resnet10t", device="meta")
    (tmp_path / "file").touch()
    for refused, name, message in [
        (
            model,
            "folder",
            "'second_order' with the arguments of this model builds another, see 'other.weight'; build it",
        ),
        (on_meta, "folder", "on the meta device"),
        (nn.Linear(2, 2), "folder", "takes models of timm and of this package, got Linear"),
        (model, "file", "file' is no folder"),
    ]:
        with pytest.raises(OptionError, match=message):
            covpool_plugins.save_for_hub(refused, tmp_path / name)
    assert not (tmp_path / "folder").exists()
