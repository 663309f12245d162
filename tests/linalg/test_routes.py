"""eigh and matrix products are two routes to one root; ``auto`` takes products on a GPU and in an export."""

import pytest
import torch
from support.matrices import features, relative_error

from covpool_plugins.linalg import ExactInverse, covariance, covariance_sqrt, inv_sqrtm, resolve_method, sqrtm

FUNCTIONS = {
    "fused, by the Gram matrix": (lambda X, **o: covariance_sqrt(X, **o), (8, 5)),
    "fused, by the covariance": (lambda X, **o: covariance_sqrt(X, vectorize="triu", **o), (5, 9)),
    "root": (lambda X, **o: sqrtm(covariance(X), "svdpade", **o), (5, 9)),
    "inverse root": (lambda X, **o: inv_sqrtm(covariance(X), **o), (5, 9)),
}


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-6), (torch.float32, 2e-4)])
@pytest.mark.parametrize("function, shape", FUNCTIONS.values(), ids=FUNCTIONS)
def test_both_routes_give_the_same_root_and_gradient(function, shape, dtype, tolerance):
    X = features(*shape).to(dtype)
    results = []
    for route in ("eigh", "products"):
        leaf = X.clone().requires_grad_()
        out = function(leaf, route=route)
        results.append((out.detach(), *torch.autograd.grad(out.sin().sum(), leaf)))
    for eigh, products in zip(*results, strict=True):
        assert relative_error(products, eigh) < tolerance
    assert torch.equal(function(X), function(X, route="eigh"))  # on a CPU


@pytest.mark.parametrize("compute, tolerance", [("mixed", 1e-6), ("float64", 1e-6), ("float32", 2e-4)])
def test_products_keep_the_precision_that_was_asked_for(compute, tolerance):
    X = features(24, 49).float()
    exact = covariance_sqrt(X.double(), "exact")
    assert relative_error(covariance_sqrt(X, "svdpade", compute=compute, route="products"), exact) < tolerance


def test_products_have_second_derivatives():
    A = covariance(features(3, 40, batch=1)).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda A: sqrtm(A, route="products"), (A,), atol=1e-6)


@pytest.mark.parametrize("is_cuda, onnx, exporting", [(True, False, False), (False, True, False), (False, False, True)])
def test_auto_takes_products_on_a_gpu_and_in_an_export(is_cuda, onnx, exporting, monkeypatch):
    class X:
        is_cuda = False

    exact = resolve_method("exact")
    others = [resolve_method("exact", route="eigh"), resolve_method("svdtopn"), ExactInverse()]
    assert not exact.by_products(X)
    monkeypatch.setattr(X, "is_cuda", is_cuda)
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: onnx)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: exporting)
    assert exact.by_products(X)
    # Their forward is the same root; a GPU keeps their gradients.
    assert resolve_method("svdpi").by_products(X) != is_cuda
    # The inverse root of a singular matrix is the pseudo-inverse by eigh alone.
    assert not any(method.by_products(X) for method in others)


def test_an_exported_graph_has_no_decomposition():
    class Root(torch.nn.Module):
        def forward(self, X):
            return covariance_sqrt(X, "svdpade")

    assert "eigh" not in str(torch.export.export(Root(), (features(4, 6),)).graph)
