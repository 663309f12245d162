"""Statistics in float32 at least, whatever comes in and whatever autocast says."""

import pytest
import torch
from support.whitening import correlated

from covpool_plugins.whitening import PCANorm2d, ZCANorm2d

HALF = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("make", [ZCANorm2d, PCANorm2d])
@pytest.mark.parametrize("dtype", HALF)
def test_half_input_loses_its_rounding_only(dtype, make, training):
    x = correlated(mean=0.0).to(dtype)
    layer, reference = make(8, 2), make(8, 2, dtype=torch.float64)
    G = torch.randn(x.shape, dtype=torch.float64).to(dtype)
    results = []
    for module, features in ((layer, x), (reference, x.double())):
        module(features)
        module.train(training)
        leaf = features.clone().requires_grad_()
        y = module(leaf)
        assert y.dtype == features.dtype
        results.append((y, *torch.autograd.grad(y, [leaf, module.weight], G.to(features.dtype))))
    for result, expected in zip(*results, strict=True):
        error = (result.double() - expected).abs().max() / expected.abs().max()
        assert error < 2 * torch.finfo(result.dtype).eps or error < 1e-5
    assert layer.running_mean.dtype == layer.running_subspace.dtype == torch.float32
    assert torch.allclose(layer.running_subspace.double(), reference.running_subspace, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("make", [ZCANorm2d, PCANorm2d])
def test_autocast_changes_nothing(make, training):
    x = correlated(dtype=torch.float32)
    layer = make(8, 2).train(training)

    def step():
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        return y, *torch.autograd.grad(y, [leaf, *layer.parameters()], torch.ones_like(y) * x)

    plain = step()
    with torch.autocast("cpu", torch.bfloat16):
        for result, expected in zip(step(), plain, strict=True):
            assert result.dtype == torch.float32 and torch.equal(result, expected)


@pytest.mark.parametrize("dtype", [*HALF, torch.float64])
@pytest.mark.parametrize("make", [ZCANorm2d, PCANorm2d])
def test_converted_layers(make, dtype):
    layer = make(8, 2).to(dtype)
    x = correlated(dtype=torch.float32).to(dtype)
    y = layer(x)
    y.sum().backward()
    assert y.dtype == layer.running_subspace.dtype == layer.weight.grad.dtype == dtype
    expected = make(8, 2, dtype=torch.float64)(x.double())
    assert (y.double() - expected).abs().max() < 4 * torch.finfo(dtype).eps * expected.abs().max()
    assert layer.eval()(x).dtype == dtype


def test_device_and_dtype_of_the_state():
    layer = ZCANorm2d(8, 2, device="meta", dtype=torch.float64)
    for name, tensor in layer.state_dict().items():
        assert tensor.device.type == "meta" and tensor.dtype == (torch.long if "num" in name else torch.float64)
    assert layer(torch.empty(2, 8, 3, 3, device="meta")).shape == (2, 8, 3, 3)
