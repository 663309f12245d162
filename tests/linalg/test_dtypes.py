"""Half precision and autocast: computed in float32 at least, in the backward too."""

import pytest
import torch
from support.matrices import features, regular_shape, relative_error, with_spectrum

from covpool_plugins.linalg import covariance, covariance_sqrt, list_methods, sqrtm

METHODS = list_methods()
FUNCTIONS = {name: lambda X, name=name: covariance_sqrt(X, name) for name in METHODS}
FUNCTIONS |= {f"sqrtm-{name}": lambda X, name=name: sqrtm(covariance(X), name) for name in METHODS}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(8, 5), (5, 9)])
@pytest.mark.parametrize("method", METHODS)
def test_half_input_is_rounded_once(method, shape, dtype):
    X = features(*regular_shape(method, shape)).to(dtype).requires_grad_()
    out = covariance_sqrt(X, method)
    out.float().sum().backward()
    assert out.dtype == X.grad.dtype == dtype
    expected = covariance_sqrt(X.detach().double(), method)
    assert relative_error(out, expected) < 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("shape", [(8, 5), (5, 9)])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_autocast_changes_nothing_inside(name, shape):
    X = features(*shape).float()
    G = with_spectrum("well", 1).float().new_ones(2, shape[0], shape[0])
    plain, cast = X.clone().requires_grad_(), X.clone().requires_grad_()
    expected = FUNCTIONS[name](plain)
    expected.backward(G)
    with torch.autocast("cpu", torch.bfloat16):
        out = FUNCTIONS[name](cast)
        out.backward(G)  # inside: the backward products would be autocast as well
    assert torch.equal(out, expected) and torch.equal(cast.grad, plain.grad)
