"""Our networks under timm's names."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.data import resolve_model_data_config
from timm.models import group_parameters
from timm.optim import create_optimizer_v2

from covpool_plugins.timm_plugin import own_backbones, token_transformers
from covpool_plugins.timm_plugin.own_backbones import AlexNet, CifarResNet
from covpool_plugins.timm_plugin.token_transformers import TokenTransformer

KINDS = {"alexnet": AlexNet, "resnet18": CifarResNet, "resnet50": CifarResNet, "so": TokenTransformer}
# name -> height of the images, options that make it smaller
SMALL = {
    "alexnet": (64, {}),
    "resnet18_cifar": (16, {}),
    "resnet50_cifar": (16, {}),
    "so_vit_7": (64, {"img_size": 64, "depth": 4}),
}
each_network = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "resnet50_cifar" else name for name in SMALL]
)


def create(name, **options):
    torch.manual_seed(1)
    return timm.create_model(name, **{**SMALL[name][1], **options})


def images(name, channels=3):
    return torch.randn(2, channels, SMALL[name][0], SMALL[name][0])


@pytest.mark.parametrize("name", [*own_backbones.__all__, *token_transformers.MODELS])
def test_registered_with_a_description_that_fits(name):
    assert name in timm.list_models() and name not in timm.list_models(pretrained=True)
    model = timm.create_model(name, device="meta").eval()
    cfg = model.default_cfg
    assert isinstance(model, KINDS.get(name.split("_")[0], TokenTransformer)) and {
        p.device.type for p in model.parameters()
    } == {"meta"}
    x = torch.empty(1, *cfg["input_size"], device="meta")
    assert model(x).shape == (1, cfg["num_classes"]) and model.num_classes == cfg["num_classes"]
    assert cfg["pool_size"] in (None, tuple(model.forward_features(x).shape[2:]))
    assert cfg["classifier"] == model.get_classifier(name_only=True)
    classifiers = [cfg["classifier"]] if isinstance(cfg["classifier"], str) else cfg["classifier"]
    assert {f"{key}.weight" for key in (*classifiers, cfg["first_conv"])} <= set(model.state_dict())
    assert model.get_submodule(cfg["first_conv"]).in_channels == 3
    data = resolve_model_data_config(model)
    assert all(data[key] == cfg[key] for key in ("input_size", "mean", "std"))


@each_network
def test_arguments(name):
    model = create(name, num_classes=7, in_chans=1, drop_rate=0.2, dtype=torch.float64)
    assert model(images(name, 1).double()).shape == (2, 7) and model.drop_rate == 0.2
    model, x = create(name, num_classes=0, global_pool="").eval(), images(name)
    assert torch.equal(model(x), model.forward_features(x))
    overlay = create(name, pretrained_cfg_overlay=dict(crop_pct=0.5, num_classes=3))
    assert overlay.pretrained_cfg["crop_pct"] == 0.5 and overlay.num_classes == 3


@each_network
def test_features_only(name):
    full, x = create(name).eval(), images(name)
    expected = full.forward_intermediates(x, intermediates_only=True)
    indices = tuple(range(len(expected)))
    # timm makes maps of tokens by its getter alone.
    for feature_cls in ("getter",) if name.startswith("so_vit") else ("getter", "hook", "fx"):
        model = create(name, features_only=True, out_indices=indices, feature_cls=feature_cls).eval()
        assert model.feature_info.channels() == [m.shape[1] for m in expected]
        for map, like, reduction in zip(model(x), expected, model.feature_info.reduction(), strict=True):
            torch.testing.assert_close(map, like)
            assert abs(map.shape[-1] - x.shape[-1] / reduction) <= 1
    assert len(create(name, features_only=True)(x)) == (3 if name.startswith("so_vit") else 5)


@each_network
def test_weights_of_a_file_with_other_classes_channels_and_size(name, tmp_path):
    source = create(name, **({"img_size": 96} if name.startswith("so_vit") else {}))
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    pretrained = dict(pretrained=True, pretrained_cfg_overlay=dict(file=str(tmp_path / "model.safetensors")))
    other = create(name, num_classes=3, in_chans=1, **pretrained)
    first = f"{source.default_cfg['first_conv']}.weight"
    expected, new = source.state_dict(), other.state_dict()
    torch.testing.assert_close(new[first], expected.pop(first).sum(1, keepdim=True))
    rest = [key for key in expected if key != "pos_embed" and "fc." not in key.replace("mlp.fc", "")]
    assert all(torch.equal(new[key], expected[key]) for key in rest)
    assert other(images(name, 1)).shape == (2, 3)


@each_network
def test_groups_of_parameters(name):
    model = create(name)
    groups = group_parameters(model, model.group_matcher())
    assert sorted(p for group in groups.values() for p in group) == sorted(n for n, _ in model.named_parameters())
    first = {"so_vit_7": {"patch_embed", "cls_token"}}.get(name, {"conv1", "bn1"})
    assert {p.split(".")[0] for p in groups[0]} == first
    assert len(groups) == {"alexnet": 6, "resnet18_cifar": 10, "resnet50_cifar": 18, "so_vit_7": 6}[name]
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1.0, weight_decay=0.05, layer_decay=0.5)
    group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    scales = {key: group_of[id(p)]["lr_scale"] for key, p in model.named_parameters()}
    classifiers = model.get_classifier(name_only=True)
    classifiers = [classifiers] if isinstance(classifiers, str) else classifiers
    assert {scales[f"{key}.weight"] for key in classifiers} == {1.0} and min(scales.values()) < 0.1
    if name.startswith("so_vit"):
        assert {scales[key] for key in scales if key.startswith(("patch_embed.", "cls_token"))} == {0.5**5}
        assert scales["norm.weight"] == scales["blocks.3.attn.qkv.weight"] == 0.5
        assert group_of[id(model.cls_token)]["weight_decay"] == 0


def test_alexnet_without_its_last_pooling():
    x = torch.zeros(1, 3, 224, 224, device="meta")
    maps = [timm.create_model("alexnet_isqrt", last_stride=s, device="meta").forward_features(x) for s in (None, 1)]
    assert [m.shape for m in maps] == [(1, 256, 13, 13), (1, 256, 27, 27)]


@pytest.mark.parametrize("option", ["output_stride", "act_layer", "drop_path_rate"])
def test_alexnet_has_no_other_options_of_resnets(option):
    with pytest.raises(TypeError, match=f"'alexnet' has no option '{option}'"):
        timm.create_model("alexnet_isqrt", **{option: 8})
