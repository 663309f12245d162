"""Our networks under timm's names."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.data import resolve_model_data_config
from timm.models import group_parameters
from timm.optim import create_optimizer_v2

import covpool_plugins.timm_plugin.own_backbones as own_backbones
from covpool_plugins.architectures import AlexNet, CifarResNet

CLASSES = {"alexnet": AlexNet, "resnet18_cifar": CifarResNet, "resnet50_cifar": CifarResNet}


@pytest.fixture(params=["alexnet", "resnet18_cifar", pytest.param("resnet50_cifar", marks=pytest.mark.slow)])
def name(request):
    return request.param


def images(name, channels=3):
    size = 64 if name == "alexnet" else 16
    return torch.randn(2, channels, size, size)


def test_registered(name):
    assert timm.is_model(name) and name in timm.list_models(module="own_backbones")
    assert name not in timm.list_models(pretrained=True) and name in own_backbones.__all__
    model = timm.create_model(name).eval()
    assert type(model) is CLASSES[name] and model.num_classes == model.default_cfg["num_classes"]


def test_description_fits_the_network(name):
    """As timm's own tests ask."""
    model = timm.create_model(name).eval()
    cfg = model.default_cfg
    x = torch.randn(1, *cfg["input_size"])
    assert tuple(model.forward_features(x).shape[2:]) == cfg["pool_size"]
    assert {f"{cfg[key]}.weight" for key in ("classifier", "first_conv")} <= set(model.state_dict())
    data = resolve_model_data_config(model)
    assert data["input_size"] == cfg["input_size"] and data["mean"] == cfg["mean"] and data["std"] == cfg["std"]
    assert model.get_submodule(cfg["first_conv"]).in_channels == 3


def test_arguments(name):
    model = timm.create_model(name, num_classes=7, in_chans=1, drop_rate=0.2, dtype=torch.float64)
    assert model(images(name, 1).double()).shape == (2, 7) and model.drop_rate == 0.2
    assert timm.create_model(name, num_classes=0, global_pool="")(images(name)).ndim == 4
    assert {p.device.type for p in timm.create_model(name, device="meta").parameters()} == {"meta"}
    overlay = timm.create_model(name, pretrained_cfg_overlay=dict(crop_pct=0.5, num_classes=3))
    assert overlay.pretrained_cfg["crop_pct"] == 0.5 and overlay.num_classes == 3


@pytest.mark.parametrize("feature_cls", [None, "hook", "fx"])
def test_features_only(name, feature_cls):
    chosen = {} if feature_cls is None else {"feature_cls": feature_cls}
    torch.manual_seed(1)
    model = timm.create_model(name, features_only=True, out_indices=(1, 3), **chosen).eval()
    torch.manual_seed(1)
    full, x = timm.create_model(name).eval(), images(name)
    maps = model(x)
    assert [m.shape[1] for m in maps] == model.feature_info.channels()
    for map, reduction in zip(maps, model.feature_info.reduction(), strict=True):
        assert abs(map.shape[-1] - x.shape[-1] / reduction) <= 1
    for map, expected in zip(maps, full.forward_intermediates(x, [1, 3], intermediates_only=True), strict=True):
        torch.testing.assert_close(map, expected)
    if feature_cls is None:
        assert len(timm.create_model(name, features_only=True)(x)) == 5


def test_weights_of_a_file_with_other_classes_and_channels(name, tmp_path):
    torch.manual_seed(1)
    source = timm.create_model(name)
    save_file(source.state_dict(), str(tmp_path / "model.safetensors"))
    overlay = dict(file=str(tmp_path / "model.safetensors"))
    same = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)
    assert all(torch.equal(a, b) for a, b in zip(same.parameters(), source.parameters(), strict=True))
    other = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=3, in_chans=1)
    for mine, theirs in zip(other.layer2.parameters(), source.layer2.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    first = source.get_submodule(source.default_cfg["first_conv"]).weight
    adapted = other.get_submodule(source.default_cfg["first_conv"]).weight
    torch.testing.assert_close(adapted, first.sum(1, keepdim=True))
    assert other.fc.out_features == 3


def test_groups_of_parameters(name):
    model = timm.create_model(name)
    groups = group_parameters(model, model.group_matcher())
    assert sorted(p for group in groups.values() for p in group) == sorted(n for n, _ in model.named_parameters())
    first = {p.split(".")[0] for p in groups[0]}
    assert first == ({"layer1"} if name == "alexnet" else {"conv1", "bn1"})
    assert len(groups) == {"alexnet": 6, "resnet18_cifar": 10, "resnet50_cifar": 18}[name]
    optimizer = create_optimizer_v2(model, opt="sgd", lr=1.0, layer_decay=0.5)
    scales = [
        group["lr_scale"] for group in optimizer.param_groups if any(p is model.fc.weight for p in group["params"])
    ]
    assert scales == [1.0] and min(group["lr_scale"] for group in optimizer.param_groups) < 0.1
