"""Evaluation under torch.func, in traces and exports, and gradients asked for within autocast."""

import io

import onnxruntime
import pytest
import torch
from support.matrices import maps
from support.whitening import correlated
from torch.ao.quantization import get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import prepare_fx
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.utils.flop_counter import FlopCounterMode

from covpool_plugins.errors import DtypeError, ExportError
from covpool_plugins.whitening import PCANorm1d, PCANorm2d, ZCANorm1d, ZCANorm2d, whitening_coloring

LAYERS = {
    "zca": lambda: ZCANorm2d(8, 2),
    "covariance": lambda: ZCANorm2d(8, 4, average="covariance"),
    "pca": lambda: PCANorm2d(8, 3, groups=2),
    "plain": lambda: ZCANorm2d(8, affine=False),
}
SIZES = ((1, 8, 4, 4), (5, 8, 7, 2), (2, 8, 1, 1))
each_layer = pytest.mark.parametrize("name", LAYERS)


def evaluated(name, dtype=torch.float32):
    torch.manual_seed(0)
    layer = LAYERS[name]().to(dtype)
    for p in layer.parameters():
        torch.nn.init.normal_(p)
    layer(correlated(dtype=dtype))
    return layer.eval()


@each_layer
def test_vmap_of_the_gradient(name):
    layer, x = evaluated(name, torch.float64), torch.randn(3, 8, 2, 2, dtype=torch.float64)

    def loss(parameters, image):
        return functional_call(layer, parameters, (image[None],)).pow(3).sum()

    parameters = dict(layer.named_parameters())
    of_parameters, of_images = vmap(grad(loss, argnums=(0, 1)), (None, 0))(parameters, x)
    for k, image in enumerate(x):
        leaf = image.clone().requires_grad_()
        loss(parameters, leaf).backward()
        torch.testing.assert_close(of_images[k], leaf.grad)
        for key, parameter in parameters.items():
            torch.testing.assert_close(of_parameters[key][k], parameter.grad)
            parameter.grad = None
    torch.testing.assert_close(vmap(lambda image: layer(image[None])[0])(x), layer(x))
    last = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(vmap(layer)(last[None])[0], layer(x))


@each_layer
def test_forward_mode(name):
    layer, x, H = evaluated(name, torch.float64), *torch.randn(2, 3, 8, 2, 2, dtype=torch.float64).unbind(0)
    y, along = jvp(layer, (x,), (H,))
    torch.testing.assert_close(y, layer(x))
    torch.testing.assert_close(along, layer(x + H) - layer(x))  # it is affine
    torch.testing.assert_close(jacfwd(layer)(x[:1]), jacrev(layer)(x[:1]))
    torch.testing.assert_close(
        hessian(lambda x: layer(x).pow(3).sum())(x[:1, :, :1, :1]).shape, torch.Size([1, 8, 1, 1] * 2)
    )


@pytest.mark.parametrize("training", [True, False])
@each_layer
def test_backward_within_autocast(name, training):
    layer, x, G = evaluated(name).train(training), torch.randn(4, 8, 3, 3), torch.randn(4, 8, 3, 3)
    gradients = []
    for enabled in (False, True):
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            gradients.append(torch.autograd.grad(y, [leaf, *layer.parameters()], G))
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


@pytest.mark.parametrize("with_gradient", [True, False])
@each_layer
def test_traces_can_be_saved(name, with_gradient):
    layer, file = evaluated(name), io.BytesIO()
    with torch.set_grad_enabled(with_gradient):
        torch.jit.save(torch.jit.trace(layer, torch.randn(3, 8, 5, 5)), file)
    file.seek(0)
    loaded = torch.jit.load(file)
    for size in SIZES:
        x = torch.randn(size)
        torch.testing.assert_close(loaded(x), layer(x))


