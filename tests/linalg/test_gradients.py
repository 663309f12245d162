"""Gradients: against finite differences, and against a formula of another shape."""

from typing import get_args

import pytest
import torch
from support.matrices import SPECTRA, features, relative_error, with_spectrum

from covpool_plugins.linalg import (
    EigenMethod,
    Exact,
    IterativeMethod,
    covariance,
    covariance_powm,
    covariance_sqrt,
    expm_neg,
    list_methods,
    logm,
    powm,
    resolve_method,
    sqrtm,
)
from covpool_plugins.linalg.methods.base import Scaling

METHODS = {name: resolve_method(name) for name in list_methods()}
ITERATIVE = [name for name, method in METHODS.items() if isinstance(method, IterativeMethod)]
EIGEN = [name for name, method in METHODS.items() if isinstance(method, EigenMethod)]
# Methods whose gradient is the derivative of what they compute, with the option that says so.
EXACT = {name: {} for name in EIGEN if isinstance(METHODS[name], Exact)}
EXACT |= {name: {"gradient": "exact"} for name in ITERATIVE}
SURROGATE = [name for name in METHODS if name not in EXACT]
SHAPES = [(8, 5), (6, 6), (5, 9)]
# One of each kind, for finite differences; svdpade is exact, and newton_schulz_lyapunov is isqrt with other options.
KINDS = pytest.mark.fast_for("exact", "isqrt", "minimax", "mpa", "denman_beavers")


@KINDS
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("method", EXACT)
def test_sqrtm(method, spectrum):
    # The smallest eigenvalue (2e-5 for 'dominant') bounds the step that finite differences may take.
    A = with_spectrum(spectrum, 1).requires_grad_()
    eps = 1e-7 if spectrum == "dominant" else 1e-6
    assert torch.autograd.gradcheck(lambda A: sqrtm(A, method, **EXACT[method]), A, eps=eps)


@pytest.mark.parametrize("shape", [(12, 6), (12, 12), (8, 20)])
def test_eigenvalues_that_are_left_out(shape):
    """The features vary in the directions that are left out, on whichever side of the covariance the root is taken."""
    X, method = features(*shape).requires_grad_(), resolve_method("svdtopn", n=3)
    G = torch.randn(shape[0], shape[0], dtype=torch.float64)
    fused, composed = covariance_sqrt(X, method), sqrtm(covariance(X), method)
    gradients = [torch.autograd.grad((root * G).sum(), X)[0] for root in (fused, composed)]
    assert relative_error(fused, composed) < 1e-12 and relative_error(*gradients) < 1e-12


@pytest.mark.parametrize("scaling", get_args(Scaling))
@pytest.mark.parametrize("method", ITERATIVE)
def test_scalings(method, scaling):
    A = with_spectrum("well", 1, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda A: sqrtm(A, method, scaling=scaling, gradient="exact"), A)


@KINDS
@pytest.mark.parametrize("vectorize, centered", [("full", True), ("triu", False)])
# Not with fewer positions for Denman-Beavers: finite differences of a rounded mean leave the null space there.
@pytest.mark.parametrize(
    "method, shape", [(m, s) for m in EXACT for s in [(4, 3), (4, 4), (3, 5)] if m != "denman_beavers" or s == (3, 5)]
)
def test_features_to_root(method, shape, vectorize, centered):
    X = features(*shape, batch=1).requires_grad_()
    options = {"vectorize": vectorize, "centered": centered, **EXACT[method]}
    assert torch.autograd.gradcheck(lambda X: covariance_sqrt(X, method, **options), X, atol=1e-4)
    assert torch.autograd.gradgradcheck(lambda X: covariance_sqrt(X, method, **options), X, atol=1e-4)


@KINDS
@pytest.mark.parametrize("spectrum", ["well", "repeated", "nearly_equal"])
@pytest.mark.parametrize("method", EXACT)
def test_second_derivatives(method, spectrum):
    A = with_spectrum(spectrum, 1, 4).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda A: sqrtm(A, method, **EXACT[method]), A)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", [*(name for name in SURROGATE if name in EIGEN), "lyapunov"])
def test_missing_second_derivatives_are_refused(method, shape):
    method = resolve_method("mpa", gradient="lyapunov") if method == "lyapunov" else method
    for function in (lambda X: sqrtm(covariance(X), method), lambda X: covariance_sqrt(X, method)):
        X = features(*shape).requires_grad_()
        (grad,) = torch.autograd.grad(function(X).sum(), X, create_graph=True)
        with pytest.raises(RuntimeError, match="no further derivative"):
            grad.sum().backward()


@pytest.mark.parametrize("method", [name for name in ITERATIVE if METHODS[name].gradient == "auto"])
def test_the_lyapunov_gradient_is_for_matrices(method):
    for X in (features(8, 5), features(5, 9)):
        X.requires_grad_()
        roots = [covariance_sqrt(X, method, **options) for options in ({}, {"gradient": "exact"})]
        assert torch.equal(*(torch.autograd.grad(root.sum(), X)[0] for root in roots))
    roots = [sqrtm(covariance(X), method, **options) for options in ({}, {"gradient": "lyapunov"})]
    assert torch.equal(*(torch.autograd.grad(root.sum(), X, retain_graph=True)[0] for root in roots))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("iterations", [1, 5, 10])
