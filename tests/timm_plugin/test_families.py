"""What timm promises of a model, on one small backbone of every kind: maps in both orders, tokens, own heads."""

import copy
import functools
import logging

import pytest
import timm
import torch
from support.matrices import relative_error
from timm.models import get_notrace_functions, get_notrace_modules
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch.ao.quantization import get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import covpool_plugins
from covpool_plugins.timm_plugin.backbones import input_size

# backbone -> layout of what the head gets
FAMILIES = {
    "resnet10t": "NCHW",
    "test_efficientnet": "NCHW",
    "mobilenetv3_small_050": "NCHW",
    "test_convnext": "NCHW",
    "regnetx_002": "NCHW",
    "test_mambaout": "NHWC",
    "test_vit": "NLC",
    "levit_128s": "NLC",
    "resnet18_cifar": "NCHW",
}
pytestmark = pytest.mark.fast_for("resnet10t", "test_convnext", "test_vit")


# Smaller than they are built by default.
SMALL = {"resnet10t": {"channels": (4, 4, 4, 16), "stem_width": 8}, "test_vit": {"img_size": 64}}


def build(backbone, head="isqrt", **options):
    options = {"num_classes": 5, "reduce_channels": 8, **SMALL.get(backbone, {}), **options}
    return covpool_plugins.create_model(backbone, head, **options)


def images(model, batch=2):
    channels, *size = input_size(model)
    return torch.randn(batch, channels, *(size if model.pretrained_cfg.get("fixed_input_size") else (64, 64)))


@pytest.fixture(params=FAMILIES)
def backbone(request):
    return request.param


@pytest.fixture(scope="module")
def built():
    """A copy of the model of a backbone, in evaluation, and images; the model is built once and never run.

    LeViT keeps what it computes in evaluation, which cannot be copied.
    """

    @functools.cache
    def build_once(backbone):
        model = build(backbone).eval()
        return model, images(model)

    return lambda backbone: copy.deepcopy(build_once(backbone))


@pytest.mark.fast_for("resnet10t", "test_convnext", "test_mambaout", "test_vit")
def test_layout_and_training_step_in_bfloat16(backbone):
    model = build(backbone, "svdpade")
    pool = model.get_submodule(model.get_classifier(name_only=True).rpartition(".")[0]).global_pool
    assert pool.input_fmt == FAMILIES[backbone] and pool.num_prefix_tokens == getattr(model, "num_prefix_tokens", 0)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(images(model)).float().square().mean()
    loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()] == []


def test_head_interface(backbone, built):
    model, x = built(backbone)
    vector = model.forward_head(model.forward_features(x), pre_logits=True)
    assert vector.shape == (2, model.head_hidden_size) and model.num_classes == 5
    assert torch.equal(model.get_classifier()(vector), model(x))
    name = model.get_classifier(name_only=True)
    assert model.pretrained_cfg["classifier"] == name and f"{name}.weight" in model.state_dict()
    unpooled = build(backbone, num_classes=0, global_pool="").eval()
    assert build(backbone, num_classes=0).eval()(x).shape == vector.shape
    model.reset_classifier(0, "")
    assert model(x).shape == unpooled(x).shape and model(x).ndim == len(FAMILIES[backbone])
    model.reset_classifier(3, "gap")
    assert model(x).shape == (2, 3)


def test_intermediates_are_the_backbones(backbone, built):
    model, x = built(backbone)
    plain = timm.create_model(backbone, num_classes=0, **SMALL.get(backbone, {})).eval()
    _, unexpected = plain.load_state_dict(model.state_dict(), strict=False)
    assert all(key.startswith(("head.", "second_order_head.")) for key in unexpected)
    if hasattr(model, "forward_intermediates"):
        last, maps = model.forward_intermediates(x, indices=1)
        expected = plain.forward_intermediates(x, indices=1)
        assert torch.equal(maps[0], expected[1][0]) and torch.equal(last, expected[0])
        assert torch.equal(last, model.forward_features(x))
    outputs = build(backbone, features_only=True, out_indices=[-1])(x)
    assert len(outputs) == 1 and outputs[0].ndim == 4