def test_vectors_are_traced_and_mapped():
    for layer in (ZCANorm1d(8, 2).eval(), PCANorm1d(8, 3).eval()):
        x = torch.randn(5, 8)
        torch.testing.assert_close(torch.jit.trace(layer, x)(x[:2]), layer(x[:2]))
        torch.testing.assert_close(vmap(layer)(x[None])[0], layer(x))
        torch.testing.assert_close(layer(x), layer(x.unsqueeze(-1)).squeeze(-1))


def test_without_statistics_evaluation_is_traced_too():
    layer = ZCANorm2d(8, 2, method="newton_schulz", track_running_stats=False).eval()
    x, file = correlated(dtype=torch.float32), io.BytesIO()
    with torch.no_grad():
        torch.jit.save(torch.jit.trace(layer, x), file)
    file.seek(0)
    torch.testing.assert_close(torch.jit.load(file)(2 * x), layer(2 * x))


def test_scripts_are_refused():
    with pytest.raises(ExportError, match=r"torch\.jit\.script cannot take a ZCANorm2d"):
        torch.jit.script(torch.nn.Sequential(ZCANorm2d(8)))


@pytest.mark.parametrize("training", [True, False])
def test_operations_are_counted(training):
    layer = ZCANorm2d(8, 2).train(training)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        layer(torch.randn(4, 8, 5, 5))
    # Matrices of 4x4 for two groups at 100 positions, once for the map and once more for the covariance.
    assert counter.get_total_flops() >= (1 + training) * 2 * 2 * 4 * 4 * 100


@pytest.mark.parametrize("training", [True, False])
def test_a_leaf_for_fx(training):
    model = torch.nn.Sequential(torch.nn.Conv2d(8, 8, 1), ZCANorm2d(8, 2), torch.nn.ReLU()).train(training)
    traced = torch.fx.symbolic_trace(model)
    assert [str(node.target) for node in traced.graph.nodes] == ["input", "0", "1", "2", "output"]
    x = torch.randn(4, 8, 3, 3)
    torch.testing.assert_close(traced(x), model(x))
    with pytest.raises(DtypeError, match="the input of ZCANorm2d must be a tensor, got Proxy"):
        torch.fx.symbolic_trace(model[1])  # a leaf has nothing in it


def test_quantisation_leaves_it_in_float():
    model = torch.nn.Sequential(torch.nn.Conv2d(8, 8, 1), evaluated("zca")).eval()
    x = torch.randn(4, 8, 3, 3)
    prepared = prepare_fx(model, get_default_qconfig_mapping(), (x,))
    torch.testing.assert_close(prepared(x), model(x))


@pytest.mark.parametrize("strict", [pytest.param(True, marks=pytest.mark.slow), False])
@each_layer
def test_exports_with_any_batch_height_and_width(name, strict):
    layer, Dim = evaluated(name), torch.export.Dim
    sizes = ({0: Dim("batch"), 2: Dim("height"), 3: Dim("width")},)
    program = torch.export.export(layer, (torch.randn(3, 8, 5, 6),), dynamic_shapes=sizes, strict=strict).module()
    for size in SIZES:
        x = torch.randn(size)
        torch.testing.assert_close(program(x), layer(x))


