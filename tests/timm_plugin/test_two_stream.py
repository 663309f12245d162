"""Bilinear models of two backbones."""

import copy
import functools
import pickle

import pytest
import timm
import torch
from support.matrices import relative_error
from timm.optim import create_optimizer_v2
from torch import nn
from torch.nn import functional as F

import covpool_plugins
from covpool_plugins.errors import OptionError, ShapeError, UnknownNameError
from covpool_plugins.pooling import BilinearPool
from covpool_plugins.timm_plugin.two_stream import Stream, TwoStreamNet, create_two_stream_model

SMALL = {"channels": (4, 4, 4, 8), "stem_width": 4}
SIZE = 64
# Equal and different networks; maps in both orders, tokens; grids of equal and of other sizes.
PAIRS = {
    "[D+D]": ("resnet10t", None, {}),
    "[D+M]": ("resnet10t", "test_efficientnet", {}),
    "other grids": ("resnet10t", "resnet10t", {"second_kwargs": {"last_stride": 1}}),
    "channels last": ("resnet10t", "test_mambaout", {}),
    "tokens": ("test_vit", "test_vit2", {"img_size": SIZE}),
    "shared": ("resnet10t", None, {"shared": True}),
}


def two_streams(pair="[D+D]", **kwargs):
    torch.manual_seed(0)
    a, b, own = PAIRS[pair]
    narrow = {"channels": (8, 8, 16, 32), "stem_width": 8} if {a, b} <= {"resnet10t", None} else {}
    arguments = {"num_classes": 5, "head_kwargs": {"reduce_channels": (6, 4)}} | narrow | own | kwargs
    if own.get("shared"):
        arguments["head_kwargs"] = {"reduce_channels": 6}
    return create_two_stream_model(a, b, **arguments).eval()


def images(count=2, channels=3, size=SIZE):
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def shared_model():
    """The model of a pair, built once; tests that change it take a copy."""
    return functools.cache(two_streams)


class Fixed(nn.Module):
    """A network that gives the same maps whatever it sees."""

    def __init__(self, *shape):
        super().__init__()
        self.maps = nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape) + shape[1])))

    def forward(self, x):
        return self.maps


@pytest.mark.parametrize("pair", PAIRS)
def test_interface(pair, shared_model):
    model, x = shared_model(pair), images()
    maps = model.forward_features(x)
    assert maps.shape[:2] == (2, model.num_features)
    vector = model.forward_head(maps, pre_logits=True)
    assert vector.shape == (2, model.head_hidden_size) == (2, 36 if pair == "shared" else 24)
    assert torch.equal(model(x), model.get_classifier()(vector))
    assert relative_error(vector.norm(dim=1), torch.ones(2)) < 1e-5
    names = dict(model.named_modules())
    assert names[model.get_classifier(name_only=True)] is names[model.pretrained_cfg["classifier"]] is model.fc
    assert all(isinstance(names[name], nn.Conv2d) for name in model.pretrained_cfg["first_conv"])
    assert relative_error(model(x[1:]), model(x)[1:]) < 1e-5


@pytest.mark.parametrize("pair", ["[D+D]", "tokens", "shared"])
def test_every_weight_learns_and_checkpointing_changes_nothing(pair, shared_model):
    model, twin = (copy.deepcopy(shared_model(pair)) for _ in range(2))
    twin.set_grad_checkpointing()
    for network in (model, twin):
        network(images()).logsumexp(dim=1).sum().backward()
    used = [(p.grad, q.grad) for p, q in zip(model.parameters(), twin.parameters(), strict=True)]
    assert all(a is not None and torch.isfinite(a).all() and torch.allclose(a, b) for a, b in used)
    assert all(any(p.grad.abs().sum() > 0 for p in stream.parameters()) for stream in model.streams)


