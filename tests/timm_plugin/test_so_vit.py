"""So-ViT: parity with the original, and what no other network has."""

import pytest
import torch
from support.golden_models import assert_equal, golden_input, golden_weight, load_models
from support.matrices import relative_error
from torch import nn

from covpool_plugins.errors import ShapeError
from covpool_plugins.timm_plugin.so_vit import SO_VITS, SoViT

MODELS = {model["route"]["arch"].removeprefix("So_vit_"): model for model in load_models("so_vit").values()}
RENAMED = {
    "visual_tokens.tokens.stem.0.": "patch_embed.stem.",
    "visual_tokens.tokens.stage.": "patch_embed.stages.",
    "visual_tokens.tokens.transition.": "patch_embed.proj.",
    "classifier.representation.conv_dr_block.0.": "head.pool.reduction.conv.",
    "classifier.representation.conv_dr_block.1.": "head.pool.reduction.norm.",
    "classifier.visual_fc.": "head.fc.",
    "classifier.cls_fc.": "head.cls_fc.",
}


def our_key(key):
    for theirs, ours in RENAMED.items():
        if key.startswith(theirs):
            return ours + key.removeprefix(theirs)
    return key


def small(**options):
    torch.manual_seed(0)
    settings = dict(num_classes=5, img_size=(48, 64), embed_dim=24, depth=3, num_heads=3, reduce_channels=(6, 4))
    return SoViT(**{**settings, **options})


def images(channels=3, size=(48, 64)):
    return torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("arch", MODELS)
def test_the_keys_and_the_position_embedding_of_the_original(arch):
    model, settings = MODELS[arch], SO_VITS[arch]
    ours = SoViT(**settings._asdict(), device="meta").state_dict()
    theirs = {our_key(key): tuple(shape) for key, shape in model["state_dict"].items()}
    wrong = {name for name, tensor in ours.items() if theirs.pop(name) != tuple(tensor.shape)}
    assert not theirs
    # The classifier of the widest original is half as wide as its features.
    assert wrong == ({"head.fc.weight"} if "original_fails" in model else set())
    route = model["route"]
    assert (settings.embed_dim, settings.depth, settings.num_heads) == tuple(
        route[name] for name in ("embed_dim", "depth", "num_heads")
    )
    assert settings.embed_dim * settings.mlp_ratio == route["mlp_hidden"]
    assert_equal(SoViT(embed_dim=settings.embed_dim, depth=1).pos_embed, model["pos_embed_as_constructed"], 1e-12)


@pytest.mark.parametrize("arch", [arch for arch in MODELS if "logits" in MODELS[arch]])
def test_the_original_network(arch):
    model = MODELS[arch]
    network = SoViT(**SO_VITS[arch]._asdict(), head_kwargs={"compute": "float64"}, dtype=torch.float64).eval()
    network.load_state_dict({our_key(key): golden_weight(key, shape) for key, shape in model["state_dict"].items()})
    with torch.no_grad():
        tokens = network.forward_features(golden_input(model["input"]))
        assert_equal(network.head.pool(tokens), model["representation"], 1e-12)
        assert_equal(network.forward_head(tokens), model["logits"], 1e-12)


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
    model = small(global_pool=pool, head_kwargs=options).eval()
    x = images()
    tokens = model.forward_features(x)
    assert tokens.shape == (2, 13, 24)
    vector = model.forward_head(tokens, pre_logits=True)
    assert vector.shape == (2, width + 24) and model.head_hidden_size == width + 24
    assert torch.equal(vector[:, width:], tokens[:, 0])
    expected = model.head.fc(vector[:, :width]) + model.head.cls_fc(vector[:, width:])
    torch.testing.assert_close(model(x), expected)
    model.train()(x).square().mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()] == []


