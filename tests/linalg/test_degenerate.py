"""Inputs that break the original code."""

import pytest
import torch
from support.matrices import features, regular_shape, relative_error, with_spectrum

from covpool_plugins.linalg import covariance, covariance_sqrt, list_methods, resolve_method, sqrtm

METHODS = list_methods()
SHAPES = [(8, 5), (5, 9)]


def _with_gradient(function, X):
    leaf = X.clone().requires_grad_()
    out = function(leaf)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    (grad,) = torch.autograd.grad((weights * out).sum(), leaf)
    return out.detach(), grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 1.0, 0.1])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", METHODS)
def test_constant_features_give_zero_with_zero_gradient(method, shape, value, dtype):
    X = torch.full((2, *shape), value, dtype=dtype)
    X[1] = features(*shape)[1].to(dtype)
    out, grad = _with_gradient(lambda X: covariance_sqrt(X, method), X)
    assert not out[0].any() and not grad[0].any()
    assert out[1].any() and grad[1].any() and torch.isfinite(grad).all()


@pytest.mark.parametrize("method", METHODS)
def test_zero_and_singular_matrices(method):
    well = with_spectrum("well", 1)[0]
    basis = torch.linalg.eigh(well).eigenvectors[:, 2:]
    A = torch.stack([torch.zeros_like(well), well, basis @ basis.mT @ well @ basis @ basis.mT])
    out, grad = _with_gradient(lambda A: sqrtm(A, method), A)
    assert not out[0].any() and not grad[0].any() and grad[1].any()
    assert torch.isfinite(out).all() and torch.isfinite(grad).all()


@pytest.mark.parametrize("channel", [0, 3])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", METHODS)
def test_dead_channels_stay_dead(method, shape, channel):
    X = features(*shape)
    X[0, channel] = 0
    out, grad = _with_gradient(lambda X: covariance_sqrt(X, method), X)
    coupling = out[0].clone()
    coupling[channel, channel] = 0
    assert coupling[channel].abs().max() < 1e-7 and coupling[:, channel].abs().max() < 1e-7
    # Methods that are no root at zero have a floor there, the same for every null direction.
    floor = getattr(resolve_method(method), "at_zero", 0.0) * covariance(X[0]).norm().sqrt()
    slack = 3e-3 if method == "denman_beavers" else 1e-7
    assert (out[0, channel, channel] - floor).abs() < slack
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", METHODS)
def test_a_poisoned_sample_spoils_only_itself(method, shape, bad):
    clean = features(*shape, batch=3)
    poisoned = clean.clone()
    poisoned[1, 2, 0] = bad
    out, grad = _with_gradient(lambda X: covariance_sqrt(X, method), poisoned)
    expected, expected_grad = _with_gradient(lambda X: covariance_sqrt(X, method), clean)
    assert not torch.isfinite(out[1]).all()
    for sample in (0, 2):
        assert relative_error(out[sample], expected[sample]) < 1e-14
        assert relative_error(grad[sample], expected_grad[sample]) < 1e-13
    matrix = with_spectrum("well", 3)
    matrix[1, 0, 0] = bad
    root = sqrtm(matrix, method)
    assert torch.isfinite(root[[0, 2]]).all() and not torch.isfinite(root[1]).any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (2, 2), (8, 5)])
@pytest.mark.parametrize("method", METHODS)
def test_smallest_shapes_and_empty_batches(method, shape):
    for batch in (2, 0):
        out, grad = _with_gradient(lambda X: covariance_sqrt(X, method), features(*shape, batch=batch))
        assert out.shape == (batch, shape[0], shape[0]) and torch.isfinite(out).all() and torch.isfinite(grad).all()


@pytest.mark.parametrize("scale", [1e-18, 1e-12, 1e12, 1e18])
@pytest.mark.parametrize("shape", [(8, 5), (32, 25)])
@pytest.mark.parametrize("method", METHODS)
def test_scale_of_the_features_does_not_matter(method, shape, scale):
    """float32 features from 1e-18 to 1e18: the root scales with them, its gradient stays."""
    X = features(*regular_shape(method, shape)).float()
    if method == "svdtrunc" and scale < 1:
        return  # its cap is absolute
    out, grad = _with_gradient(lambda X: covariance_sqrt(X, method), X)
    scaled, scaled_grad = _with_gradient(lambda X: covariance_sqrt(X, method), X * scale)
    tolerance = 1e-3 if method == "denman_beavers" else 1e-4
    assert relative_error(scaled / scale, out) < tolerance and relative_error(scaled_grad, grad) < tolerance
