"""So-ViT under timm's names."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import get_notrace_functions, get_notrace_modules
from timm.optim import create_optimizer_v2
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import covpool_plugins  # noqa: F401  registers the models
from covpool_plugins.architectures import SO_VITS, SoViT

SMALL = dict(img_size=64, depth=2)


def images(channels=3):
    return torch.randn(2, channels, 64, 64)


@pytest.mark.parametrize("arch", SO_VITS)
def test_registered(arch):
    model = timm.create_model(f"so_vit_{arch}", device="meta")
    assert type(model) is SoViT and len(model.blocks) == int(arch)
    assert f"so_vit_{arch}" not in timm.list_models(pretrained=True)
    cfg = model.default_cfg
    assert {f"{name}.weight" for name in (*cfg["classifier"], cfg["first_conv"])} <= set(model.state_dict())
    assert cfg["classifier"] == model.get_classifier(name_only=True)
    assert model(torch.empty(1, *cfg["input_size"], device="meta")).shape == (1, 1000)


def test_arguments():
    model = timm.create_model(
        "so_vit_14", num_classes=7, in_chans=1, global_pool="crosscov", dtype=torch.float64, **SMALL
    )
    assert model(images(1).double()).shape == (2, 7) and model.head.pool.both_channels == (64, 48)
    assert timm.create_model("so_vit_7", num_classes=0, global_pool="", **SMALL)(images()).shape == (2, 17, 256)


def test_features_only():
    x = images()
    torch.manual_seed(1)
    features = timm.create_model("so_vit_7", features_only=True, out_indices=(-3, 6), img_size=64).eval()
    torch.manual_seed(1)
    full = timm.create_model("so_vit_7", img_size=64).eval()
    for map, expected in zip(features(x), full.forward_intermediates(x, [4, 6], intermediates_only=True), strict=True):
        assert torch.equal(map, expected)
    assert features.feature_info.reduction() == [16, 16]
    assert len(timm.create_model("so_vit_7", features_only=True, img_size=64)(x)) == 3


@pytest.mark.parametrize("head", ["svdpade", "mpa"])
def test_under_another_head(head):
    x = images()
    model = timm.create_model(f"so_vit_7_{head}", fuse_class_token=True, num_classes=3, **SMALL).eval()
    tokens = model.forward_features(x)
    assert model(x).shape == (2, 3) and tokens.shape == (2, 17, 256)
    pool, fc = model.head.global_pool, model.head.fc
    expected = torch.cat([pool(tokens), tokens[:, 0]], 1) @ fc.weight.mT + fc.bias
    torch.testing.assert_close(model(x), expected)
    assert pool.num_prefix_tokens == 1 and not any(key.startswith("head.cls_fc") for key in model.state_dict())
    model.train()(x).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_fx():
    model, x = timm.create_model("so_vit_7", **SMALL).eval(), images()
    options = {"leaf_modules": list(get_notrace_modules()), "autowrap_functions": list(get_notrace_functions())}
    _, nodes = get_graph_node_names(model, tracer_kwargs=options)
    graph = create_feature_extractor(model, return_nodes=[nodes[-1]], tracer_kwargs=options)
    assert torch.equal(graph(x)[nodes[-1]], model(x))


def test_weights_of_a_file_with_other_classes_channels_and_size(tmp_path):
    source = timm.create_model("so_vit_7", depth=2)
    save_file(source.state_dict(), str(tmp_path / "model.safetensors"))
    overlay = dict(file=str(tmp_path / "model.safetensors"))
    pretrained = dict(pretrained=True, pretrained_cfg_overlay=overlay)
    same = timm.create_model("so_vit_7", depth=2, **pretrained)
    assert all(torch.equal(a, b) for a, b in zip(same.parameters(), source.parameters(), strict=True))
    other = timm.create_model("so_vit_7", num_classes=3, in_chans=1, **SMALL, **pretrained)
    assert other.pos_embed.shape == (1, 17, 256) and other(images(1)).shape == (2, 3)
    assert torch.equal(other.cls_token, source.cls_token)
    assert torch.equal(other.head.pool.reduction.conv.weight, source.head.pool.reduction.conv.weight)
    torch.testing.assert_close(other.patch_embed.stem.weight, source.patch_embed.stem.weight.sum(1, keepdim=True))


def test_groups_of_parameters():
    model = timm.create_model("so_vit_7", **SMALL)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1.0, weight_decay=0.05, layer_decay=0.5)
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    scale = {name: groups[id(p)]["lr_scale"] for name, p in model.named_parameters()}
    assert {scale[f"{name}.weight"] for name in model.get_classifier(name_only=True)} == {1.0}
    stem = {scale[name] for name in scale if name.startswith(("patch_embed.", "cls_token"))}
    assert stem == {0.5**3} and scale["norm.weight"] == scale["blocks.1.attn.qkv.weight"] == 0.5
    assert groups[id(model.cls_token)]["weight_decay"] == 0