def test_reset_classifier():
    model, x = small(dtype=torch.float64).eval(), images().double()
    reduction = model.head.pool.reduction
    model.reset_classifier(3)
    assert model(x).shape == (2, 3) and model.head.pool.reduction is reduction and model.num_classes == 3
    assert [layer.weight.dtype for layer in model.get_classifier()] == [torch.float64] * 2
    assert not model.head.fc.training
    assert [model.get_submodule(name) for name in model.get_classifier(name_only=True)] == list(model.get_classifier())
    model.reset_classifier(0)
    assert model(x).shape == (2, model.head_hidden_size)
    model.reset_classifier(0, "")
    assert torch.equal(model(x), model.forward_features(x)) and isinstance(model.get_classifier()[0], nn.Identity)
    model.reset_classifier(2, "isqrt")
    assert model(x).shape == (2, 2)


@pytest.mark.parametrize("output_fmt, shape", [("NCHW", (2, 24, 3, 4)), ("NLC", (2, 12, 24))])
def test_intermediates(output_fmt, shape):
    model, x = small().eval(), images()
    last, every = model.forward_intermediates(x, norm=True, return_prefix_tokens=True, output_fmt=output_fmt)
    assert torch.equal(last, model.forward_features(x)) and len(every) == len(model.feature_info) == 3
    spatial, token = every[-1]
    assert spatial.shape == shape and torch.equal(token, last[:, :1])
    spatial = spatial.flatten(2).mT if output_fmt == "NCHW" else spatial
    assert torch.equal(spatial, last[:, 1:])
    assert model.prune_intermediate_layers(1, prune_norm=True) == [2] and isinstance(model.norm, nn.Identity)


def test_dtype_and_channels():
    model = small(in_chans=1, dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.bfloat16, torch.int64}
    assert model(images(1).bfloat16()).dtype == torch.bfloat16


def test_stochastic_depth_and_dropout_work_in_training_only():
    model = small(drop_path_rate=0.5, drop_rate=0.5, pos_drop_rate=0.5, proj_drop_rate=0.5, attn_drop_rate=0.5)
    assert [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.blocks] == [0.0, 0.25, 0.5]
    x = images()
    assert not torch.equal(model(x), model(x))
    plain = small()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(x), plain.eval()(x))


@pytest.mark.parametrize("size", [(48, 64), (64, 64), (33, 47)])
def test_other_image_sizes(size):
    model = small(img_size=size).eval()
    rows, columns = model.patch_embed.grid_size
    assert model.pos_embed.shape == (1, 1 + rows * columns, 24)
    assert model(images(size=size)).shape == (2, 5)
    with pytest.raises(ShapeError, match=rf"built for images of {size[0]}x{size[1]}, got shape \(2, 3, 80, 48\)"):
        model(images(size=(80, 48)))


def test_a_checkpoint_for_another_size_is_resized():
    """Twice, there and back, a smooth embedding stays nearly what it was."""
    source, target, again = (small(img_size=size) for size in (128, 256, 128))
    smooth = torch.linspace(0, 1, 8).expand(8, 8).reshape(1, -1, 1).expand(-1, -1, 24)
    source.pos_embed[:, 1:] = smooth
    state = source.state_dict()
    target.load_state_dict(state)
    again.load_state_dict(target.state_dict())
    assert state["pos_embed"].shape == (1, 65, 24)
    assert torch.equal(target.pos_embed[:, 0], source.pos_embed[:, 0])
    assert relative_error(again.pos_embed, source.pos_embed) < 0.02
    with pytest.raises(RuntimeError, match="pos_embed"):
        target.load_state_dict(small(img_size=(48, 64)).state_dict())


def test_another_size_of_images():
    """As timm's transformers take it, with a fixed embedding and strict keys."""
    model = small(img_size=128).eval()
    keys = list(model.state_dict())
    model.set_input_size(64)
    assert model(images(size=(64, 64))).shape == (2, 5) and list(model.state_dict()) == keys
    assert "pos_embed" not in dict(model.named_parameters())
    with pytest.raises(ShapeError, match="built for images of 64x64"):
        model(images(size=(128, 128)))
