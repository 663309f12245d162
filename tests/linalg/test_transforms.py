"""torch.compile, torch.export, ONNX by both exporters, vmap and jacrev of every function with every method."""

import subprocess
import sys

import pytest
import torch
from support.exporting import parametrize_names, run_onnx, to_onnx
from support.matrices import features, orthogonal, relative_error

from covpool_plugins import linalg
from covpool_plugins.errors import ExportError
from covpool_plugins.linalg import covariance, covariance_sqrt, inv_sqrtm, list_methods, resolve_method, sqrtm

REGULAR, WIDE = (4, 6), (6, 4)  # features whose covariance has full rank, and features with fewer positions


def _lyapunov(X, method):
    A = covariance(X)
    return linalg.lyapunov(A, A @ A, method)


# name -> (function of features, their shape, whether ONNX can express it)
FUNCTIONS = {
    "covariance": (covariance, REGULAR, True),
    "second_moment": (lambda X: covariance(X, centered=False), REGULAR, True),
    "smaller_covariance": (linalg.smaller_covariance, WIDE, True),
    "powm": (lambda X: linalg.powm(covariance(X), 0.3), REGULAR, False),
    "covariance_powm": (lambda X: linalg.covariance_powm(X, 0.3), WIDE, False),
    "logm": (lambda X: linalg.logm(covariance(X)), REGULAR, False),
    "powm-half": (lambda X: linalg.powm(covariance(X), 1.5), REGULAR, True),
    "covariance_powm-half": (lambda X: linalg.covariance_powm(X, 0.5), WIDE, True),
    "expm_neg": (lambda X: linalg.expm_neg(covariance(X)), REGULAR, True),
    "lyapunov-exact": (lambda X: _lyapunov(X, "exact"), REGULAR, False),
    "lyapunov-newton_schulz": (lambda X: _lyapunov(X, "newton_schulz"), REGULAR, True),
    "covariance_log1p": (lambda X: linalg.covariance_log1p(X, 0.1), WIDE, False),
    "by-eigh": (lambda X: covariance_sqrt(X, "svdpade", route="eigh"), REGULAR, False),
    "float32-products": (lambda X: covariance_sqrt(X, "svdpade", route="products", compute="float32"), REGULAR, True),
}
for m in list_methods("inv_sqrtm"):
    exports = m in list_methods("inv_sqrtm", exportable=True)
    FUNCTIONS[f"inv_sqrtm-{m}"] = (lambda X, m=m: inv_sqrtm(covariance(X), m, eps=0.1), REGULAR, exports)
for m in list_methods():
    exports = m in list_methods(exportable=True)
    FUNCTIONS[f"sqrtm-{m}"] = (lambda X, m=m: sqrtm(covariance(X), m), REGULAR, exports)
    for shape in (REGULAR, WIDE):
        fused = lambda X, m=m: covariance_sqrt(X, m, vectorize="triu")  # noqa: E731
        FUNCTIONS[f"covariance_sqrt-{m}-{shape[0]}x{shape[1]}"] = (fused, shape, exports)
EXPORTABLE = [name for name, (*_, exports) in FUNCTIONS.items() if exports]
REFUSED = [name for name in FUNCTIONS if name not in (*EXPORTABLE, "lyapunov-exact")]


def every_function(*fast, among=FUNCTIONS):
    return parametrize_names(fast, among)


class Module(torch.nn.Module):
    def __init__(self, name):
        super().__init__()
        self.function = FUNCTIONS[name][0]

    def forward(self, X):
        return self.function(X)


# An eigen-decomposition, and matrix products with a Cholesky factorisation.
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@every_function("second_moment", "covariance_sqrt-svdpade-6x4", "covariance_sqrt-mpa-6x4", "sqrtm-mpa")
def test_compiles_without_graph_breaks(name, backend):
    torch.compiler.reset()
    function, shape, _ = FUNCTIONS[name]
    X = features(*shape).float().requires_grad_()
    out = torch.compile(function, fullgraph=True, backend=backend)(X)
    expected = function(X)
    grads = [torch.autograd.grad(y.sin().sum(), X)[0] for y in (out, expected)]
    assert relative_error(out, expected) < 1e-5 and relative_error(*grads) < 1e-4


