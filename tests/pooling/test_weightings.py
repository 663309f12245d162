"""What weights features before their covariance: democratic aggregation and channel dropout."""

import math

import numpy as np
import pytest
import torch
from support.matrices import features, relative_error

from covpool_plugins.linalg import covariance, pack_triu
from covpool_plugins.pooling import create_pool
from covpool_plugins.pooling.channel_dropout import AdaptiveChannelDropout
from covpool_plugins.pooling.democratic import DemocraticWeighting


def contributions(X, alpha):
    """α_i x_iᵀ (Σ_j α_j x_j x_jᵀ) x_i, without the kernel matrix."""
    aggregate = torch.einsum("bm,bcm,bdm->bcd", alpha, X, X)
    return alpha * torch.einsum("bcm,bcd,bdm->bm", X, aggregate, X)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.5, 1.0])
def test_democratic_weights_solve_their_equation(gamma):
    X = features(6, 20)
    target = contributions(X, torch.ones(2, 20, dtype=torch.float64)) ** gamma
    for iterations, tolerance in [(10, 2e-2), (80, 1e-9)]:
        alpha = DemocraticWeighting(gamma=gamma, iterations=iterations).weights(X)
        assert (alpha > 0).all()
        assert (contributions(X, alpha) / target - 1).abs().max() < tolerance


@pytest.mark.parametrize("gamma", [0.0, 0.5])
@pytest.mark.parametrize("iterations", [1, 3])
def test_democratic_iteration_is_that_of_the_paper(gamma, iterations):
    X = 3 * features(6, 9)
    weights = DemocraticWeighting(gamma=gamma, iterations=iterations).weights(X)
    for sample, alpha in zip(X.numpy(), weights, strict=True):
        kernel = (sample.T @ sample) ** 2
        expected = np.ones(9)
        for _ in range(iterations):
            sigma = np.diag(expected) @ kernel @ np.diag(expected) @ np.ones(9)
            expected = expected / (sigma / (kernel @ np.ones(9)) ** gamma) ** 0.5
        assert np.allclose(alpha, expected, rtol=1e-12)


def test_democratic_weights_the_second_moment():
    X = features(6, 9)
    part = DemocraticWeighting(gamma=0.3)
    expected = torch.einsum("bm,bcm,bdm->bcd", part.weights(X), X, X) / 9
    assert relative_error(covariance(part(X), centered=False), expected) < 1e-12
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    assert relative_error(part(X[..., order]), part(X)[..., order]) < 1e-5
    assert (DemocraticWeighting(gamma=1.0).weights(X) - 1).abs().max() < 1e-13
    x = X.float().unflatten(2, (3, 3))
    assert relative_error(create_pool("democratic", 6, gamma=1.0)(x), create_pool("bcnn", 6)(x)) < 1e-6
    assert relative_error(create_pool("democratic", 6)(x), create_pool("bcnn", 6)(x)) > 1e-2


@pytest.mark.parametrize("factor", [1e-25, 1e-3, 1e18])
def test_scales(factor):
    X = features(6, 9).float()
    for part in (DemocraticWeighting(gamma=gamma) for gamma in (0.0, 0.5, 1.0)):
        assert relative_error(part(factor * X), factor**part.gamma * part(X).double()) < 1e-5
    part = AdaptiveChannelDropout(6)
    assert relative_error(part.probabilities(factor * X), part.probabilities(X)) < 1e-6


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_dead_and_faint_positions_and_channels(gamma):
    X = features(6, 9, batch=4).float()
    X[0, :, 4], X[1, 2] = 0, 0
    X[2, :, 4] *= 1e-12
    leaf = X.clone().requires_grad_()
    part, dropout = DemocraticWeighting(gamma=gamma), AdaptiveChannelDropout(6)
    out, p = part(leaf), dropout.probabilities(X)
    (grad,) = torch.autograd.grad(out.square().sum(), leaf)
    assert torch.isfinite(out).all() and torch.isfinite(grad).all() and torch.isfinite(part.weights(X)).all()
    assert not out[X == 0].any() and ((p > 0) & (p < 1)).all()


