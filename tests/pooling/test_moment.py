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


@pytest.mark.parametrize("fmt", ["NCHW", "NHWC", "NLC"])
@pytest.mark.parametrize("reduction", ["conv-bn-relu", "linear-ln"])
def test_layouts_agree(fmt, reduction):
    x = torch.rand(2, 12, 3, 5)
    expected = create_pool("moment", 12, reduce_channels=8, reduction=reduction).eval()
    pool = create_pool("moment", 12, reduce_channels=8, reduction=reduction, input_fmt=fmt).eval()
    pool.load_state_dict(expected.state_dict())
    layouts = {"NCHW": x, "NHWC": x.permute(0, 2, 3, 1), "NLC": x.flatten(2).mT}
    assert relative_error(pool(layouts[fmt]), expected(x)) < 1e-6


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


@pytest.mark.parametrize("kind", ["zero", "constant", "dead channel", "one position"])
@pytest.mark.parametrize("reduce_channels", [None, 8])
def test_degenerate_features(kind, reduce_channels):
    x = tokens()
    if kind == "zero":
        x[0] = 0
    elif kind == "constant":
        x[0] = x[0, 0].clone()
    elif kind == "dead channel":
        x[0, :, 3] = 0
    else:
        x = x[:, :1]
    x.requires_grad_()
    pool = create_pool("moment", 12, input_fmt="NLC", reduce_channels=reduce_channels)
    out = pool(x)
    out.square().sum().backward()
    assert torch.isfinite(out).all() and torch.isfinite(x.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in pool.parameters())


def test_samples_are_independent():
    x = tokens(3)
    pool = create_pool("moment", 12, input_fmt="NLC")
    expected = pool(x)
    x[1, 2, 3] = torch.nan
    out = pool(x)
    assert torch.isnan(out[1]).any() and torch.equal(out[[0, 2]], expected[[0, 2]])
    alone = pool(x[:1])
    assert alone.shape == (1, pool.out_features) and relative_error(alone, expected[:1]) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_parameters_are_computed_in_float32(dtype):
    pool = create_pool("moment", 24, reduce_channels=None, heads=2).to(dtype)
    X = torch.rand(2, 48, 9).to(dtype)
    out = pool.represent(X)
    assert out.dtype == dtype
    assert torch.equal(out, pool.float().represent(X.float()).to(dtype))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"heads": 5}, "moment: heads must be a divisor of the 12 channels, got 5"),
        ({"heads": 0}, "moment: heads must be a divisor of the 12 channels, got 0"),
        ({"heads": 3, "reduce_channels": 8}, "moment: heads must be a divisor of the 8 channels, got 3"),
        ({"convolutions": -1}, "moment: convolutions must be an integer >= 0, got -1"),
        ({"first_order": "max"}, "moment: first_order must be one of mean, token, got 'max'"),
        ({"first_order": "token"}, "moment: first_order='token' needs num_prefix_tokens >= 1, got 0"),
        ({"reduce_channels": 0}, "reduce_channels must be a positive integer or None, got 0"),
        ({"dimension": 8}, "pool 'moment' has no option 'dimension'; its options: heads"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        create_pool("moment", 12, **options)
    assert "\n" not in str(caught.value)


def test_wrong_shape():
    with pytest.raises(ValueError, match=r"expected NLC with in_channels=12, got shape \(2, 7, 11\)"):
        create_pool("moment", 12, input_fmt="NLC")(torch.rand(2, 7, 11))
