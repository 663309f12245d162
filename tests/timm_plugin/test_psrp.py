"""MP+ of moment probing: parity with the authors' code, a start at the plain network, and what timm asks of a model."""

import copy
import pickle

import pytest
import timm
import torch
from support.golden import load, names, sample_errors
from timm.models import group_parameters
from timm.models.vision_transformer import Block, LayerNorm
from torch import nn

import covpool_plugins
from covpool_plugins.errors import OptionError
from covpool_plugins.timm_plugin.psrp import PSRP, add_psrp

# Backbone and its options: a ViT, one with an attention mask's signature, channels last and first.
BACKBONES = {
    "test_vit": dict(img_size=64),
    "vit_tiny_patch16_224": dict(img_size=64, depth=2, drop_path_rate=0.1),
    "swin_tiny_patch4_window7_224": dict(img_size=64, window_size=2, embed_dim=12, depths=(2, 2), num_heads=(2, 4)),
    "test_convnext": dict(ls_init_value=1.0),
    "convnext_atto": dict(
        depths=(1, 1, 1, 1), dims=(8, 8, 8, 16), ls_init_value=1.0
    ),  # perceptrons of 1x1 convolutions
}
pytestmark = pytest.mark.fast_for("test_vit", "test_convnext", "swin_tiny_patch4_window7_224", "convnext_atto")


@pytest.mark.parametrize("backbone", ["test_vit", "swin_tiny_patch4_window7_224", "test_convnext"])
def test_without_the_final_norm(backbone):
    """The head gets what the norm would get, and the hub's description keeps the option."""
    model, plain = build(backbone, final_norm=False).eval(), build(backbone).eval()
    plain.load_state_dict(model.state_dict(), strict=False)
    norm = (
        plain.head.norm
        if isinstance(plain.norm if hasattr(plain, "norm") else nn.Identity(), nn.Identity)
        else plain.norm
    )
    assert len(list(norm.parameters())) == 2
    with torch.no_grad():
        given, expected = (m.head.norm(m.forward_features(images())) for m in (model, plain))
        if given.ndim == 4 and backbone == "test_convnext":
            given, expected = given.movedim(1, -1), expected.movedim(1, -1)
        normed = nn.functional.layer_norm(given, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    torch.testing.assert_close(normed, expected, rtol=1e-4, atol=1e-5)
    assert model.second_order_arguments["final_norm"] is False
    with pytest.raises(OptionError, match="'resnet10t' has not"):
        covpool_plugins.create_model("resnet10t", final_norm=False)


def build(backbone, **options):
    torch.manual_seed(0)
    settings = dict(num_classes=5, reduce_channels=16, layer_groups="new") | BACKBONES[backbone] | options
    return covpool_plugins.create_model(backbone, "moment", **settings)


def images(size=64):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def moved(model):
    """The model after training: zeros are the start."""
    for module in model.modules():
        if isinstance(module, PSRP):
            nn.init.normal_(module.up_weight.weight, std=0.1)
            nn.init.normal_(module.up_bias.weight, std=0.1)
    return model


def of_golden(module, golden):
    given = {key.removeprefix("param."): value for key, value in golden.arrays.items() if key.startswith("param.")}
    module.load_state_dict(given)
    return module


def check(golden, module, out, x):
    tolerance = 1e-10 if golden.name.endswith("f64") else 1e-5
    assert max(sample_errors(out.detach().flatten(1), golden.arrays["output"].flatten(1))) < tolerance
    out.backward(golden.arrays["grad_output"])
    assert max(sample_errors(x.grad, golden.arrays["grad_input"])) < tolerance
    for name, parameter in module.named_parameters():
        assert max(sample_errors(parameter.grad[None], golden.arrays[f"grad_param.{name}"][None])) < tolerance


@pytest.mark.parametrize("name", names("mp__PSRP"))
def test_the_two_parameters(name):
    golden = load(name)
    module = of_golden(PSRP(16, 4, dtype=torch.float64), golden)
    x = golden.arrays["input"].clone().requires_grad_()
    bias = module(x, torch.zeros_like(x))
    check(golden, module, torch.stack([module(x, torch.ones_like(x)) - bias - 1, bias], dim=1), x)


@pytest.mark.parametrize("name", names("mp__Block_psrp"))
def test_a_block_of_vit(name):
    golden = load(name)
    block = Block(16, 2, qkv_bias=True, norm_layer=LayerNorm, dtype=torch.float64)
    block.norm1.eps = block.norm2.eps = 1e-5
    add_psrp(block, "block", hidden=4)
    of_golden(block, golden)
    x = golden.arrays["input"].clone().requires_grad_()
    check(golden, block, block(x), x)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_it_begins_as_the_plain_network_and_learns(backbone):
    plain, model, x = build(backbone).eval(), build(backbone, psrp=True).eval(), images()
    missing = model.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert missing and all(key.endswith((".down.weight", ".up_weight.weight", ".up_bias.weight")) for key in missing)
    assert all(".psrp." in key for key in missing)
    torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(moved(model)(x), plain(x), rtol=1e-3, atol=1e-4)
    model.train()(x).square().sum().backward()
    parts = [name for name, p in model.named_parameters() if ".psrp." in name and p.grad.abs().max() > 0]
    assert len(parts) == len(missing)


@pytest.mark.parametrize("backbone", ["test_vit", "swin_tiny_patch4_window7_224", "convnext_atto"])
def test_what_is_new(backbone):
    model = build(backbone, psrp=True)
    names_of = {id(p): name for name, p in model.named_parameters()}
    new = {names_of[id(p)] for p in model.new_parameters()}
    assert new == {
        name for name in names_of.values() if ".psrp." in name or name.startswith(("head.global", "head.fc"))
    }
    groups = group_parameters(model, model.group_matcher())
    assert set(groups[1]) == new and set(groups[0]) == set(names_of.values()) - new


@pytest.mark.parametrize("backbone", BACKBONES)
def test_copies_and_folders(backbone, tmp_path):
    model, x = moved(build(backbone, psrp=True)).eval(), images()
    expected = model(x)
    assert torch.equal(copy.deepcopy(model)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), expected)
    covpool_plugins.save_for_hub(model, tmp_path)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.equal(again(x), expected)
    other = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=3).eval()
    assert other(x).shape == (2, 3)
    part = next(name for name in model.state_dict() if name.endswith("up_bias.weight"))
    assert torch.equal(other.state_dict()[part], model.state_dict()[part])


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["test_vit", "swin_tiny_patch4_window7_224", "test_convnext"])
def test_compile_export_and_checkpointing(backbone):
    model, x = moved(build(backbone, psrp=True)).eval(), images()
    expected = model(x)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(x), expected)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected)
    model.set_grad_checkpointing()
    torch.testing.assert_close(model.train().requires_grad_()(x).shape, expected.shape)


