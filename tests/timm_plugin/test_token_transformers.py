"""So-ViT, SoT and the transformers of DropCov: parity with the authors' code, and what no other network has."""

import pickle

import pytest
import timm
import torch
from support.golden_models import assert_equal, golden_input, golden_weight, load_models
from torch import nn

import covpool_plugins
from covpool_plugins.errors import OptionError, ShapeError
from covpool_plugins.timm_plugin.token_transformers import TokenTransformer

GOLDEN = load_models("token_transformers")
SO_VITS = {model["route"]["arch"].lower(): model for model in load_models("so_vit").values()}
RENAMED = {
    "patch_embed.backbone.stem.": "visual_tokens.tokens.stem.0.",
    "patch_embed.backbone.stages.": "visual_tokens.tokens.stage.",
    "patch_embed.proj.": "visual_tokens.tokens.transition.",
    "head.global_pool.normalization.": "classifier.representation.norm.",
    "head.global_pool.reduction.conv.": "classifier.representation.conv_dr_block.0.",
    "head.global_pool.reduction.norm.": "classifier.representation.conv_dr_block.1.",
}
TINY = dict(num_classes=5, img_size=(48, 64), embed_dim=24, depth=3, num_heads=3)
NAMES = ["so_vit_7", "sot_tiny", "dropcov_deit_tiny"]


def small(name="sot_tiny", **options):
    torch.manual_seed(0)
    return timm.create_model(name, **{**TINY, "reduce_channels": 12, **options})


def images(channels=3, size=(48, 64)):
    return torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(1))


def renamed(key):
    return next((old + key.removeprefix(ours) for ours, old in RENAMED.items() if key.startswith(ours)), key)


def original_classifiers(model):
    """Of the vector and of the class token, as the one of ours."""
    layers = {"visual_fc": model.head.global_pool.out_features, "cls_fc": model.embed_dim}
    shapes = {"weight": lambda width: (model.num_classes, width), "bias": lambda _: (model.num_classes,)}
    weight, bias = (
        [golden_weight(f"classifier.{name}.{part}", shape(width)) for name, width in layers.items()]
        for part, shape in shapes.items()
    )
    return {"head.fc.weight": torch.cat(weight, dim=1), "head.fc.bias": sum(bias)}


def original_weights(model, parts):
    """Those of the original network under our keys; ``parts`` of its projection, of which DropCov leaves one unused."""
    given = {}
    for key, tensor in model.state_dict().items():
        if not key.startswith("head.") or "normalization" in key:
            given[key] = golden_weight(renamed(key), tensor.shape[:1] if "normalization" in key else tensor.shape)
            given[key] = given[key].view_as(tensor)
    channels, dim = model.head.global_pool.both_channels[0], model.embed_dim
    projection = golden_weight("classifier.representation.wr.weight", (parts * channels, dim))
    for index in range(2):
        part = projection[index * channels : (index + 1) * channels]
        given[f"head.global_pool.reductions.{index}.weight"] = part[..., None, None]
    return given | original_classifiers(model), (parts - 2) * channels * dim + model.num_classes


@pytest.mark.fast_for("dropcov_deit_tiny")
@pytest.mark.parametrize("name", GOLDEN)
def test_the_original_network(name):
    golden = GOLDEN[name]
    model = timm.create_model(name, dtype=torch.float64).eval()
    weights, left_out = original_weights(model, 2 if name.startswith("sot") else 3)
    model.load_state_dict(weights)
    assert sum(p.numel() for p in model.parameters()) + left_out == golden["parameters"]
    tolerance = 1e-12 if golden["precision"] == "float64" else 2e-6
    with torch.no_grad():
        tokens = model.forward_features(golden_input(golden["input"]))
        assert_equal(model.head.global_pool(tokens), golden["representation"], tolerance)
        assert_equal(model.forward_head(tokens), golden["logits"], tolerance)