def test_shared_is_bcnn_and_two_networks_give_their_outer_product():
    torch.manual_seed(0)
    narrow = {"channels": (16, 16, 16, 8), "stem_width": 16}  # all features of narrower ones may be zero
    model = create_two_stream_model("resnet10t", shared=True, num_classes=5, **narrow).eval()
    plain = covpool_plugins.create_model("resnet10t", "bcnn", num_classes=5, **narrow).eval()
    plain.load_state_dict({k.removeprefix("stream_a."): v for k, v in model.state_dict().items()}, strict=False)
    plain.head.fc.load_state_dict(model.fc.state_dict())
    x = images(size=96)
    assert relative_error(model(x), plain(x)) < 1e-5 and len(model.streams) == 1
    model = create_two_stream_model("resnet10t", num_classes=5, head_kwargs={"eps": 1e-6}, **narrow).eval()
    assert not torch.equal(*(stream.layer4[0].conv1.weight for stream in model.streams))  # nothing is shared
    expected = BilinearPool(8, eps=1e-6)(*(stream(x) for stream in model.streams))
    assert relative_error(model.forward_head(model.forward_features(x), pre_logits=True), expected) < 1e-6


@pytest.mark.parametrize("grids", [((4, 6), (2, 3)), ((2, 3), (4, 6)), ((4, 3), (3, 5)), ((5, 5), (5, 5))])
def test_the_finer_grid_is_averaged(grids):
    first, second = Fixed(2, 3, *grids[0]), Fixed(2, 4, *grids[1])
    net = TwoStreamNet(Stream(first, 3), Stream(second, 4), num_classes=0)
    grid = tuple(map(min, *grids))
    expected = torch.cat([F.adaptive_avg_pool2d(stream.maps, grid) for stream in (first, second)], dim=1)
    assert torch.equal(net.forward_features(images()), expected)


def test_tokens_beside_maps_go_row_by_row():
    maps, tokens = Fixed(2, 3, 2, 5), Fixed(2, 11, 4)
    net = TwoStreamNet(Stream(maps, 3), Stream(tokens, 4, "NLC", 1), num_classes=0)
    expected = BilinearPool(3, 4)(maps.maps, tokens.maps[:, 1:].transpose(1, 2).unflatten(2, (2, 5)))
    assert relative_error(net(images()), expected) < 1e-6
    wrong = TwoStreamNet(Stream(maps, 3), Stream(Fixed(2, 7, 4), 4, "NLC"))
    with pytest.raises(ShapeError, match="two streams with tokens need as many positions each, got 10 and 7"):
        wrong(images())


def test_reset(shared_model):
    model, x = copy.deepcopy(shared_model("[D+D]")), images()
    before = model.forward_head(model.forward_features(x), pre_logits=True)
    model.reset_classifier(3)
    assert model(x).shape == (2, 3) and not model.fc.training
    model.reset_classifier(0)
    assert torch.equal(model(x), before)
    model.reset_classifier(0, "")
    assert torch.equal(model(x), model.forward_features(x)) and model.head_hidden_size == model.num_features
    model.double().reset_classifier(4)
    assert model(x.double()).shape == (2, 4) and model(x.double()).dtype == torch.float64
    assert model.global_pool.pool_type == "bilinear" and model.head_hidden_size == 24


def test_arguments_of_one_backbone_and_of_both():
    model = two_streams(in_chans=1, drop_rate=0.5, second_kwargs=SMALL)
    assert [stream.num_features for stream in model.streams] == [32, 8] and model.dropout.p == 0.5
    assert model(images(channels=1)).shape == (2, 5)