def test_gradient_checkpointing(backbone, built):
    model, x = built(backbone)
    expected = torch.autograd.grad(model(x).sum(), model.get_classifier().weight)[0]
    model.set_grad_checkpointing(True)
    recomputed = torch.autograd.grad(model(x).sum(), model.get_classifier().weight)[0]
    torch.testing.assert_close(recomputed, expected, rtol=1e-4, atol=1e-6)


def test_layer_decay_and_weight_decay(backbone, built):
    model, _ = built(backbone)
    groups = param_groups_layer_decay(model, layer_decay=0.5)
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert len(scales) == len(list(model.parameters())) and len(set(scales.values())) > 2
    assert scales[id(model.get_classifier().weight)] == 1.0
    groups = param_groups_layer_decay(build(backbone, layer_groups="head"), layer_decay=0.05)
    assert sorted({group["lr_scale"] for group in groups}) == [0.05, 1.0]
    undecayed = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    assert len(param_groups_weight_decay(model, no_weight_decay_list=undecayed)) == 2


@pytest.mark.fast_for("resnet10t", "test_vit")
def test_copies_devices_and_dtypes(backbone, built):
    model, x = built(backbone)
    assert torch.equal(copy.deepcopy(model)(x), model(x))
    assert all(p.is_meta for p in build(backbone, device="meta").parameters())
    assert build(backbone, dtype=torch.float64)(x.double()).dtype == torch.float64
    assert build(backbone, in_chans=1)(x[:, :1]).shape == (2, 5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.fast_for("resnet10t")
def test_traces(backbone, built):
    model, x = built(backbone)
    assert relative_error(torch.jit.trace(model, x)(x), model(x)) < 1e-5
    if backbone in ("resnet10t", "test_convnext", "test_vit"):
        options = {"leaf_modules": list(get_notrace_modules()), "autowrap_functions": list(get_notrace_functions())}
        _, nodes = get_graph_node_names(model, tracer_kwargs=options)
        graph = create_feature_extractor(model, return_nodes=[nodes[-1]], tracer_kwargs=options)
        assert torch.equal(graph(x)[nodes[-1]], model(x))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("head", ["isqrt", pytest.param("cbp", marks=pytest.mark.slow)])
def test_static_quantisation(head):
    """Any tracer of torch.fx takes the pool as one module, which stays in float32."""
    model, x = build("resnet10t", head).eval(), torch.randn(4, 3, 64, 64)
    prepared = prepare_fx(model, get_default_qconfig_mapping("x86"), (x,))
    prepared(x)
    quantised = convert_fx(prepared)
    assert quantised.conv1.get_submodule("0").weight().dtype == torch.qint8
    assert relative_error(quantised(x), model(x)) < 0.1


def test_operations_are_counted():
    model = build("resnet10t")
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(2, 3, 64, 64))
    of_pool = sum(counter.get_flop_counts()["SecondOrderResNet.head.global_pool"].values())
    assert 0 < of_pool < counter.get_total_flops()


def test_parameters_without_data_beside_buffers_with(monkeypatch):
    """As Accelerate's init_empty_weights builds models."""
    register = torch.nn.Module.register_parameter

    def without_data(module, name, parameter):
        register(module, name, parameter)
        if parameter is not None:
            module._parameters[name] = torch.nn.Parameter(parameter.to("meta"))

    monkeypatch.setattr(torch.nn.Module, "register_parameter", without_data)
    model = build("resnet10t")
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not model.bn1.running_mean.is_meta


@pytest.mark.slow
def test_compiles(backbone, built):
    model, x = built(backbone)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert relative_error(compiled(x), model(x)) < 1e-4