@every_function("covariance_sqrt-svdtaylor-4x6", "covariance_sqrt-isqrt-4x6")
def test_export_with_a_dynamic_batch(name):
    function, shape, _ = FUNCTIONS[name]
    X = features(*shape, batch=3).float()
    program = torch.export.export(Module(name), (X,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    other = features(*shape, batch=5, seed=1).float()
    assert relative_error(program.module()(other), function(other)) < 1e-5


@pytest.mark.filterwarnings("ignore")  # what torch.jit says of itself
@every_function(*FUNCTIONS)
def test_traces_can_be_saved_and_show_the_products(name, tmp_path):
    function, shape, _ = FUNCTIONS[name]
    X = features(*shape, batch=3)
    traced = torch.jit.trace(Module(name), X.clone().requires_grad_(), check_trace=False)
    torch.jit.save(traced, tmp_path / "traced.pt")
    other = features(*shape, batch=5, seed=1)
    assert relative_error(torch.jit.load(tmp_path / "traced.pt")(other), function(other)) < 1e-12
    assert any(node.kind() in ("aten::matmul", "aten::bmm", "aten::mm") for node in traced.inlined_graph.nodes())


def _loss(function):
    return lambda X: function(X).sin().sum()


@every_function(*FUNCTIONS)
def test_vmap_and_gradients(name):
    function, shape, _ = FUNCTIONS[name]
    X = features(*shape, batch=6).view(2, 3, *shape).requires_grad_()
    out = function(X)
    (grad,) = torch.autograd.grad(out.sin().sum(), X)
    X = X.detach()
    for dim in (0, 1):
        assert relative_error(torch.func.vmap(function, dim, dim)(X), out) < 1e-13
    tolerance = 1e-6 if name == "covariance_sqrt-denman_beavers-6x4" else 1e-11  # magnifies rounding in the null space
    of_each = torch.func.vmap(torch.func.grad(_loss(function)))(X)
    of_all = torch.func.grad(lambda X: torch.func.vmap(_loss(function))(X).sum())(X)
    assert relative_error(of_each, grad) < tolerance and relative_error(of_all, grad) < tolerance


@pytest.mark.parametrize("power", [lambda X, p: linalg.powm(covariance(X), p), linalg.covariance_powm])
def test_transforms_of_a_learned_exponent(power):
    X, p = features(*WIDE, batch=3), torch.tensor(0.4, dtype=torch.float64)
    loss = lambda X, p: power(X, p).sin().sum()  # noqa: E731
    of_each = torch.func.vmap(torch.func.grad(loss, (0, 1)), (0, None))(X, p)
    for k in range(3):
        leaves = X[k].clone().requires_grad_(), p.clone().requires_grad_()
        expected = torch.autograd.grad(loss(*leaves), leaves)
        assert all(relative_error(of[k], grad) < 1e-11 for of, grad in zip(of_each, expected, strict=True))
    slope = (loss(X, p + 1e-6) - loss(X, p - 1e-6)) / 2e-6
    assert torch.func.jacfwd(loss, 1)(X, p).item() == pytest.approx(slope.item(), rel=1e-7)
    with pytest.raises(ValueError, match="p must be one number for all matrices, got one that vmap maps over"):
        torch.func.vmap(power)(X, torch.ones(3, dtype=torch.float64))


@every_function(*FUNCTIONS)
def test_forward_mode(name):
    function, shape, _ = FUNCTIONS[name]
    X, H = features(*shape, batch=2), features(*shape, batch=2, seed=1)
    tolerance = 1e-5 if name == "covariance_sqrt-denman_beavers-6x4" else 1e-11
    forward, backward = torch.func.jacfwd(function)(X[0]), torch.func.jacrev(function)(X[0])
    assert relative_error(forward, backward) < tolerance
    _, tangent = torch.func.jvp(function, (X,), (H,))
    assert relative_error(tangent[0], torch.tensordot(backward, H[0], 2)) < tolerance
    _, mapped = torch.func.jvp(torch.func.vmap(function), (X,), (H,))
    assert relative_error(mapped, tangent) < tolerance
    with torch.autograd.forward_ad.dual_level():
        dual = function(torch.autograd.forward_ad.make_dual(X, H))
        assert relative_error(torch.autograd.forward_ad.unpack_dual(dual).tangent, tangent) < tolerance


SECOND = [name for name in FUNCTIONS if not any(f"-svd{other}" in name for other in ("t", "pi", "original"))]


@every_function("powm", "lyapunov-exact", "covariance_sqrt-svdpade-4x6", "covariance_sqrt-svdpade-6x4", among=SECOND)
def test_hessian(name):
    function, shape, _ = FUNCTIONS[name]
    X = features(*shape, batch=2)
    of, _, method = name.partition("-")
    if of.endswith("sqrtm") and getattr(resolve_method(method, of), "gradient", "exact") == "auto":
        with pytest.raises(RuntimeError, match="no further derivative"):
            torch.func.hessian(_loss(function))(X[0])
        return
    expected = torch.autograd.functional.hessian(_loss(function), X[1])
    result = torch.func.vmap(torch.func.hessian(_loss(function)))(X)[1]
    assert relative_error(result, expected) < (1e-3 if "denman_beavers-6x4" in name else 1e-9)


def _decaying(channels, height, width):
    """Maps (1, C, H, W) like those of a trained network: singular values that fall to 1e-4 of the largest."""
    basis = orthogonal(channels)[:, : min(channels, height * width - 1)]
    X = torch.randn(height * width, basis.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    V = torch.linalg.qr(X - X.mean(0))[0]
    X = basis * torch.logspace(0, -4, basis.shape[1], dtype=torch.float64) @ V.mT
    return X.view(1, channels, height, width).float()


ACROSS = {
    "svdtaylor": lambda X: covariance_sqrt(X, "svdtaylor", vectorize="triu"),
    "svdpade": covariance_sqrt,
    "svdnewton": lambda X: covariance_sqrt(X, "svdnewton"),
    "isqrt": lambda X: covariance_sqrt(X, "isqrt"),
    "powm": lambda X: linalg.covariance_powm(X, 0.5),
    "expm_neg": lambda X: linalg.expm_neg(covariance(X)),
}


class OfMaps(torch.nn.Module):
    def __init__(self, name):
        super().__init__()
        self.function = ACROSS[name]

    def forward(self, maps):
        return self.function(maps.flatten(2))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [n if n == "svdtaylor" else pytest.param(n, marks=pytest.mark.slow) for n in ACROSS])
def test_export_with_height_and_width_across_the_number_of_channels(name, tmp_path):
    """With more positions than channels and with fewer, whichever the example had."""
    module, maps = OfMaps(name).eval(), [_decaying(8, *size) for size in ((4, 5), (2, 3), (2, 4))]
    program = torch.export.export(module, (maps[0].repeat(2, 1, 1, 1),), dynamic_shapes=(_open(0, 2, 3),))
    torch.onnx.export(
        module, (maps[0],), tmp_path / "m.onnx", dynamo=False, input_names=["x"], dynamic_axes={"x": [0, 2, 3]}
    )
    for X, by_onnx in zip(maps, run_onnx(tmp_path / "m.onnx", *maps), strict=True):
        expected = module(X)
        assert relative_error(program.module()(X), expected) < 1e-3 and relative_error(by_onnx, expected) < 1e-3


def _open(*dimensions):
    return {dimension: torch.export.Dim(f"d{dimension}") for dimension in dimensions}


def _to_onnx(name, exporter, path):
    pytest.importorskip("onnx")
    to_onnx(Module(name), [features(*FUNCTIONS[name][1], batch=3).float()], exporter, path)


@pytest.mark.filterwarnings("ignore")  # the exporters' own, about themselves
@pytest.mark.parametrize("exporter", ["dynamo", "legacy"])
@every_function(among=EXPORTABLE)  # the pools have fast ones
def test_onnx_gives_the_same_numbers(name, exporter, tmp_path):
    _to_onnx(name, exporter, tmp_path / "function.onnx")
    function, shape, _ = FUNCTIONS[name]
    batches = [features(*shape, batch=batch, seed=batch).float() for batch in (1, 5)]
    for X, result in zip(batches, run_onnx(tmp_path / "function.onnx", *batches), strict=True):
        assert relative_error(result, function(X)) < 1e-5


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REFUSED)
def test_onnx_is_refused_and_what_would_do_is_named(name, tmp_path):
    with pytest.raises(ExportError, match="needs a matrix decomposition, which ONNX does not have") as error:
        _to_onnx(name, "legacy", tmp_path / "function.onnx")
    if "sqrt" in name:
        assert "isqrt" in str(error.value) or "newton_schulz" in str(error.value)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_newer_exporter_names_the_decomposition(tmp_path):
    # It tries other ways of recording the graph when one raises, so what is left is its own message.
    with pytest.raises(torch.onnx.errors.OnnxExporterError, match="eigh"):
        _to_onnx("logm", "dynamo", tmp_path / "function.onnx")


@pytest.mark.slow
def test_exports_in_a_fresh_process():
    """What is computed once must not be computed of the fake tensors of an export."""
    program = """
import torch
from covpool_plugins.linalg import Minimax, covariance_sqrt

class Function(torch.nn.Module):
    def forward(self, X):
        return covariance_sqrt(X, "minimax") + covariance_sqrt(X, Minimax(steps=4))

X = torch.randn(2, 4, 9)
exported = torch.export.export(Function(), (X,)).module()
torch.testing.assert_close(exported(X), Function()(X))
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@every_function(*FUNCTIONS)
def test_forward_over_forward_mode_is_right_or_refused(name):
    """PyTorch would take the second derivative of a custom function for zero."""
    function, shape, _ = FUNCTIONS[name]
    X = features(*shape, batch=1)[0]
    weights = torch.linspace(-1, 1, function(X).numel(), dtype=X.dtype)
    along = torch.linspace(1, 2, X.numel(), dtype=X.dtype).view_as(X)

    def slope(X):
        return torch.func.jvp(lambda X: (function(X).flatten() * weights).sum(), (X,), (along,))[1]

    try:
        second = torch.func.jvp(slope, (X,), (along,))[1]
    except RuntimeError as error:
        assert "forward derivative" in str(error) or "further derivative" in str(error)
    else:
        step = 1e-5
        expected = (slope(X + step * along) - slope(X - step * along)) / (2 * step)
        assert relative_error(second, expected) < 1e-3
