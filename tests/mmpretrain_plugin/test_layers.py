"""Whitening layers in backbones, everywhere by ``norm_cfg`` or in places by ``NormSwap``, and ``MatrixSqrt``."""

import subprocess
import sys

import pytest
import torch
from mmcv.cnn.bricks.norm import build_norm_layer
from mmcv.cnn.utils import fuse_conv_bn
from mmengine.model import convert_sync_batchnorm, revert_sync_batchnorm
from mmengine.model.efficient_conv_bn_eval import turn_on_efficient_conv_bn_eval
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import init_default_scope
from mmengine.runner import save_checkpoint
from mmpretrain.models.utils.norm import build_norm_layer as build_norm_layer_of_mmpretrain
from mmpretrain.registry import MODELS
from support.matrices import relative_error
from torch import nn

from covpool_plugins.errors import OptionError, UnknownNameError
from covpool_plugins.linalg import Exact, sqrtm
from covpool_plugins.mmpretrain_plugin import MatrixSqrt
from covpool_plugins.whitening.norm import WhiteningNorm
from covpool_plugins.whitening.swap import layer_types

ZCA = dict(type="ZCANorm2d", groups=2)
FIRST = "layer1.0.bn1"
SMALL = {
    "ResNet": dict(depth=18, stem_channels=8, base_channels=8),
    "ResNet_CIFAR": dict(depth=18, stem_channels=8, base_channels=8),
    "VGG": dict(depth=11, num_classes=-1),
    "DenseNet": dict(arch=dict(growth_rate=4, depths=[2, 2], init_channels=8)),
}


def mapped(model, images, training=False):
    """The last map of a backbone, whose ``train`` and ``eval`` return nothing."""
    model.train(training)
    return model(images)[-1]


def whitened(model):
    return {name for name, module in model.named_modules() if isinstance(module, WhiteningNorm)}


def batch_norms(model):
    return {name for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)}


def resnet(**options):
    return dict(type="ResNet_CIFAR", **SMALL["ResNet_CIFAR"], **options)


def swapped(backbone=None, rules=None):
    cfg = dict(type="NormSwap", backbone=backbone or resnet(), rules=rules or {FIRST: ZCA})
    return MODELS.build(dict(cfg, _scope_="mmpretrain"))


@pytest.mark.parametrize("backbone", SMALL)
def test_norm_cfg(backbone):
    def build(**options):
        torch.manual_seed(0)
        return MODELS.build(dict(type=backbone, _scope_="mmpretrain", **SMALL[backbone], **options))

    plain, model = build(norm_cfg=dict(type="BN")), build(norm_cfg=dict(ZCA, eps=1e-4))
    assert whitened(model) == batch_norms(plain) != set()
    layers = [model.get_submodule(name) for name in whitened(model)]
    assert {(layer.groups, layer.eps) for layer in layers} == {(2, 1e-4)}
    assert set(dict(model.named_parameters())) == set(dict(plain.named_parameters()))
    model.init_weights()
    maps = mapped(model, torch.randn(2, 3, 64, 64), training=True)
    maps.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)
    assert mapped(model, torch.randn(2, 3, 64, 64)).isfinite().all()


@pytest.mark.parametrize("scope", [None, "mmpretrain"])
@pytest.mark.parametrize("name", layer_types())
def test_every_layer_is_registered(name, scope):
    if scope is not None:
        init_default_scope(scope)
    for kind in (name, f"covpool_plugins.{name}"):
        attribute, layer = build_norm_layer(dict(type=kind, groups=2, requires_grad=False), 8, postfix=1)
        assert attribute == "bn1" and type(layer) is layer_types()[name]
        assert not any(parameter.requires_grad for parameter in layer.parameters())
        assert type(build_norm_layer_of_mmpretrain(dict(type=kind), 8)) is layer_types()[name]


