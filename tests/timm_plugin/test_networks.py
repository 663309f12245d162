"""What timm promises of its models, on the networks of this package."""

import ast
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from timm.models import get_notrace_functions, get_notrace_modules
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import covpool_plugins
from covpool_plugins.errors import OptionError
from covpool_plugins.timm_plugin.own_backbones import AlexNet, CifarResNet
from covpool_plugins.timm_plugin.token_transformers import TokenTransformer


class Network(NamedTuple):
    kind: type[nn.Module]
    size: int
    sides: tuple[int, ...]  # of the intermediate maps
    options: dict[str, Any]
    saved: float = 2  # how many times fewer tensors checkpointing keeps, at least

    def build(self, **options):
        torch.manual_seed(0)
        return self.kind(**{"num_classes": 5, **self.options, **options})

    def images(self):
        return torch.randn(2, 3, self.size, self.size)


SO_VIT = dict(stem="resnet", img_size=48, embed_dim=24, depth=6, num_heads=3)
NETWORKS = {
    "alexnet": Network(AlexNet, 64, (15, 7, 3, 3, 3), {}),
    "cifar": Network(CifarResNet, 16, (16, 16, 8, 4, 2), {}),
    "so_vit": Network(TokenTransformer, 48, (3,) * 6, SO_VIT, 1.5),
}


@pytest.fixture(params=NETWORKS)
def network(request):
    return NETWORKS[request.param]


@pytest.mark.parametrize("name", ["alexnet", "cifar"])
def test_forward_is_features_then_head(name):
    model, x = NETWORKS[name].build().eval(), NETWORKS[name].images()
    maps = model.forward_features(x)
    assert maps.shape[1] == model.num_features == model.head_hidden_size
    vector = model.forward_head(maps, pre_logits=True)
    torch.testing.assert_close(vector, maps.mean((2, 3)))
    assert torch.equal(model(x), model.get_classifier()(vector)) and model(x).shape == (2, 5)
    assert model.get_classifier(name_only=True) == "fc"


def test_reset_classifier():
    model, x = CifarResNet(num_classes=5, dtype=torch.float64).eval(), NETWORKS["cifar"].images().double()
    model.reset_classifier(3)
    assert model.num_classes == 3 and model(x).shape == (2, 3)
    assert model.fc.weight.dtype == torch.float64 and not model.fc.training
    model.reset_classifier(0)
    assert torch.equal(model(x), model.forward_features(x).mean((2, 3)))
    model.reset_classifier(0, "")
    assert torch.equal(model(x), model.forward_features(x)) and isinstance(model.get_classifier(), nn.Identity)
    model.reset_classifier(2, "avg")
    assert model(x).shape == (2, 2)


def test_intermediates(network):
    model, x = network.build().eval(), network.images()
    last, every = model.forward_intermediates(x)
    is_tokens = isinstance(model, TokenTransformer)
    assert torch.equal(last, model.forward_features(x)) and (is_tokens or torch.equal(every[-1], last))
    assert [tuple(map.shape) for map in every] == [
        (2, info["num_chs"], side, side) for info, side in zip(model.feature_info, network.sides, strict=True)
    ]
    seen = {}
    for info in model.feature_info:
        model.get_submodule(info["module"]).register_forward_hook(
            lambda _, inputs, output, key=info["module"]: seen.setdefault(key, output)
        )
    model(x)
    for info, map in zip(model.feature_info, every, strict=True):
        stage = seen[info["module"]]
        assert torch.equal(map.flatten(2).mT, stage[:, 1:]) if is_tokens else torch.equal(map, stage)
    assert [map.shape for map in model.forward_intermediates(x, 2, intermediates_only=True)] == [
        map.shape for map in every[-2:]
    ]
    stopped, chosen = model.forward_intermediates(x, [0, 2 - len(every)], stop_early=True)
    assert torch.equal(chosen[0], every[0]) and torch.equal(chosen[1], every[2])
    assert is_tokens or torch.equal(stopped, every[2])


