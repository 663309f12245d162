"""Gradients: against finite differences, and against a formula of another shape."""

import pytest
import torch
from support.matrices import SPECTRA, features, relative_error, with_spectrum

from covpool_plugins.linalg import IterativeMethod, covariance, covariance_sqrt, list_methods, resolve_method, sqrtm

METHODS = list_methods()
ITERATIVE = [name for name in METHODS if isinstance(resolve_method(name), IterativeMethod)]
SHAPES = [(8, 5), (6, 6), (5, 9)]


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("method", METHODS)
def test_sqrtm(method, spectrum):
    # The smallest eigenvalue (2e-5 for 'dominant') bounds the step that finite differences may take.
    A = with_spectrum(spectrum).requires_grad_()
    assert torch.autograd.gradcheck(lambda A: sqrtm(A, method), A, eps=1e-7 if spectrum == "dominant" else 1e-6)


@pytest.mark.parametrize("method", ITERATIVE)
def test_scaling_by_the_frobenius_norm(method):
    A = with_spectrum("well").requires_grad_()
    assert torch.autograd.gradcheck(lambda A: sqrtm(A, method, scaling="frobenius"), A)


@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("vectorize", ["full", "triu"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", METHODS)
def test_features_to_root(method, shape, vectorize, centered):
    X = features(*shape).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda X: covariance_sqrt(X, method, vectorize=vectorize, centered=centered), X, atol=1e-4
    )


@pytest.mark.parametrize("centered", [True, False])
def test_covariance(centered):
    X = features(4, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda X: covariance(X, centered), X)
    assert torch.autograd.gradgradcheck(lambda X: covariance(X, centered), X)


@pytest.mark.parametrize("method", ITERATIVE)
def test_second_derivatives_of_iterations(method):
    A = with_spectrum("well").requires_grad_()
    assert torch.autograd.gradgradcheck(lambda A: sqrtm(A, method), A)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", sorted(set(METHODS) - set(ITERATIVE)))
def test_missing_second_derivatives_are_refused(method, shape):
    for function in (lambda X: sqrtm(covariance(X), method), lambda X: covariance_sqrt(X, method)):
        X = features(*shape).requires_grad_()
        (grad,) = torch.autograd.grad(function(X).sum(), X, create_graph=True)
        with pytest.raises(RuntimeError, match="has no second derivative"):
            grad.sum().backward()


@pytest.mark.parametrize("method", ["exact", "svdpade"])
@pytest.mark.parametrize("spectrum", ["well", "repeated", "identity"])
def test_gradient_solves_the_lyapunov_equation(method, spectrum):
    A = with_spectrum(spectrum).requires_grad_()
    G = with_spectrum("well", 4)[2:]
    S = sqrtm(A, method)
    (R,) = torch.autograd.grad(S, A, G)
    assert relative_error(S @ R + R @ S, G) < 1e-12


@pytest.mark.parametrize("shape", [(32, 25), (24, 49)])
@pytest.mark.parametrize("compute, tolerance", [("mixed", 2e-6), ("float32", 1e-3)])
def test_precision_of_float32_gradients(shape, compute, tolerance):
    X = features(*shape).float()
    G = torch.randn(2, shape[0], shape[0], generator=torch.Generator().manual_seed(3))
    grads = []
    for x, how in [(X, compute), (X.double(), "float64")]:
        leaf = x.clone().requires_grad_()
        grads.append(torch.autograd.grad(covariance_sqrt(leaf, "exact", compute=how), leaf, G.to(x.dtype))[0])
    assert relative_error(grads[0], grads[1]) < tolerance


@pytest.mark.parametrize("method", METHODS)
def test_root_is_homogeneous_so_its_gradient_is_complete(method):
    # f(tX) = t f(X) for the features: <X̃, df/dX> = f, the identity that contribution maps rest on.
    X = features(8, 6).requires_grad_()
    W = torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    score = (W * covariance_sqrt(X, method)).sum()
    (grad,) = torch.autograd.grad(score, X)
    assert relative_error(((X - X.mean(-1, keepdim=True)) * grad).sum(), score.detach()) < 1e-10
