"""Properties that hold for any matrix and any features, found or refuted by hypothesis."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.matrices import orthogonal, relative_error

from covpool_plugins.linalg import EigenMethod, covariance_sqrt, list_methods, resolve_method, sqrtm

METHODS = list_methods()
EIGEN = [name for name in METHODS if isinstance(resolve_method(name), EigenMethod)]
CALM = settings(max_examples=15, deadline=None, derandomize=True)


@st.composite
def matrices(draw, condition=1e4):
    """Positive definite matrices (n, n) of any basis and scale, with ties now and then."""
    n = draw(st.integers(1, 7))
    exponents = draw(st.lists(st.floats(-1, 0), min_size=n, max_size=n))
    if draw(st.booleans()):
        exponents = [round(e, 1) for e in exponents]
    values = condition ** torch.tensor(exponents, dtype=torch.float64) * 10.0 ** draw(st.integers(-6, 6))
    U = orthogonal(n, draw(st.integers(0, 1000)))
    A = (U * values) @ U.mT
    return 0.5 * (A + A.mT)


@st.composite
def features(draw):
    """Features (C, M), with dead channels and repeated positions now and then."""
    C, M = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    X = torch.randn(C, M, dtype=torch.float64, generator=torch.Generator().manual_seed(draw(st.integers(0, 10**6))))
    if draw(st.booleans()):
        X[draw(st.integers(0, C - 1))] = 0
    if draw(st.booleans()):
        X[:, draw(st.integers(0, M - 1))] = X[:, 0]
    return X


@pytest.mark.parametrize("method", EIGEN)
@CALM
@given(A=matrices())
def test_square_of_the_root(method, A):
    S = sqrtm(A, method)
    assert relative_error(S @ S, A) < 1e-10 and torch.linalg.eigvalsh(S).min() >= 0


@pytest.mark.parametrize("method", METHODS)
@CALM
@given(A=matrices(), seed=st.integers(0, 1000), power=st.integers(-20, 20))
def test_symmetry_commutation_and_equivariance(method, A, seed, power):
    S, U = sqrtm(A, method), orthogonal(len(A), seed)
    assert relative_error(S.mT, S) < 1e-8
    assert relative_error(S @ A, A @ S) < 1e-8
    assert relative_error(sqrtm(4.0**power * A, method), 2.0**power * S) < 1e-8
    assert relative_error(sqrtm(U @ A @ U.mT, method), U @ S @ U.mT) < 1e-7


@pytest.mark.parametrize("method", [m for m in METHODS if m != "denman_beavers"])
@CALM
@given(X=features(), seed=st.integers(0, 1000))
def test_positions_may_be_permuted_and_shifted(method, X, seed):
    order = torch.randperm(X.shape[-1], generator=torch.Generator().manual_seed(seed))
    root = covariance_sqrt(X, method)
    slack = 1e-6 * X.abs().max()
    assert (covariance_sqrt(X[:, order], method) - root).abs().max() <= slack
    assert (covariance_sqrt(X + torch.arange(len(X)).unsqueeze(-1), method) - root).abs().max() <= slack


@pytest.mark.parametrize("method", METHODS)
@CALM
@given(X=features())
def test_gradients_are_finite(method, X):
    leaf = X.clone().requires_grad_()
    (grad,) = torch.autograd.grad(covariance_sqrt(leaf, method).sum(), leaf)
    assert torch.isfinite(grad).all()