def test_prune(network):
    model, x = network.build().eval(), network.images()
    norm = {"norm": True} if isinstance(model, TokenTransformer) else {}
    before = model.forward_intermediates(x, [2], intermediates_only=True, **norm)[0]
    assert model.prune_intermediate_layers([2 - len(network.sides)]) == [2] and model.num_classes == 0
    after = model(x)[:, 1:].mT.unflatten(2, (3, 3)) if norm else model(x)
    assert torch.equal(after, before) and model.num_features == before.shape[1]
    left = {".".join(name.split(".")[:2]) for name in model.state_dict()}
    assert not any(name.startswith(("layer3", "layer4", "fc", "head", "blocks.3")) for name in left)


def test_every_parameter_learns_and_checkpointing_changes_nothing(network):
    x, gradients, logits, kept = network.images(), [], [], []
    for enable in (False, True):
        model = network.build()
        model.set_grad_checkpointing(enable)
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t) or t, lambda t: t):
            logits.append(model(x))
        logits[-1].square().sum().backward()
        kept.append(len(saved))
        gradients.append([p.grad for p in model.parameters()])
    assert torch.equal(*logits) and kept[1] < kept[0] / network.saved
    for plain, checkpointed in zip(*gradients, strict=True):
        assert torch.isfinite(plain).all()
        torch.testing.assert_close(checkpointed, plain)


@pytest.mark.parametrize("name", ["alexnet", "cifar", pytest.param("so_vit", marks=pytest.mark.slow)])
def test_script_trace_and_export(name):
    model, x = NETWORKS[name].build().eval(), NETWORKS[name].images()
    expected = model(x)
    if name != "so_vit":
        torch.testing.assert_close(torch.jit.script(model)(x), expected)
        torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), expected)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected)


def test_fx_as_timm_extracts_features():
    model, x = NETWORKS["so_vit"].build().eval(), NETWORKS["so_vit"].images()
    options = {"leaf_modules": list(get_notrace_modules()), "autowrap_functions": list(get_notrace_functions())}
    _, nodes = get_graph_node_names(model, tracer_kwargs=options)
    graph = create_feature_extractor(model, return_nodes=[nodes[-1]], tracer_kwargs=options)
    assert torch.equal(graph(x)[nodes[-1]], model(x))


@pytest.mark.slow
def test_compile(network):
    model, x = network.build().eval(), network.images()
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(x), model(x))


def test_dropout_works_in_training_only():
    model = AlexNet(num_classes=0, drop_rate=1.0)
    maps = torch.rand(2, model.num_features, 3, 3)
    assert not model.forward_head(maps).any() and model.eval().forward_head(maps).all()


IMAGES = torch.empty(2, 3, 48, 48, device="meta")


@pytest.mark.parametrize(
    "name, wrong, message",
    [
        ("alexnet", {"batch_norm": "no"}, "batch_norm must be True or False, got 'no'"),
        ("cifar", {"layers": (2, 2)}, r"layers must be the numbers of blocks of 4 stages, got \(2, 2\)"),
    ],
)
def test_wrong_arguments(name, wrong, message):
    with pytest.raises(ValueError, match=message):
        NETWORKS[name].build(**wrong)


@pytest.mark.parametrize("wrong", [{"indices": 9}, {"indices": [0, 9]}, {"output_fmt": "NHWC"}])
def test_wrong_intermediates(network, wrong):
    with pytest.raises((AssertionError, OptionError)):  # timm's own checks are assertions
        network.build(device="meta").forward_intermediates(IMAGES, **wrong)


@pytest.mark.parametrize("room", ["linalg", "pooling", "whitening"])
def test_the_rooms_below_the_plugins_import_neither_timm_nor_mmpretrain(room):
    package = Path(covpool_plugins.__file__).parent
    for path in (package / room).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            module = getattr(node, "module", None) or ""
            imported = {name.split(".")[0] for name in (*names, module)}
            assert not imported & {"timm", "mmengine", "mmpretrain", "timm_plugin", "mmpretrain_plugin"}, path
