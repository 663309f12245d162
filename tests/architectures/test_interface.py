"""What timm's models do, plain torch ones do too."""

import ast
from pathlib import Path

import pytest
import torch
from torch import nn

import covpool_plugins
from covpool_plugins.architectures import AlexNet, CifarResNet
from covpool_plugins.errors import OptionError

NETWORKS = {"alexnet": (AlexNet, 64, (15, 7, 3, 3, 3)), "cifar": (CifarResNet, 16, (16, 16, 8, 4, 2))}


@pytest.fixture(params=NETWORKS)
def network(request):
    return NETWORKS[request.param][0]


def images(network, channels=3):
    size = 64 if network is AlexNet else 16
    return torch.randn(2, channels, size, size)


def test_every_parameter_learns(network):
    model = network(num_classes=5, drop_rate=0.1)
    model(images(network)).square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()] == []


def test_forward_is_features_then_head(network):
    model, x = network(num_classes=5).eval(), images(network)
    maps = model.forward_features(x)
    assert maps.shape[1] == model.num_features == model.head_hidden_size
    vector = model.forward_head(maps, pre_logits=True)
    torch.testing.assert_close(vector, maps.mean((2, 3)))
    assert torch.equal(model(x), model.get_classifier()(vector)) and model(x).shape == (2, 5)
    assert model.get_classifier(name_only=True) == "fc" and model.no_weight_decay() == set()


def test_reset_classifier():
    model, x = CifarResNet(num_classes=5, dtype=torch.float64).eval(), images(CifarResNet).double()
    model.reset_classifier(3)
    assert model.num_classes == 3 and model(x).shape == (2, 3)
    assert model.fc.weight.dtype == torch.float64 and not model.fc.training
    model.reset_classifier(0)
    assert torch.equal(model(x), model.forward_features(x).mean((2, 3)))
    model.reset_classifier(0, "")
    assert torch.equal(model(x), model.forward_features(x)) and isinstance(model.get_classifier(), nn.Identity)
    model.reset_classifier(2, "avg")
    assert model(x).shape == (2, 2)


@pytest.mark.parametrize("name", NETWORKS)
def test_intermediates(name):
    network, size, sides = NETWORKS[name]
    model, x = network().eval(), torch.randn(2, 3, size, size)
    last, every = model.forward_intermediates(x)
    assert torch.equal(last, model.forward_features(x)) and torch.equal(every[-1], last)
    assert [tuple(map.shape) for map in every] == [
        (2, info["num_chs"], side, side) for info, side in zip(model.feature_info, sides, strict=True)
    ]
    seen = {}
    for info in model.feature_info:
        model.get_submodule(info["module"]).register_forward_hook(
            lambda _, inputs, output, key=info["module"]: seen.setdefault(key, output)
        )
    model(x)
    for info, expected in zip(model.feature_info, every, strict=True):
        assert torch.equal(seen[info["module"]], expected)
    assert [map.shape for map in model.forward_intermediates(x, 2, intermediates_only=True)] == [
        map.shape for map in every[-2:]
    ]
    stopped, chosen = model.forward_intermediates(x, [0, -3], stop_early=True)
    assert torch.equal(chosen[0], every[0]) and torch.equal(chosen[1], every[2]) and torch.equal(stopped, every[2])


def test_prune(network):
    model, x = network(num_classes=5).eval(), images(network)
    before = model.forward_intermediates(x, [2], intermediates_only=True)[0]
    assert model.prune_intermediate_layers([-3]) == [2]
    assert torch.equal(model(x), before) and model.num_features == before.shape[1] and model.num_classes == 0
    assert {name.split(".")[0] for name in model.state_dict()}.isdisjoint({"layer5", "layer4", "fc"})


def test_gradient_checkpointing_changes_nothing(network):
    x, gradients, logits = images(network), [], []
    for enable in (False, True):
        torch.manual_seed(0)
        model = network(num_classes=5)
        model.set_grad_checkpointing(enable)
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            out = model(x)
        out.square().sum().backward()
        logits.append((out.detach(), len(kept)))
        gradients.append([p.grad for p in model.parameters()])
    assert torch.equal(logits[0][0], logits[1][0]) and logits[1][1] < logits[0][1] / 2
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)


def test_script_trace_and_export(network):
    model, x = network(num_classes=5).eval(), images(network)
    expected = model(x)
    torch.testing.assert_close(torch.jit.script(model)(x), expected)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), expected)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected)


@pytest.mark.slow
def test_compile(network):
    model, x = network(num_classes=5).eval(), images(network)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(x), model(x))


def test_dropout_works_in_training_only():
    model = AlexNet(num_classes=0, drop_rate=1.0)
    maps = torch.rand(2, model.num_features, 3, 3)
    assert not model.forward_head(maps).any() and model.eval().forward_head(maps).all()


def test_number_of_positions():
    assert AlexNet(0, global_pool="", device="meta")(torch.empty(1, 3, 224, 224, device="meta")).shape[2:] == (13, 13)
    assert CifarResNet(0, global_pool="", device="meta")(torch.empty(1, 3, 32, 32, device="meta")).shape[2:] == (4, 4)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"num_classes": -1}, "num_classes must be an integer >= 0, got -1"),
        ({"in_chans": 0}, "in_chans must be a positive integer, got 0"),
        ({"drop_rate": 1.5}, r"drop_rate must be a number in \[0, 1\], got 1.5"),
        ({"global_pool": "max"}, "global_pool must be 'avg' or '', got 'max'"),
        ({"batch_norm": "no"}, "batch_norm must be True or False, got 'no'"),
        ({"global_pool": ""}, "global_pool='' leaves nothing to classify: use num_classes=0, got 10"),
    ],
)
def test_wrong_arguments(wrong, message):
    with pytest.raises(OptionError, match=message):
        AlexNet(**{"num_classes": 10, **wrong})


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"indices": 6}, "indices must be 1 to 5 last stages or a list of stages, got 6"),
        ({"indices": [0, 5]}, r"indices must be stages from -5 to 4, got \[0, 5\]"),
        ({"indices": []}, r"indices must be stages from -5 to 4, got \[\]"),
        ({"output_fmt": "NHWC"}, "output_fmt must be one of NCHW, got 'NHWC'"),
    ],
)
def test_wrong_intermediates(wrong, message):
    with pytest.raises(OptionError, match=message):
        AlexNet(device="meta").forward_intermediates(torch.empty(2, 3, 64, 64, device="meta"), **wrong)


@pytest.mark.parametrize("room", ["linalg", "pooling", "whitening", "architectures"])
def test_the_rooms_below_the_plugins_import_neither_timm_nor_mmpretrain(room):
    package = Path(covpool_plugins.__file__).parent
    for path in (package / room).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            module = getattr(node, "module", None) or ""
            imported = {name.split(".")[0] for name in (*names, module)}
            assert not imported & {"timm", "mmengine", "mmpretrain", "timm_plugin", "mmpretrain_plugin"}, path