@pytest.mark.parametrize(
    "name, dynamo", [(name, False) for name in LAYERS] + [pytest.param("zca", True, marks=pytest.mark.slow)]
)
def test_onnx_with_any_batch_height_and_width(name, dynamo, tmp_path):
    layer, file = evaluated(name), tmp_path / "layer.onnx"
    axes = {0: "batch", 2: "height", 3: "width"}
    dynamic = dict(dynamic_shapes=(axes,), verbose=False) if dynamo else dict(dynamic_axes={"x": axes})
    torch.onnx.export(layer, (torch.randn(3, 8, 5, 6),), file, dynamo=dynamo, input_names=["x"], **dynamic)
    session = onnxruntime.InferenceSession(file)
    for size in SIZES:
        x = torch.randn(size)
        (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(y), layer(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("average", ["inverse_root", "covariance"])
@pytest.mark.parametrize("make", [ZCANorm2d, PCANorm2d])
def test_another_default_device(make, average):
    """A default on which nothing can be computed shows every tensor that is made without a device."""
    theirs, x = torch.nn.BatchNorm2d(8), correlated(dtype=torch.float32)
    with torch.device("meta"):
        layer = make(8, groups=2, average=average, device="cpu")
        layer(x.requires_grad_()).sum().backward()
        layer.eval()(x)
        layer.whitening_error(x)
        layer.load_state_dict(theirs.state_dict())
        layer.reset_parameters()
        made = whitening_coloring(x, x, 0.5)
    assert {tensor.device.type for tensor in (*layer.state_dict().values(), made)} == {"cpu"}


COLOURED = [maps(4, 2, 3, 1), maps(4, 3, 3, 1, seed=1)]


@pytest.mark.parametrize("method", ["exact", "newton_schulz"])
def test_whitening_and_colouring_in_forward_mode(method):
    def result(content, style):
        return whitening_coloring(content, style, method=method, eps=1e-3)

    for of_forward, of_reverse in zip(
        jacfwd(result, (0, 1))(*COLOURED), jacrev(result, (0, 1))(*COLOURED), strict=True
    ):
        torch.testing.assert_close(of_forward, of_reverse)


@pytest.mark.parametrize("method", ["exact", "svdpi", "newton_schulz", "mpa"])
def test_whitening_and_colouring_under_vmap_of_the_gradient(method):
    content, style = maps(4, 3, 3), maps(4, 3, 3, seed=1)

    def loss(content, style):
        return whitening_coloring(content[None], style[None], method=method, eps=1e-3).pow(3).sum()

    mapped = vmap(grad(loss, (0, 1)))(content, style)
    for k, pair in enumerate(zip(content, style, strict=True)):
        torch.testing.assert_close([g[k] for g in mapped], list(grad(loss, (0, 1))(*pair)))


@pytest.mark.parametrize("method", ["exact", "newton_schulz", "mpa"])
def test_whitening_and_colouring_within_autocast(method):
    content, style = maps(6, 5, 5).float(), maps(6, 4, 4, seed=1).float()
    gradients = []
    for enabled in (False, True):
        leaves = content.clone().requires_grad_(), style.clone().requires_grad_()
        y = whitening_coloring(*leaves, method=method, eps=1e-3)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            gradients.append(torch.autograd.grad(y, leaves, content))
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


@pytest.mark.parametrize("dynamo", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_whitening_and_colouring_by_products_exports_to_onnx(dynamo, tmp_path):
    class Transfer(torch.nn.Module):
        def forward(self, content, style):
            return whitening_coloring(content, style, 0.7, "newton_schulz", groups=2, eps=1e-3)

    inputs, axes = (torch.randn(2, 8, 5, 6), torch.randn(2, 8, 4, 4)), {0: "batch", 2: "height"}
    dynamic = dict(dynamic_axes={"content": axes, "style": {0: "batch", 2: "rows"}})
    if dynamo:
        dynamic = dict(dynamic_shapes=(axes, {0: "batch", 2: "rows"}), verbose=False)
    file, names = tmp_path / "transfer.onnx", ["content", "style"]
    torch.onnx.export(Transfer().eval(), inputs, file, dynamo=dynamo, input_names=names, **dynamic)
    session = onnxruntime.InferenceSession(file)
    for batch, height, rows in ((1, 7, 3), (3, 4, 9)):
        content, style = torch.randn(batch, 8, height, 6), torch.randn(batch, 8, rows, 4)
        (y,) = session.run(None, {"content": content.numpy(), "style": style.numpy()})
        torch.testing.assert_close(torch.from_numpy(y), Transfer()(content, style), atol=1e-4, rtol=1e-4)