def test_by_its_names(tmp_path):
    registered = timm.create_model("resnet18_moment", num_classes=0)
    assert not any(".psrp." in key for key in registered.state_dict())
    options = dict(num_classes=5, reduce_channels=16)
    model = timm.create_model("second_order", backbone="test_vit", head="moment", psrp=True, **options)
    assert model.pretrained_cfg["architecture"] == "second_order" and model._model_args["psrp"] is True
    # Weights of a whole model and of a plain backbone.
    torch.save(moved(model).state_dict(), tmp_path / "whole.pth")
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "plain.pth")
    again = covpool_plugins.create_model("test_vit", "moment", psrp=True, pretrained=tmp_path / "whole.pth", **options)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in again.state_dict().items())
    fresh = covpool_plugins.create_model("test_vit", "moment", psrp=True, pretrained=tmp_path / "plain.pth", **options)
    assert not fresh.blocks[0].psrp.up_bias.weight.any()
    with pytest.raises(OptionError, match=r"whole.pth are those of a model with psrp=True, got psrp=False"):
        covpool_plugins.create_model("test_vit", "moment", pretrained=tmp_path / "whole.pth", **options)
    with pytest.raises(OptionError, match="weights of a backbone without this head"):
        fresh.load_state_dict(timm.create_model("test_vit", num_classes=0).state_dict())


def test_refusals():
    with pytest.raises(OptionError, match="psrp=True needs blocks of timm's ViT, Swin or ConvNeXt, which 'resnet10t'"):
        covpool_plugins.create_model("resnet10t", "moment", psrp=True)
    with pytest.raises(OptionError, match="psrp must be True or False, got 16"):
        covpool_plugins.create_model("test_vit", "moment", psrp=16)


def test_device_meta():
    model = build("test_vit", psrp=True, device="meta")
    assert all(parameter.is_meta for parameter in model.parameters())
