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
from covpool_plugins.timm_plugin.own_backbones import AlexNet, CifarResNet
from covpool_plugins.timm_plugin.token_transformers import TokenTransformer


class Network(NamedTuple):
    kind: type[nn.Module]
    size: int
    options: dict[str, Any]

    def build(self, **options):
        torch.manual_seed(0)
        return self.kind(**{"num_classes": 5, **self.options, **options})

    def images(self):
        return torch.randn(2, 3, self.size, self.size)


SO_VIT = dict(stem="resnet", img_size=48, embed_dim=24, depth=6, num_heads=3)
NETWORKS = {
    "alexnet": Network(AlexNet, 64, {}),
    "cifar": Network(CifarResNet, 16, {}),
    "so_vit": Network(TokenTransformer, 48, SO_VIT),
}


@pytest.mark.parametrize("name", ["alexnet", "cifar"])
def test_forward_is_features_then_head(name):
    model, x = NETWORKS[name].build().eval(), NETWORKS[name].images()
    maps = model.forward_features(x)
    assert maps.shape[1] == model.num_features == model.head_hidden_size
    vector = model.forward_head(maps, pre_logits=True)
    torch.testing.assert_close(vector, maps.mean((2, 3)))
    assert torch.equal(model(x), model.get_classifier()(vector)) and model(x).shape == (2, 5)
    assert model.get_classifier(name_only=True) == "fc"


@pytest.mark.parametrize("name", ["alexnet", "cifar", pytest.param("so_vit", marks=pytest.mark.slow)])
def test_script_trace_and_export(name):
    model, x = NETWORKS[name].build().eval(), NETWORKS[name].images()
    expected = model(x)
    if name != "so_vit":
        torch.testing.assert_close(torch.jit.script(model)(x), expected)
        torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), expected)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected)


TIMMS_LEAVES = {"leaf_modules": list(get_notrace_modules()), "autowrap_functions": list(get_notrace_functions())}


@pytest.mark.parametrize("options", [{}, TIMMS_LEAVES], ids=["torchvision", "timm"])
def test_feature_extractors_on_fx(options):
    model, x = NETWORKS["so_vit"].build().eval(), NETWORKS["so_vit"].images()
    _, nodes = get_graph_node_names(model, tracer_kwargs=options)
    graph = create_feature_extractor(model, return_nodes=[nodes[-1]], tracer_kwargs=options)
    assert torch.equal(graph(x)[nodes[-1]], model(x))


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_compile(name):
    model, x = NETWORKS[name].build().eval(), NETWORKS[name].images()
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(x), model(x))


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


@pytest.mark.parametrize("room", ["linalg", "pooling", "whitening"])
def test_the_rooms_below_the_plugins_import_neither_timm_nor_mmpretrain(room):
    package = Path(covpool_plugins.__file__).parent
    for path in (package / room).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            module = getattr(node, "module", None) or ""
            imported = {name.split(".")[0] for name in (*names, module)}
            assert not imported & {"timm", "mmengine", "mmpretrain", "timm_plugin", "mmpretrain_plugin"}, path
