"""torch.compile, torch.export, vmap and jacrev."""

import pytest
import torch
from support.matrices import features, relative_error

from covpool_plugins.linalg import covariance, covariance_sqrt, list_methods, sqrtm

METHODS = list_methods()
SHAPES = [(6, 4), (4, 6)]
FUNCTIONS = {
    "fused": lambda X, method: covariance_sqrt(X, method, vectorize="triu"),
    "composed": lambda X, method: sqrtm(covariance(X), method),
}


@pytest.fixture(params=[f"{kind}-{method}" for kind in FUNCTIONS for method in METHODS])
def function(request):
    kind, _, method = request.param.partition("-")
    return lambda X: FUNCTIONS[kind](X, method)


def _check_compiled(function, shape, backend):
    torch.compiler.reset()
    X = features(*shape).float().requires_grad_()
    out = torch.compile(function, fullgraph=True, backend=backend)(X)
    expected = function(X)
    grads = [torch.autograd.grad(y.sin().sum(), X)[0] for y in (out, expected)]
    assert relative_error(out, expected) < 1e-5 and relative_error(*grads) < 1e-4


@pytest.mark.fast_for("svdpade", "isqrt", "mpa")
@pytest.mark.parametrize("shape", SHAPES)
def test_compiles_without_graph_breaks(function, shape):
    _check_compiled(function, shape, "aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_compiles_with_inductor(function, shape):
    _check_compiled(function, shape, "inductor")


@pytest.mark.parametrize("shape", SHAPES)
def test_vmap(function, shape):
    X = features(*shape, batch=6).view(2, 3, *shape)
    for dim in (0, 1):
        assert relative_error(torch.func.vmap(function, dim, dim)(X), function(X)) < 1e-13


@pytest.mark.parametrize("shape", SHAPES)
def test_jacobian(function, shape, request):
    X = features(4, 6)[0] if "denman_beavers" in request.node.name else features(*shape)[0]
    expected = torch.autograd.functional.jacobian(function, X)
    assert relative_error(torch.func.jacrev(function)(X), expected) < 1e-11


@pytest.mark.fast_for("svdpade", "isqrt", "mpa")
@pytest.mark.parametrize("shape", SHAPES)
def test_export_with_a_dynamic_batch(function, shape):
    class Wrapped(torch.nn.Module):
        def forward(self, X):
            return function(X)

    X = features(*shape, batch=3).float()
    program = torch.export.export(Wrapped(), (X,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    other = features(*shape, batch=5, seed=1).float()
    assert relative_error(program.module()(other), function(other)) < 1e-5