def test_svd_newton_has_the_gradient_of_the_newton_schulz_steps(iterations, shape):
    X = features(*shape).requires_grad_()
    W = torch.randn(shape[0], shape[0], dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for function in (covariance_sqrt, lambda X, *a, **k: sqrtm(covariance(X), *a, **k)):
        grads = [
            torch.autograd.grad((W * function(X, method, iterations=iterations)).sum(), X)[0]
            for method in ("svdnewton", "isqrt")
        ]
        assert relative_error(*grads) < 1e-7


@pytest.mark.parametrize("route", ["fused", "composed"])
@pytest.mark.parametrize("method", EIGEN)
def test_divided_differences_are_what_the_gradient_uses(method, route):
    """The published form: U [(√λ_i - √λ_j) · K̃ ∘ Uᵀ G U + diag(f')] Uᵀ, built from the method's own coefficients."""
    X = features(6, 9, batch=1).requires_grad_()
    G = with_spectrum("well", 3)[2:]
    root = covariance_sqrt(X, method) if route == "fused" else sqrtm(covariance(X), method)
    (grad,) = torch.autograd.grad(root, X, G)
    values, U = torch.linalg.eigh(covariance(X.detach()))
    E = U.mT @ G @ U
    D = METHODS[method].coefficients(values, values) * E
    Xc = X.detach() - X.detach().mean(-1, keepdim=True)
    assert relative_error(grad, 2 / 9 * U @ D @ U.mT @ Xc) < 1e-11


@pytest.mark.parametrize("method", SURROGATE)
def test_surrogates_agree_with_the_exact_gradient_where_eigenvalues_are_apart(method):
    A = with_spectrum("well").requires_grad_()
    W = with_spectrum("well", 4)[2:]
    grads = [torch.autograd.grad((W * sqrtm(A, name)).sum(), A)[0] for name in (method, "exact")]
    assert relative_error(*grads) < 2e-2


@pytest.mark.parametrize("p", [0.5, 0.3, 1.5, -0.5, 0.0])
def test_second_derivative_of_features_of_low_rank(p):
    """With more positions than channels, too, where the range of the covariance turns with the features."""
    generator = torch.Generator().manual_seed(0)
    Z, P = (torch.randn(shape, dtype=torch.float64, generator=generator) for shape in [(1, 4, 2), (2, 9)])
    assert torch.autograd.gradgradcheck(lambda Z: covariance_powm(Z @ P, p), Z.requires_grad_(), atol=1e-4)
    if p == 0.5:
        assert torch.autograd.gradgradcheck(lambda Z: covariance_sqrt(Z @ P, "exact", vectorize="triu"), Z, atol=1e-4)


def test_top_n_is_exact_for_the_matrix_that_is_left():
    A = with_spectrum("well", 1)[0]
    values, U = torch.linalg.eigh(A)
    left = (U[:, 3:] * values[3:]) @ U[:, 3:].mT
    grads, roots = [], []
    for matrix, options in [(A, {"method": "svdtopn", "n": 3}), (left, {"method": "exact"})]:
        leaf = matrix.clone().requires_grad_()
        roots.append(sqrtm(leaf, **options))
        grads.append(torch.autograd.grad(roots[-1], leaf, torch.ones_like(A))[0])
    assert relative_error(*roots) < 1e-12 and relative_error(*grads) < 1e-7


@pytest.mark.parametrize("method", ["exact", "svdpade"])
@pytest.mark.parametrize("spectrum", ["well", "repeated", "identity"])
def test_gradient_solves_the_lyapunov_equation(method, spectrum):
    A, G = with_spectrum(spectrum).requires_grad_(), with_spectrum("well", 4)[2:]
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
    # f(tX) = t f(X) for the features: <X̃, df/dX> = f, the identity that contribution maps rest on. Approximate
    # gradients keep it too (they differ off the diagonal only), which is why completeness cannot find them out.
    X = features(8, 6).requires_grad_()
    W = torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    score = (W * covariance_sqrt(X, method)).sum()
    (grad,) = torch.autograd.grad(score, X)
    tolerance = 1e-2 if method == "denman_beavers" else 1e-10  # its ridge is not homogeneous in the null space
    assert relative_error(((X - X.mean(-1, keepdim=True)) * grad).sum(), score.detach()) < tolerance


@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("shape", [(4, 3), (3, 5)])
@pytest.mark.parametrize("p", [0.5, 0.8])
def test_powers_of_the_covariance_of_features(shape, centered, p):
    X = features(*shape, batch=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda X: covariance(X, centered), X)
    assert torch.autograd.gradgradcheck(lambda X: covariance(X, centered), X)
    assert relative_error(covariance_powm(X, p, centered), powm(covariance(X, centered), p)) < 1e-12
    assert torch.autograd.gradcheck(lambda X: covariance_powm(X, p, centered), X)
    assert torch.autograd.gradgradcheck(lambda X: covariance_powm(X, p, centered), X, atol=1e-4)


@pytest.mark.parametrize("function", [lambda A: powm(A, 1.5), sqrtm, logm])
def test_second_derivatives_that_a_singular_matrix_does_not_have_are_refused(function):
    X = features(5, 3, batch=1).requires_grad_()
    (grad,) = torch.autograd.grad(function(covariance(X)).sum(), X, create_graph=True)
    with pytest.raises(RuntimeError, match="a matrix with zero eigenvalues has no further derivative"):
        grad.sum().backward()


@pytest.mark.parametrize("function", [expm_neg, lambda A: powm(A, 1), lambda A: powm(A, 2), lambda A: powm(A, 3)])
def test_derivatives_at_zero_eigenvalues(function):
    X = features(5, 3, batch=1).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda X: function(covariance(X)), X)
    A = torch.diag(torch.tensor([1.0, 0.5, 0.0, 0.0], dtype=torch.float64)).requires_grad_()
    (grad,) = torch.autograd.grad(function(A).diagonal()[3], A)
    step = torch.zeros(4, 4, dtype=torch.float64)
    step[3, 3] = 1e-7
    slope = (function(A.detach() + step) - function(A.detach()))[3, 3] / 1e-7
    assert grad[3, 3] == pytest.approx(slope.item(), abs=1e-6)
