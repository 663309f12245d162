"""Input on which the covariance is singular, empty, poisoned, or far from one."""

import copy

import pytest
import torch
from support.whitening import correlated, statistics

from covpool_plugins.whitening import PCANorm2d, ZCANorm2d, list_whitening_methods

LAYERS = [(ZCANorm2d, method) for method in list_whitening_methods()]
LAYERS += [(PCANorm2d, method) for method in list_whitening_methods(eigenvectors=True)]


def _step(layer, x):
    """Output and input gradient of a training step, both finite."""
    x = x.clone().requires_grad_()
    y = layer(x)
    (g,) = torch.autograd.grad(y, x, torch.randn(y.shape, dtype=torch.float64).to(y.dtype))
    return y.detach(), g


@pytest.mark.parametrize("value", [0.0, 1234.5678])
@pytest.mark.parametrize("make, method", LAYERS)
def test_constant_features_become_small_numbers(make, method, value):
    layer = make(8, method=method, **({"n_components": 3} if make is PCANorm2d else {}))
    y, g = _step(layer, torch.full((6, 8, 5, 5), value))
    assert y.abs().max() < 0.05 and torch.isfinite(g).all()
    assert torch.isfinite(layer.eval()(correlated(dtype=torch.float32))).all()


def test_few_samples_are_white_on_their_range():
    x = correlated(1, 8, 2)  # four samples, rank three
    _, covariance = statistics(ZCANorm2d(8, eps=1e-10)(x))
    expected = torch.tensor([0.0] * 5 + [1.0] * 3, dtype=torch.float64)
    assert torch.allclose(torch.linalg.eigvalsh(covariance[0]), expected, atol=1e-6)


@pytest.mark.parametrize("average", ["inverse_root", "covariance"])
@pytest.mark.parametrize("make", [ZCANorm2d, PCANorm2d])
@pytest.mark.parametrize("exponent", [-18, -10, 10, 18])
def test_scales(make, exponent, average):
    layer, x = make(8, 2, average=average), correlated(16, side=7, dtype=torch.float32)
    torch.manual_seed(0)
    y, g = _step(layer, x * 10.0**exponent)
    assert torch.isfinite(y).all() and torch.isfinite(g).all()
    assert all(torch.isfinite(buffer).all() for buffer in layer.buffers())
    assert torch.isfinite(layer.eval()(x * 10.0**exponent)).all()
    double = make(8, 2, dtype=torch.float64)
    torch.manual_seed(0)
    for result, expected in zip((y, g), _step(double, x.double() * 10.0**exponent), strict=True):
        assert (result - expected).norm() < 1e-5 * expected.norm()
    if exponent > 0 and make is ZCANorm2d:
        assert torch.allclose(y, ZCANorm2d(8, 2, eps=1e-12)(x), atol=1e-4)
    if exponent < 0:  # below eps nothing is amplified beyond 1 / √eps
        assert y.abs().max() < 1e-6


@pytest.mark.parametrize("make, method", LAYERS)
@pytest.mark.parametrize("average, value", [("inverse_root", float("nan")), ("covariance", float("inf"))])
def test_poison_raises_nothing_and_stays_in_its_group(average, value, make, method):
    """Of a poisoned batch neither the other group nor any running statistics learn."""
    x = correlated(dtype=torch.float32)
    layer = make(8, groups=2, average=average, method=method)
    clean, before = layer(x)[:, 4:], {name: buffer.clone() for name, buffer in layer.named_buffers()}
    expected = copy.deepcopy(layer)
    expected(x)
    x[1, 2, 0, 0] = value
    y, g = _step(layer, x)
    assert torch.allclose(y[:, 4:], clean, atol=1e-5) and torch.isfinite(g[:, 4:]).all()
    assert not torch.isfinite(y[:, :4]).any()
    after = dict(layer.named_buffers())
    assert after.pop("num_batches_tracked") == 2
    for name, buffer in after.items():
        (first, second), updated = buffer.view(2, -1), getattr(expected, name).view(2, -1)[1]
        assert torch.equal(first, before[name].view(2, -1)[0]) and torch.allclose(second, updated, atol=1e-6), name


@pytest.mark.parametrize("make", [ZCANorm2d, PCANorm2d, torch.nn.BatchNorm2d])
@pytest.mark.parametrize("training", [True, False])
def test_an_empty_batch_is_as_of_a_batch_norm(make, training):
    layer = make(8).train(training)
    x = torch.zeros(0, 8, 4, 4, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.shape == x.grad.shape == x.shape
    assert torch.equal(layer.running_mean, torch.zeros(8))
