"""ONNX, by both exporters: every method that takes matrix products only, and a clear refusal from every other."""

import logging
import subprocess
import sys

import pytest
import torch
from support.matrices import features, relative_error

from covpool_plugins.errors import ExportError
from covpool_plugins.linalg import covariance, covariance_sqrt, inv_sqrtm, list_methods, logm, lyapunov, powm, sqrtm

onnxruntime = pytest.importorskip("onnxruntime")

# name -> (function, shape of one input, whether ONNX can express it)
CASES = {
    "covariance": (covariance, (6, 4), True),
    "lyapunov": (lambda A: lyapunov(A @ A.transpose(1, 2), A + A.transpose(1, 2), "newton_schulz"), (4, 4), True),
    "powm": (lambda A: powm(A @ A.mT, 0.3), (4, 4), False),
    "logm": (lambda A: logm(A @ A.mT, "inverse_scaling"), (4, 4), False),
    # In float32: the older exporter's diagonal of a float64 matrix is one that onnxruntime refuses to load.
    "svdpade by products": (
        lambda X: covariance_sqrt(X, "svdpade", route="products", compute="float32"),
        (4, 9),
        True,
    ),
}
for method in list_methods():
    exports = method in list_methods(matmul_only=True)
    for shape in [(6, 4), (4, 6)]:
        packed = lambda X, method=method: covariance_sqrt(X, method, vectorize="triu")  # noqa: E731
        CASES[f"covariance_sqrt-{method}-{shape[0]}x{shape[1]}"] = (packed, shape, exports)
    CASES[f"sqrtm-{method}"] = (lambda X, method=method: sqrtm(covariance(X), method), (4, 6), exports)
for method in list_methods("inv_sqrtm"):
    exports = method in list_methods("inv_sqrtm", matmul_only=True)
    CASES[f"inv_sqrtm-{method}"] = (
        lambda X, method=method: inv_sqrtm(covariance(X), method, eps=0.1),
        (4, 6),
        exports,
    )
EXPORTED = [name for name, (*_, exports) in CASES.items() if exports]
REFUSED = [name for name in CASES if name not in EXPORTED]


class Function(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, X):
        return self.function(X)


def _export(name, exporter, path):
    function, shape, _ = CASES[name]
    X = features(*shape, batch=3).float()
    module = Function(function).eval()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    if exporter == "dynamo":
        batch = ({0: torch.export.Dim("batch")},)
        torch.onnx.export(module, (X,), path, dynamo=True, dynamic_shapes=batch, verbose=False)
    else:
        axes = {"X": {0: "batch"}}
        torch.onnx.export(module, (X,), path, dynamo=False, input_names=["X"], dynamic_axes=axes)


@pytest.mark.filterwarnings("ignore")  # the exporters' own, about themselves
@pytest.mark.fast_for("covariance", "svdpade by products")
@pytest.mark.parametrize("exporter", ["dynamo", "legacy"])
@pytest.mark.parametrize("name", EXPORTED)
def test_exported_functions_give_the_same_numbers(name, exporter, tmp_path):
    _export(name, exporter, tmp_path / "function.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "function.onnx", providers=["CPUExecutionProvider"])
    function, shape, _ = CASES[name]
    for batch in (1, 5):
        X = features(*shape, batch=batch, seed=batch).float()
        (found,) = session.run(None, {session.get_inputs()[0].name: X.numpy()})
        assert relative_error(torch.from_numpy(found), function(X)) < 1e-5


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REFUSED)
def test_others_say_which_would(name, tmp_path):
    with pytest.raises(ExportError, match="needs a matrix decomposition, which ONNX does not have") as error:
        _export(name, "legacy", tmp_path / "function.onnx")
    if "sqrtm" in name or "covariance_sqrt" in name:
        assert "isqrt" in str(error.value) or "newton_schulz" in str(error.value)


@pytest.mark.filterwarnings("ignore")
def test_the_newer_exporter_names_the_decomposition(tmp_path):
    # It tries other ways of recording the graph when one raises, so what is left is its own message.
    with pytest.raises(torch.onnx.errors.OnnxExporterError, match="eigh"):
        _export("sqrtm-exact", "dynamo", tmp_path / "function.onnx")


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
