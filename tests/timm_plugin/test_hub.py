"""Folders that timm loads by ``local-dir:``."""

import json
import logging

import pytest
import timm
import torch
from torch import nn

import covpool_plugins
from covpool_plugins.errors import OptionError

NARROW = {"channels": (4, 4, 4, 16), "stem_width": 8}


def small(head, *, backbone="resnet10t", **options):
    options = (NARROW if backbone == "resnet10t" else {}) | {"num_classes": 5} | options
    return covpool_plugins.create_model(backbone, head, **options)


CASES = {
    "registered": lambda: timm.create_model("resnet18_isqrt", num_classes=5, reduce_channels=16, last_stride=1),
    "options": lambda: small("isqrt", head_kwargs={"reduce_channels": 8, "iterations": 3, "vectorize": "full"}),
    "tokens": lambda: small("svdpade", backbone="test_vit", reduce_channels=8, fuse_class_token=True, img_size=64),
    "norm": lambda: small("seb", backbone="test_convnext", reduce_channels=8),
    "hashes": lambda: small("cbp", head_kwargs={"projection": 64, "seed": 3}),
    "frames": lambda: small("temporal", frames=2, head_kwargs={"reduce_channels": 8, "level": "frame"}),
    "hidden layers": lambda: small("svdpade", hidden_features=(24, 12), reduce_channels=8),
    "beside": lambda: small("isqrt", backbone="selecsls42", reduce_channels=8),
}
each_case = pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] if case == "beside" else []) for case in CASES]
)


def photos(channels=3):
    return torch.randn(2, channels, 64, 64)


@each_case
def test_the_same_logits(case, tmp_path, caplog):
    model = CASES[case]().eval()
    covpool_plugins.save_for_hub(model, tmp_path / "folder")
    assert sorted(p.name for p in (tmp_path / "folder").iterdir()) == ["config.json", "model.safetensors"]
    with caplog.at_level(logging.WARNING):
        again = timm.create_model(f"local-dir:{tmp_path / 'folder'}", pretrained=True).eval()
    assert caplog.text == ""
    x = photos()
    assert torch.equal(again(x), model(x)) and list(again.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("case", ["options", pytest.param("tokens", marks=pytest.mark.slow)])
def test_another_number_of_classes_or_channels(case, tmp_path):
    model = CASES[case]().eval()
    covpool_plugins.save_for_hub(model, tmp_path)
    other = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=3).eval()
    x = photos()
    assert other(x).shape == (2, 3)
    assert torch.equal(
        other.forward_head(other.forward_features(x), True), model.forward_head(model.forward_features(x), True)
    )
    assert timm.create_model(f"local-dir:{tmp_path}", pretrained=True, in_chans=1)(photos(1)).shape == (2, 5)
    maps = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, features_only=True, out_indices=[-1])(x)
    assert len(maps) == 1


def test_a_head_that_was_replaced_is_saved_as_it_is(tmp_path):
    model = CASES["options"]()
    model.reset_classifier(3, "mpa")
    covpool_plugins.save_for_hub(model.eval(), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_args"]["head"] == "mpa"
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = photos()
    assert torch.equal(again(x), model(x))


def test_a_model_without_classifier(tmp_path):
    model = small("isqrt", num_classes=0, reduce_channels=8).eval()
    covpool_plugins.save_for_hub(model, tmp_path)
    x = photos()
    assert torch.equal(timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()(x), model(x))


def test_options_at_loading_go_before_those_saved(tmp_path):
    model = CASES["options"]()
    covpool_plugins.save_for_hub(model, tmp_path)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, head_kwargs={"iterations": 7})
    assert again.head.global_pool.method.iterations == 7
    assert torch.equal(again.get_classifier().weight, model.get_classifier().weight)
    other = timm.create_model(f"local-dir:{tmp_path}", reduce_channels=4)
    assert other.head.global_pool.channels == 4


def _with_another_layer(model):
    model.add_module("other", nn.Linear(2, 2))
    return model


def test_what_cannot_be_built_again_is_refused(tmp_path):
    model = small("isqrt", backbone="test_byobnet", reduce_channels=8)
    with pytest.raises(OptionError, match="'second_order' builds another model than this one"):
        covpool_plugins.save_for_hub(_with_another_layer(model), tmp_path / "folder")
    with pytest.raises(OptionError, match="on the meta device"):
        covpool_plugins.save_for_hub(covpool_plugins.create_model("resnet10t", device="meta"), tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match="file' is no folder"):
        covpool_plugins.save_for_hub(CASES["options"](), tmp_path / "file")


def test_other_models_are_refused(tmp_path):
    with pytest.raises(OptionError, match="takes models of create_model and of names <backbone>_<head>, got Linear"):
        covpool_plugins.save_for_hub(nn.Linear(2, 2), tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