@pytest.mark.slow
def test_names_need_no_import():
    script = """
import sys
from mmpretrain.registry import MODELS
norm_cfg = dict(type="covpool_plugins.ZCANorm2d", groups=2)
plain = dict(type="ResNet_CIFAR", depth=18, stem_channels=8, base_channels=8, norm_cfg=norm_cfg, _scope_="mmpretrain")
backbone = dict(plain, norm_cfg=dict(type="BN"))
rules = {r"layer1\\.0\\.bn1": dict(norm_cfg, type="covpool_plugins.PCANorm2d")}
assert not any(name.startswith("covpool_plugins") for name in sys.modules)
print(type(MODELS.build(plain).bn1).__name__)
swapped = MODELS.build(dict(type="covpool_plugins.NormSwap", backbone=backbone, rules=rules, _scope_="mmpretrain"))
print(type(swapped.bn1).__name__, type(swapped.layer1[0].bn1).__name__)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["ZCANorm2d", "BatchNorm2d", "PCANorm2d"]


def test_one_layer_is_swapped():
    model, plain = swapped(), MODELS.build(dict(resnet(), _scope_="mmpretrain"))
    assert type(model) is type(plain)
    assert whitened(model) == {FIRST} == batch_norms(plain) - batch_norms(model)
    assert set(dict(model.named_parameters())) == set(dict(plain.named_parameters()))
    assert model.layer1[0].norm1 is model.layer1[0].bn1
    assert mapped(model, torch.randn(2, 3, 32, 32), training=True).isfinite().all()


def test_pretrained_weights_load(tmp_path):
    source, images = MODELS.build(dict(resnet(), _scope_="mmpretrain")), torch.randn(2, 3, 32, 32)
    for value in source.state_dict().values():
        if value.is_floating_point() and value.ndim < 2:
            value.uniform_(0.5, 1.5)
    path = str(tmp_path / "weights.pth")
    save_checkpoint(dict(state_dict={f"backbone.{key}": value for key, value in source.state_dict().items()}), path)
    init_cfg = dict(type="Pretrained", checkpoint=path, prefix="backbone.")
    model = swapped(resnet(init_cfg=init_cfg), {FIRST: dict(ZCA, eps=1e-5)})
    model.init_weights()
    loaded = model.state_dict()
    expected = {key: value for key, value in source.state_dict().items() if key != "layer1.0.bn1.running_var"}
    assert [key for key, value in expected.items() if not torch.equal(loaded[key], value)] == []
    assert relative_error(mapped(model, images), mapped(source, images)) < 1e-5


def test_initialisation_stays():
    model = swapped(resnet(zero_init_residual=True), {r".*\.bn2": ZCA})
    model.init_weights()
    assert {float(block.bn2.weight.detach().abs().max()) for block in model.layer1} == {0.0}


def test_backbones_of_timm():
    backbone = dict(type="TIMMBackbone", model_name="efficientnet_b0", features_only=False)
    torch.manual_seed(0)
    plain = MODELS.build(dict(backbone, _scope_="mmpretrain"))
    torch.manual_seed(0)
    model = swapped(backbone, {r"timm_model\.bn1": dict(type="covpool_plugins.ZCANorm2d", eps=1e-5)})
    assert whitened(model) == {"timm_model.bn1"}
    images = torch.randn(2, 3, 64, 64)
    assert relative_error(mapped(model, images), mapped(plain, images)) < 1e-5


def test_sync_bn_and_fusion_leave_the_layers_alone():
    model, images = swapped(rules={r"layer1\.0\.bn1|layer2\.0\.bn2|bn1": ZCA}), torch.randn(2, 3, 32, 32)
    mapped(model, images, training=True)
    expected, layers = mapped(model, images), whitened(model)
    assert len(layers) == 3
    synchronized = convert_sync_batchnorm(model)
    assert whitened(synchronized) == layers
    assert {type(synchronized.get_submodule(name)) for name in batch_norms(synchronized)} == {nn.SyncBatchNorm}
    fused = fuse_conv_bn(revert_sync_batchnorm(synchronized))
    assert (whitened(fused), batch_norms(fused)) == (layers, set())
    assert relative_error(mapped(fused, images), expected) < 1e-5


@pytest.mark.parametrize("constructor", ["DefaultOptimWrapperConstructor", "LearningRateDecayOptimWrapperConstructor"])
@pytest.mark.parametrize("layer", layer_types())
def test_norm_decay_mult_is_that_of_the_layers_too(layer, constructor):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), build_norm_layer(dict(type=layer), 4)[1], nn.Linear(4, 4))
    model.get_layer_depth = lambda name: (0, 1)
    cfg = dict(
        type="mmengine.OptimWrapper",
        constructor=f"mmpretrain.{constructor}",
        optimizer=dict(type="SGD", lr=0.1, weight_decay=0.5),
        paramwise_cfg=dict(norm_decay_mult=0.0),
    )
    groups = build_optim_wrapper(model, cfg).optimizer.param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decays = {names[id(parameter)]: group["weight_decay"] for group in groups for parameter in group["params"]}
    assert decays == {name: 0.0 if name.startswith("1.") else 0.5 for name in names.values()}


def test_efficient_conv_bn_eval():
    """As the config's ``efficient_conv_bn_eval``: batch norms become one with convolutions, whitening layers stay."""
    model, images = swapped(), torch.randn(2, 3, 32, 32)
    mapped(model, images, training=True)
    expected = mapped(model, images)
    turn_on_efficient_conv_bn_eval(nn.ModuleDict(dict(backbone=model)), ["backbone"])
    code = model.forward.__self__.code
    assert "efficient_conv_bn_eval" in code and 'getattr(self.layer1, "0").bn1(' in code
    assert relative_error(mapped(model, images), expected) < 1e-5


@pytest.mark.parametrize(
    "rules, message",
    [({"bn1": dict(type="Nope")}, "bn1: unknown layer 'Nope'"), (["bn1"], r"must be dict\(.*\), got \['bn1'\]")],
)
def test_bad_rules(rules, message):
    with pytest.raises(OptionError, match=message):
        swapped(rules=rules)


@pytest.mark.parametrize("registry", [ROOT_MODELS, MODELS], ids=["MMEngine", "MMPretrain"])
@pytest.mark.parametrize("options", [dict(method="svdpade"), dict(method="isqrt", iterations=2)], ids=str)
def test_a_matrix_square_root_is_that_of_the_function(options, registry):
    X = torch.randn(2, 3, 4, 9, dtype=torch.float64)
    A, B = ((X @ X.mT / 9).requires_grad_() for _ in range(2))
    root, expected = registry.build(dict(type="MatrixSqrt", **options))(A), sqrtm(B, **options)
    weights = torch.randn_like(root)
    (root * weights).sum().backward()
    (expected * weights).sum().backward()
    assert torch.equal(root, expected) and torch.equal(A.grad, B.grad)
    assert A.grad.abs().sum() > 0
    assert MatrixSqrt().method == Exact() and MatrixSqrt().state_dict() == {}


def test_bad_options_of_a_matrix_square_root():
    with pytest.raises(UnknownNameError, match="'svdpad'; available: svdpade"):
        MatrixSqrt("svdpad")
    with pytest.raises(OptionError, match="no option 'iteration'"):
        MatrixSqrt("isqrt", iteration=2)