@pytest.mark.parametrize("part", [DemocraticWeighting(), AdaptiveChannelDropout(6)], ids=["democratic", "dropcov"])
def test_autocast_is_computed_in_float32(part):
    X = (100 * features(6, 9)).bfloat16()
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        out = part(X)
    torch.manual_seed(0)
    assert out.dtype == X.dtype and torch.equal(out, part(X.float()).to(X.dtype))


@pytest.mark.parametrize("options", [{}, {"gamma": 0.0}, {"gamma": 0.8, "damping": 0.3, "iterations": 2}])
def test_democratic_gradient(options):
    part = DemocraticWeighting(**options)
    X = (features(3, 5) + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(part, (X,))
    assert torch.autograd.gradcheck(part.weights, (X,))


def test_dropout_follows_the_seed_and_is_none_at_inference():
    X = features(6, 12).float()
    pool, x = create_pool("dropcov", 6, reduce_channels=None, rate=0.5), X.unflatten(2, (3, 4))
    assert AdaptiveChannelDropout(6).eval()(X) is X
    assert torch.equal(pool.eval()(x), pack_triu(covariance(X.double())).float())
    pool.train()

    def draw(seed):
        torch.manual_seed(seed)
        return pool(x)

    assert torch.equal(draw(0), draw(0))
    assert any(not torch.equal(draw(0), draw(seed)) for seed in range(1, 5))


def test_dropout_drops_whole_channels_and_scales_the_others():
    X = features(6, 12) + 0.1
    part = AdaptiveChannelDropout(6, rate=0.4)
    torch.manual_seed(0)
    leaf = X.repeat(50, 1, 1).requires_grad_()
    out = part(leaf)
    factors = (out / leaf).detach()
    # The probabilities are constants: the gradient is the factor of the channel.
    assert torch.allclose(torch.autograd.grad(out.sum(), leaf)[0], factors, rtol=1e-12)
    assert (factors.amax(-1) - factors.amin(-1)).abs().max() < 1e-12
    kept = factors[..., 0] != 0
    assert kept.any() and not kept.all()
    expected = (1 / (1 - part.probabilities(X))).repeat(50, 1)
    assert torch.allclose(factors[..., 0][kept], expected[kept], rtol=1e-12)


def test_dropout_frequencies_and_average_covariance():
    X = features(6, 12, batch=1)
    part = AdaptiveChannelDropout(6, rate=0.4)
    torch.manual_seed(0)
    n = 20000
    dropped = part(X.expand(n, -1, -1))
    p = part.probabilities(X)[0]
    frequency = (dropped == 0).all(-1).double().mean(0)
    assert ((frequency - p).abs() < 5 * (p * (1 - p) / n).sqrt()).all()
    samples = covariance(dropped)
    expected = covariance(X)[0] * (1 + torch.diag(p / (1 - p)))
    assert ((samples.mean(0) - expected).abs() <= 5 * samples.std(0) / n**0.5 + 1e-12).all()


def test_dropout_probabilities_are_their_formula():
    X = features(6, 12)
    rate = 0.3
    for sample, p in zip(X.numpy(), AdaptiveChannelDropout(6, rate=rate).probabilities(X), strict=True):
        variance = sample.var(1)
        common = (sample / sample.std(1, keepdims=True)).sum(0)
        redundancy = np.array([abs(np.corrcoef(channel, common)[0, 1]) for channel in sample])
        excess = redundancy - variance / variance.max()
        expected = 1 / (1 + np.exp(-(math.log(rate / (1 - rate)) + excess - excess.mean())))
        assert np.allclose(p, expected, rtol=1e-10)


def test_dropout_rate_grows_with_the_channels():
    assert AdaptiveChannelDropout(256).rate == 0.5
    assert AdaptiveChannelDropout(1).rate == 0
    assert AdaptiveChannelDropout(2**20).rate == 0.9
    X = features(6, 12)
    uniform = AdaptiveChannelDropout(6, rate=0.2, adaptive=False).probabilities(X)
    assert uniform.shape == (2, 6) and (uniform == 0.2).all()
    assert torch.equal(AdaptiveChannelDropout(6, rate=0.0)(X), X)
    # The mean of the odds, on the logarithmic scale, is that of the rate.
    p = AdaptiveChannelDropout(6, rate=0.2).probabilities(X)
    assert torch.allclose(p.logit().mean(-1), torch.tensor(0.2, dtype=torch.float64).logit())