@pytest.mark.parametrize("name", [name for name in SO_VITS if name != "so_vit_19"])
def test_the_original_so_vit(name):
    golden = SO_VITS[name]
    model = timm.create_model(name, head_kwargs={"compute": "float64"}, dtype=torch.float64).eval()
    shapes = {renamed(key): list(tensor.shape) for key, tensor in model.state_dict().items() if "head.fc" not in key}
    of_classifiers = ("classifier.visual_fc", "classifier.cls_fc")
    assert shapes == {key: shape for key, shape in golden["state_dict"].items() if not key.startswith(of_classifiers)}
    assert_equal(model.pos_embed, golden["pos_embed_as_constructed"], 1e-12)
    weights = {key: golden_weight(renamed(key), shape.shape) for key, shape in model.state_dict().items()}
    model.load_state_dict(weights | original_classifiers(model))
    with torch.no_grad():
        tokens = model.forward_features(golden_input(golden["input"]))
        assert_equal(model.head.global_pool(tokens), golden["representation"], 1e-12)
        assert_equal(model.forward_head(tokens), golden["logits"], 1e-12)


def test_the_widest_so_vit_as_it_is_described():
    """The original cannot run: its classifier is half as wide as its features."""
    model, golden = timm.create_model("so_vit_19", device="meta"), SO_VITS["so_vit_19"]
    for key, tensor in model.state_dict().items():
        assert "head.fc" in key or list(tensor.shape) == golden["state_dict"][renamed(key)]


def test_keys_of_the_first_so_vit(tmp_path):
    """Version 0.1 had two classifiers and names of its own."""
    model, x = small("so_vit_7").eval(), images()
    former = {}
    for key, value in model.state_dict().items():
        former[key.replace("patch_embed.backbone.", "patch_embed.").replace("head.global_pool.", "head.pool.")] = value
    weight, bias = former["head.fc.weight"], former["head.fc.bias"]
    former |= {"head.fc.weight": weight[:, :-24], "head.cls_fc.weight": weight[:, -24:]}
    former |= {"head.fc.bias": bias / 2, "head.cls_fc.bias": bias / 2}
    torch.save(former, tmp_path / "former.pth")
    again = small("so_vit_7", in_chans=3, pretrained=True, pretrained_cfg_overlay=dict(file=tmp_path / "former.pth"))
    torch.testing.assert_close(again.eval()(x), model(x))
    again = small("so_vit_7").eval()
    again.load_state_dict({f"module.{key}": value for key, value in former.items()})
    torch.testing.assert_close(again(x), model(x))
    plain = timm.create_model("so_vit_7", **TINY, global_pool="")
    plain.load_state_dict({key: value for key, value in former.items() if not key.startswith("head.")}, strict=False)
    torch.testing.assert_close(plain.eval().forward_features(x), model.forward_features(x))


@pytest.mark.parametrize(
    "pool, options, width",
    [
        ("mpa", {}, 21),
        ("mpa", {"reduce_channels": None}, 24 * 25 // 2),
        ("isqrt", {"vectorize": "full", "reduction": "linear-ln"}, 36),
        ("svpn", {}, 21),
        ("crosscov", {}, 24),
        ("gap", {}, 24),
    ],
)
def test_another_pool_and_its_options(pool, options, width):
    model = small("so_vit_7", global_pool=pool, head_kwargs=options, reduce_channels=(6, 4)).eval()
    vector = model.forward_head(model.forward_features(images()), pre_logits=True)
    assert vector.shape == (2, width + 24) and model.head_hidden_size == width + 24


@pytest.mark.parametrize("name", NAMES)
def test_they_learn_and_drop_out_in_training_only(name):
    model, x = small(name, drop_path_rate=0.5), images()
    model(x).square().mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()] == []
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x)) and model(x).shape == (2, 5)


def test_the_head():
    model, x = small().eval(), images()
    tokens = model.forward_features(x)
    assert tokens.shape == (2, 13, 24)
    vector = model.forward_head(tokens, pre_logits=True)
    assert torch.equal(vector[:, -24:], tokens[:, 0]) and model.head_hidden_size == vector.shape[1] == 24 + 24
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    model.reset_classifier(2, "isqrt")
    assert model(x).shape == (2, 2)
    model.reset_classifier(0, "")
    assert torch.equal(model(x), tokens)