def test_weights_of_both_backbones(tmp_path):
    plain = [timm.create_model("resnet10t", **SMALL) for _ in range(2)]
    overlays = []
    for number, backbone in enumerate(plain):
        torch.save(backbone.state_dict(), tmp_path / f"{number}.pth")
        overlays.append({"file": str(tmp_path / f"{number}.pth")})
    arguments = {"pretrained": True, "num_classes": 5, "pretrained_cfg_overlay": overlays[0], **SMALL}
    second = {"pretrained_cfg_overlay": overlays[1]}
    model = create_two_stream_model("resnet10t", second_kwargs=second, **arguments)
    for stream, backbone in zip(model.streams, plain, strict=True):
        assert torch.equal(stream.layer4[0].conv1.weight, backbone.layer4[0].conv1.weight)
    second["pretrained_cfg_overlay"] = overlays[1] | {"mean": (0.5, 0.5, 0.5)}
    message = r"pretrained streams must expect pictures of the same mean, got \(0.485, .*\) of 'resnet10t' and \(0.5, "
    with pytest.raises(OptionError, match=message):
        create_two_stream_model("resnet10t", second_kwargs=second, **arguments)


def test_layer_decay_and_weight_decay(shared_model):
    model = shared_model("[D+D]")
    groups = create_optimizer_v2(model, opt="sgd", lr=1.0, layer_decay=0.1).param_groups
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert scales == {id(p): 1.0 if name.startswith("fc.") else 0.1 for name, p in model.named_parameters()}
    undecayed = shared_model("tokens").no_weight_decay()
    assert {"stream_a.pos_embed", "stream_b.pos_embed"} <= undecayed
    assert all(name.startswith(("stream_a.", "stream_b.")) for name in undecayed)


@pytest.mark.fast_for("other grids")
@pytest.mark.parametrize("pair", ["other grids", "[D+M]", "tokens"])
def test_copies_exports_and_feature_extraction(pair, shared_model):
    model, x = shared_model(pair), images()
    expected = model(x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.export.export(model, (x,)).module()):
        assert relative_error(twin(x), expected) < 1e-6
    if pair != "tokens":
        assert torch.equal(timm.models.create_feature_extractor(model, ["fc"])(x)["fc"], expected)


@pytest.mark.slow
def test_compiles(shared_model):
    model, x = shared_model("[D+M]"), images()
    torch.compiler.reset()
    assert relative_error(torch.compile(model, fullgraph=True, backend="aot_eager")(x), model(x)) < 1e-5


@pytest.mark.parametrize(
    "options, message",
    [
        ({"shared": "yes"}, "shared must be True or False, got 'yes'"),
        ({"shared": True, "second_kwargs": SMALL}, "shared=True takes one backbone, got 'resnet10t' and 'resnet10t' w"),
        ({"num_classes": -1}, "num_classes must be an integer >= 0, got -1"),
        ({"drop_rate": 1}, r"drop_rate must be a number in \[0, 1\), got 1"),
        ({"features_only": True}, "a stream gives unpooled maps and takes no features_only, got True"),
        ({"second_kwargs": {"num_classes": 3}}, "a stream gives unpooled maps and takes no num_classes, got 3"),
        ({"second_kwargs": 3}, "second_kwargs must be a dictionary of options, got 3"),
        ({"head_kwargs": {"iterations": 3}}, "has no option 'iterations'; its options: reduce_channels, eps"),
        ({"head_kwargs": {"reduce_channels": (4, 4, 4)}}, r"must be one number or 2, got \(4, 4, 4\)"),
        ({"head_kwargs": {"reduce_channels": (4, 0)}}, "reduce_channels must be a positive integer or None, got 0"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(OptionError, match=message):
        two_streams(**options)


def test_other_wrong_arguments(shared_model):
    with pytest.raises(UnknownNameError, match="unknown timm backbone 'resnet10'"):
        create_two_stream_model("resnet10")
    with pytest.raises(OptionError, match=r"global_pool must be .*bilinear.*, got 'avg'"):
        shared_model("[D+D]").reset_classifier(3, "avg")
    with pytest.raises(OptionError, match="global_pool='' leaves nothing to classify: use num_classes=0, got 3"):
        shared_model("[D+D]").reset_classifier(3, "")
