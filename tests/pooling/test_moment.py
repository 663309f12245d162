"""Moment probing: the mean or class token with multi-head convolutional cross-covariances."""

import numpy as np
import pytest
import torch
from support.matrices import features, relative_error
from torch import nn

from covpool_plugins.pooling import create_pool
from covpool_plugins.pooling.moment import MomentPool


def tokens(batch=2, count=7, channels=12):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, count, channels, generator=generator)


@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("heads", [1, 2, 3])
def test_moments_without_reduction_and_convolutions(heads, centered):
    X = features(12, 7)
    pool = MomentPool(12, heads=heads, convolutions=0, reduce_channels=None, centered=centered)
    out = pool(X.unsqueeze(-1))
    assert not list(pool.parameters()) and out.shape == (2, 12 + 144 // heads)
    for sample, vector in zip(X.numpy(), out.numpy(), strict=True):
        rows = np.split(sample - centered * sample.mean(1, keepdims=True), heads)
        expected = [rows[j] @ rows[(j + 1) % heads].T / 7 for j in range(heads)]
        assert np.allclose(vector[:12], sample.mean(1), rtol=1e-12)
        assert np.allclose(vector[12:], np.stack(expected).ravel(), rtol=1e-10, atol=1e-12)


def test_convolutions_are_those_of_torch():
    X = features(24, 7)
    pool = MomentPool(24, heads=2, reduce_channels=None, dtype=torch.float64)
    plain = MomentPool(24, heads=2, reduce_channels=None, convolutions=0)
    Z = plain.represent(pool.features(X.unsqueeze(-1)))[:, 24:].unflatten(1, (2, 12, 12))
    first, second = pool.convolutions
    expected = second(nn.functional.gelu(first(Z)))
    assert expected.shape == (2, 2, 3, 3) and pool.out_features == 24 + 18
    assert relative_error(pool(X.unsqueeze(-1))[:, 24:], expected.flatten(1)) < 1e-12


def test_sizes():
    pool = MomentPool(768, input_fmt="NLC", device="meta")
    assert (pool.heads, pool.out_features) == (16, 768 + 16 * 12**2)
    # 3.65 million with the classifier, in the paper.
    parameters = sum(p.numel() for p in pool.parameters()) + 1000 * (pool.out_features + 1)
    assert parameters == pytest.approx(3.65e6, rel=0.01)
    assert MomentPool(2048, device="meta").reduction.conv.out_channels == 768
    assert MomentPool(15, device="meta").heads == 1
    odd = MomentPool(30, heads=2, reduce_channels=10, convolutions=1)
    assert odd.out_features == 30 + 2 * 3**2 and odd(torch.rand(2, 30, 3, 3)).shape == (2, 48)


def test_class_token_is_the_first_moment():
    x = tokens()
    options = {"input_fmt": "NLC", "num_prefix_tokens": 2}
    mean = create_pool("moment", 12, **options)
    token = create_pool("moment", 12, first_order="token", **options)
    token.load_state_dict(mean.state_dict())
    assert token.out_features == mean.out_features
    assert relative_error(token(x)[:, :12], x[:, 0]) < 1e-6
    assert relative_error(mean(x)[:, :12], x[:, 2:].mean(1)) < 1e-6
    assert relative_error(token(x)[:, 12:], mean(x)[:, 12:]) < 1e-6
    moved = x.clone()
    moved[:, 0] += 1
    assert torch.equal(token(moved)[:, 12:], token(x)[:, 12:])


def test_spectrum_is_that_of_the_reduced_features():
    pool = create_pool("moment", 12, input_fmt="NLC", reduce_channels=4).double()
    x = tokens().double()
    reduced = pool.reduction(x.mT.unsqueeze(-1)).flatten(2)
    expected = torch.stack([torch.cov(sample, correction=0) for sample in reduced]).detach()
    assert relative_error(pool.spectrum(x).eigenvalues, torch.linalg.eigvalsh(expected).flip(-1)) < 1e-10


@pytest.mark.parametrize("first_order", ["mean", "token"])
def test_gradients(first_order):
    pool = create_pool(
        "moment", 6, input_fmt="NLC", num_prefix_tokens=1, first_order=first_order, heads=2, dtype=torch.float64
    )
    x = tokens(1, 4, 6).double().requires_grad_()
    parameters = tuple(p.detach().requires_grad_() for p in pool.parameters())
    names = [name for name, _ in pool.named_parameters()]

    def call(x, *values):
        return torch.func.functional_call(pool, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x, *parameters))