def test_as_a_backbone():
    plain = timm.create_model("sot_tiny", **TINY | dict(num_classes=0), global_pool="").eval()
    assert type(plain) is TokenTransformer and plain(images()).shape == (2, 13, 24)
    other = covpool_plugins.create_model("sot_tiny", "isqrt", reduce_channels=8, **TINY)
    assert set(plain.state_dict()) == {key for key in other.state_dict() if not key.startswith("head.")}
    assert other(images()).shape == (2, 5)
    features = timm.create_model("sot_tiny", features_only=True, **TINY | dict(img_size=64, num_classes=0)).eval()
    assert [feature.shape for feature in features(images(size=(64, 64)))] == [(2, 24, 4, 4)] * 3


def test_a_folder(tmp_path):
    model = small(img_size=64).eval()
    model.set_input_size((48, 64))
    covpool_plugins.save_for_hub(model, tmp_path)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.equal(again(images()), model(images()))
    assert torch.equal(pickle.loads(pickle.dumps(again))(images()), model(images()))
    assert "pos_embed" in again.state_dict() and "pos_embed" not in dict(again.named_parameters())


@pytest.mark.parametrize("output_fmt, shape", [("NCHW", (2, 24, 3, 4)), ("NLC", (2, 12, 24))])
def test_intermediates(output_fmt, shape):
    model, x = small().eval(), images()
    last, every = model.forward_intermediates(x, norm=True, return_prefix_tokens=True, output_fmt=output_fmt)
    assert torch.equal(last, model.forward_features(x)) and len(every) == len(model.feature_info) == 3
    spatial, token = every[-1]
    assert spatial.shape == shape and torch.equal(token, last[:, :1])
    assert model.prune_intermediate_layers(1, prune_norm=True) == [2] and isinstance(model.norm, nn.Identity)


@pytest.mark.parametrize("size", [(48, 64), (64, 64), (80, 33)])
def test_other_image_sizes(size):
    model = small(img_size=size).eval()
    rows, columns = model.patch_embed.grid_size
    assert model.pos_embed.shape == (1, 1 + rows * columns, 24)
    assert model(images(size=size)).shape == (2, 5)
    with pytest.raises(ShapeError, match=rf"built for images of {size[0]}x{size[1]}, got shape \(2, 3, 96, 48\)"):
        model(images(size=(96, 48)))


def test_another_size_later():
    """As timm's transformers take it, with a fixed embedding and strict keys."""
    model = small(img_size=128).eval()
    keys = list(model.state_dict())
    model.set_input_size(64)
    assert model(images(size=(64, 64))).shape == (2, 5) and list(model.state_dict()) == keys
    assert "pos_embed" not in dict(model.named_parameters())
    with pytest.raises(ShapeError, match="built for images of 64x64"):
        model(images(size=(128, 128)))


def test_dtype_and_channels():
    model = small(in_chans=1, dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.bfloat16, torch.int64}
    assert model(images(1).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "options, message",
    [
        ({"img_size": 0}, "img_size must be a positive integer, got 0"),
        ({"img_size": "64"}, "img_size must be a positive integer, got '64'"),
        ({"img_size": (64,)}, r"img_size must be one or two positive integers, got \(64,\)"),
        ({"num_heads": 7}, "num_heads=7.*: dim should be divisible by num_heads"),
        ({"class_token": False}, "backbone 'sot_tiny' has no option 'class_token'"),
        ({"reg_tokens": 2}, "backbone 'sot_tiny' has no option 'reg_tokens'"),
        ({"pos_embed": "none"}, "backbone 'sot_tiny' has no option 'pos_embed'"),
        ({"qkv_bias": True}, "backbone 'sot_tiny' has no option 'qkv_bias'"),
        ({"global_pool": "avg"}, "average pooling is called 'gap' here"),
        ({"head_kwargs": "heads=2"}, "head_kwargs must be a dictionary of options, got 'heads=2'"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(OptionError, match=message):
        small(**options)


def test_wrong_sizes_later():
    model = small()
    with pytest.raises(OptionError, match="img_size must be a positive integer, got -32"):
        model.set_input_size(-32)
    with pytest.raises(OptionError, match="patch_size must be one of None, got 8"):
        model.set_input_size(patch_size=8)


def test_without_the_class_tokens_logits():
    model = small(fuse_class_token=False).eval()
    assert model.get_classifier().in_features == small().get_classifier().in_features - TINY["embed_dim"]
    assert model(images()).shape == (2, 5)