@pytest.mark.fast_for("resnet10t")
def test_exports_with_a_dynamic_batch(backbone, built):
    model, _ = built(backbone)
    sizes = {0: torch.export.Dim("batch", min=1, max=64)}
    example, other = images(model, 3), images(model, 4)
    if backbone in ("resnet10t", "test_efficientnet"):
        sizes |= {2: 32 * torch.export.Dim("rows", min=2, max=8), 3: 32 * torch.export.Dim("columns", min=2, max=8)}
        example, other = torch.randn(3, 3, 96, 128), torch.randn(4, 3, 64, 64)  # more and fewer positions than channels
    program = torch.export.export(model, (example,), dynamic_shapes=(sizes,)).module()
    assert relative_error(program(other), model(other)) < 1e-4


@pytest.mark.filterwarnings("ignore")
@pytest.mark.fast_for("resnet10t")
@pytest.mark.parametrize("exporter", [pytest.param("dynamo", marks=pytest.mark.slow), "legacy"])
@pytest.mark.parametrize("backbone", ["resnet10t", "test_convnext", "test_vit"])
def test_onnx(backbone, exporter, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    model = build(backbone, head_kwargs={"compute": "float32"}).eval()
    x = images(model, 3)
    if exporter == "dynamo":
        shapes = ({0: torch.export.Dim("batch")},)
        torch.onnx.export(model, (x,), tmp_path / "m.onnx", dynamo=True, dynamic_shapes=shapes, verbose=False)
    else:
        axes = {"x": {0: "batch"}}
        torch.onnx.export(model, (x,), tmp_path / "m.onnx", dynamo=False, input_names=["x"], dynamic_axes=axes)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    x = images(model, 2)
    (logits,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert relative_error(torch.from_numpy(logits), model(x)) < 1e-4


@pytest.mark.fast_for("test_vit", "so_vit_7")
@pytest.mark.parametrize("head", ["svdpade", "mpa"])
@pytest.mark.parametrize("backbone, options", [("test_vit", {}), ("so_vit_7", {"img_size": 64, "depth": 2})])
def test_class_token_is_fused_by_the_sum_of_two_classifiers(backbone, options, head):
    model = build(backbone, head, fuse_class_token=True, **options).eval()
    x = torch.randn(2, 3, 64, 64)
    tokens = model.forward_features(x)
    pool, fc = model.head.global_pool, model.head.fc
    width = pool.out_features
    expected = pool(tokens) @ fc.weight[:, :width].mT + tokens[:, 0] @ fc.weight[:, width:].mT + fc.bias
    assert relative_error(model(x), expected) < 1e-5
    assert pool.num_prefix_tokens == 1 and model.head_hidden_size == width + model.num_features
    assert not any(key.startswith("head.cls_fc") for key in model.state_dict())  # So-ViT's own
    model.train()(x).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_register_tokens_are_no_class_token():
    with pytest.raises(ValueError, match="needs a backbone with a class token"):
        build("vit_little_patch16_reg4_gap_256", fuse_class_token=True, img_size=64, depth=1)
    without = build("test_vit", class_token=False)
    assert without.head.global_pool.num_prefix_tokens == 0 and without(images(without)).shape == (2, 5)


def test_what_a_backbone_computes_once_has_numbers():
    model = build("convit_tiny")
    assert all(type(buffer) is torch.Tensor for buffer in model.buffers())
    model(images(model, 1)).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("backbone", ["test_convnext", "test_byobnet", "test_vit"])
def test_pruned_to_its_first_stages(backbone):
    model = build(backbone).eval()
    x = images(model)
    expected = model.forward_intermediates(x, indices=[1], intermediates_only=True)[0]
    model.prune_intermediate_layers([1])
    assert torch.equal(model.forward_intermediates(x, indices=[1], intermediates_only=True)[0], expected)
    assert model.num_classes == 0 and model(x).ndim > 2
