"""Moment probing: the mean or class token with multi-head convolutional cross-covariances."""

from itertools import pairwise

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


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("heads", [2, 3])
def test_cross_covariances_of_neighbouring_heads(heads, interleaved):
    X = features(12, 7)
    options = dict(heads=heads, convolutions=0, reduce_channels=None, interleaved=interleaved, dtype=torch.float64)
    pool = MomentPool(12, **options)
    with torch.no_grad():
        pool.norm.weight.copy_(torch.linspace(0.5, 1.5, 12 // heads))
    out = pool(X.unsqueeze(-1)).detach()
    assert out.shape == (2, 12 + (heads - 1) * (12 // heads) ** 2)
    for sample, vector in zip(X.numpy(), out.numpy(), strict=True):
        rows = [sample[j::heads] for j in range(heads)] if interleaved else np.split(sample, heads)
        weight = np.linspace(0.5, 1.5, 12 // heads)[:, None]
        normed = [weight * (part - part.mean(0)) / np.sqrt(part.var(0) + 1e-5) for part in rows]
        normed = [part - part.mean() for part in normed]
        expected = [first @ second.T / 7 for first, second in pairwise(normed)]
        expected = [Z / np.linalg.norm(Z, axis=0) for Z in expected]
        assert np.allclose(vector[:12], sample.mean(1), rtol=1e-12)
        assert np.allclose(vector[12:], np.stack(expected).ravel(), rtol=1e-6, atol=1e-8)


def test_convolutions_are_those_of_torch():
    X = features(24, 7)
    pool = MomentPool(24, heads=3, reduce_channels=None, dtype=torch.float64)
    plain = MomentPool(24, heads=3, reduce_channels=None, convolutions=0, dtype=torch.float64)
    Z = plain.represent(pool.features(X.unsqueeze(-1)))[:, 24:].unflatten(1, (2, 8, 8))
    first, second = pool.convolutions
    expected = second(nn.functional.gelu(first(Z)))
    assert expected.shape == (2, 2, 1, 1) and pool.out_features == 24 + 2
    assert relative_error(pool(X.unsqueeze(-1))[:, 24:], expected.flatten(1)) < 1e-12


@pytest.mark.parametrize("masked", [False, True])
def test_a_norm_of_every_position_and_a_skipped_one(masked):
    """The norm that the backbone leaves out; the second moment is that of all positions but the first."""
    x, norm = tokens().double(), nn.LayerNorm(12, dtype=torch.float64)
    mask = torch.tensor([[True] * 7, [True] * 5 + [False] * 2]) if masked else None
    shared = dict(heads=2, convolutions=0, reduce_channels=None, input_fmt="NLC", dtype=torch.float64)
    pool = MomentPool(12, first_norm="positions", skip_first=True, **shared)
    with torch.no_grad():
        for parameter in (*norm.parameters(), *pool.first_norm.parameters()):
            parameter.copy_(torch.linspace(0.5, 1.5, 12))
    rest = MomentPool(12, **shared)(x[:, 1:], None if mask is None else mask[:, 1:])
    counts = torch.ones(2, 7).bool() if mask is None else mask
    means = [norm(sample)[count].mean(0) for sample, count in zip(x, counts, strict=True)]
    out = pool(x, mask)
    assert relative_error(out[:, :12], torch.stack(means)) < 1e-12
    assert relative_error(out[:, 12:], rest[:, 12:]) < 1e-12


def test_sizes():
    pool = MomentPool(768, input_fmt="NLC", device="meta")
    assert (pool.heads, pool.out_features) == (4, 768 + 3 * 31**2)
    # As the authors' code trains; they publish 3.65 million, without the projection and its layer norm.
    parameters = sum(p.numel() for p in pool.parameters()) + 1000 * (768 + 1) + 1000 * (2883 + 1)
    assert parameters == pytest.approx(4.047e6, rel=1e-4)
    before = sum(p.numel() for module in (pool.reduction, pool.norm) for p in module.parameters())
    assert parameters - before == 3_653_162
    assert MomentPool(48, device="meta").reduction.out_channels == 512
    assert [len(MomentPool(8, reduce_channels=d, device="meta").convolutions) for d in (64, 24, 8)] == [2, 1, 0]
    odd = MomentPool(30, heads=2, reduce_channels=10, convolutions=1)
    assert odd.out_features == 30 + 2**2 and odd(torch.rand(2, 30, 3, 3)).shape == (2, 34)


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


def test_first_moment_with_a_layer_norm():
    x = tokens()
    pool = create_pool("moment", 12, input_fmt="NLC", first_norm=True)
    expected = nn.functional.layer_norm(x.mean(1), (12,), eps=1e-6)
    assert relative_error(pool(x)[:, :12], expected) < 1e-6


def test_spectrum_is_that_of_the_reduced_features():
    pool = create_pool("moment", 12, input_fmt="NLC", reduce_channels=4).double()
    x = tokens().double()
    reduced = pool.reduction(x.mT.unsqueeze(-1)).flatten(2)
    expected = torch.stack([torch.cov(sample, correction=0) for sample in reduced]).detach()
    assert relative_error(pool.spectrum(x).eigenvalues, torch.linalg.eigvalsh(expected).flip(-1)) < 1e-10


@pytest.mark.parametrize("first_order", ["mean", "token"])
def test_gradients(first_order):
    options = dict(input_fmt="NLC", num_prefix_tokens=1, first_order=first_order, heads=2, reduce_channels=6)
    pool = create_pool("moment", 5, dtype=torch.float64, **options)
    x = tokens(1, 4, 5).double().requires_grad_()
    parameters = tuple(torch.randn_like(p).requires_grad_() for p in pool.parameters())
    names = [name for name, _ in pool.named_parameters()]

    def call(x, *values):
        return torch.func.functional_call(pool, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x, *parameters))
