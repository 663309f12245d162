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


def degenerate(kind):
    """Features (2, 6, 9) in float32 whose first sample is degenerate."""
    X = features(6, 9).float()
    if kind == "zero":
        X[0] = 0
    elif kind == "constant":
        X[0] = X[0, :, :1].clone()
    elif kind == "dead channel":
        X[0, 2] = 0
    elif kind == "dead position":
        X[0, :, 4] = 0
    elif kind == "one position":
        X[0, :, 1:] = 0
    elif kind == "faint position":
        X[0, :, 4] *= 1e-12
    else:
        X[0] *= {"tiny": 1e-30, "huge": 1e15}[kind]
    return X


DEGENERATE = ["zero", "constant", "dead channel", "dead position", "one position", "faint position", "tiny", "huge"]


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
    for sample, alpha in zip(
        X.numpy(), DemocraticWeighting(gamma=gamma, iterations=iterations).weights(X), strict=True
    ):
        kernel = (sample.T @ sample) ** 2
        expected = np.ones(9)
        for _ in range(iterations):
            sigma = np.diag(expected) @ kernel @ np.diag(expected) @ np.ones(9)
            expected = expected / (sigma / (kernel @ np.ones(9)) ** gamma) ** 0.5
        assert np.allclose(alpha, expected, rtol=1e-12)


def test_democratic_with_gamma_one_is_sum_pooling():
    X = features(6, 9)
    part = DemocraticWeighting(gamma=1.0)
    assert (part.weights(X) - 1).abs().max() < 1e-13
    x = X.float().unflatten(2, (3, 3))
    assert relative_error(create_pool("democratic", 6, gamma=1.0)(x), create_pool("bcnn", 6)(x)) < 1e-6
    assert relative_error(create_pool("democratic", 6)(x), create_pool("bcnn", 6)(x)) > 1e-2


def test_democratic_forward_weights_the_second_moment():
    X = features(6, 9)
    part = DemocraticWeighting(gamma=0.3)
    expected = torch.einsum("bm,bcm,bdm->bcd", part.weights(X), X, X) / 9
    assert relative_error(covariance(part(X), centered=False), expected) < 1e-12


def test_democratic_gives_repeated_features_less_weight():
    rare, frequent = torch.eye(3, dtype=torch.float64)[:2]
    X = torch.stack([rare] + [frequent] * 16, dim=1).unsqueeze(0)
    for gamma in (0.0, 0.5):
        alpha = DemocraticWeighting(gamma=gamma, iterations=40).weights(X)[0]
        # α is 1 for the one; of n equal ones α² n = n^γ.
        assert alpha[0] == pytest.approx(1) and alpha[1].item() == pytest.approx(16 ** ((gamma - 1) / 2))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("factor", [1e-25, 1e-3, 1e18])
def test_democratic_features_are_homogeneous(gamma, factor):
    X = features(6, 9).float()
    part = DemocraticWeighting(gamma=gamma)
    assert relative_error(part(factor * X), factor**gamma * part(X).double()) < 1e-5


@pytest.mark.parametrize("options", [{}, {"gamma": 0.0}, {"gamma": 0.8, "damping": 0.3, "iterations": 2}])
def test_democratic_gradient(options):
    part = DemocraticWeighting(**options)
    X = (features(3, 5) + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(part, (X,))
    assert torch.autograd.gradcheck(part.weights, (X,))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", DEGENERATE)
def test_democratic_degenerate_features(kind, gamma):
    X = degenerate(kind).requires_grad_()
    part = DemocraticWeighting(gamma=gamma)
    out = part(X)
    out.square().sum().backward()
    assert torch.isfinite(out).all() and torch.isfinite(X.grad).all()
    assert not out[X == 0].any()
    alone = part(X[1:].detach())
    assert torch.equal(out[1:], alone)
    if kind not in ("tiny", "huge"):
        assert torch.isfinite(part.weights(X)).all()


def test_democratic_position_order_and_broken_samples():
    X = features(6, 9, batch=3).float()
    part = DemocraticWeighting()
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    assert relative_error(part(X[..., order]), part(X)[..., order]) < 1e-5
    broken = X.clone()
    broken[1, 2, 3] = torch.nan
    out = part(broken)
    assert torch.isnan(out[1]).all() and torch.equal(out[[0, 2]], part(X[[0, 2]]))
    assert relative_error(torch.func.vmap(part)(X.unsqueeze(1)).squeeze(1), part(X)) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("part", [DemocraticWeighting(), AdaptiveChannelDropout(6)], ids=["democratic", "dropcov"])
def test_weightings_compute_half_precision_in_float32(part, dtype):
    X = (100 * features(6, 9)).to(dtype)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        out = part(X)
    torch.manual_seed(0)
    assert out.dtype == dtype and torch.equal(out, part(X.float()).to(dtype))


def test_dropout_at_inference_is_plain_covariance():
    X = features(6, 12).float()
    assert AdaptiveChannelDropout(6).eval()(X) is X
    pool = create_pool("dropcov", 6, reduce_channels=None).eval()
    assert torch.equal(pool(X.unflatten(2, (3, 4))), pack_triu(covariance(X.double())).float())


def test_dropout_follows_the_seed():
    x = features(6, 12).float().unflatten(2, (3, 4))
    pool = create_pool("dropcov", 6, reduce_channels=None, rate=0.5)

    def draw(seed):
        torch.manual_seed(seed)
        return pool(x)

    assert torch.equal(draw(0), draw(0))
    assert any(not torch.equal(draw(0), draw(seed)) for seed in range(1, 5))


def test_dropout_drops_whole_channels_and_scales_the_others():
    X = features(6, 12) + 0.1
    part = AdaptiveChannelDropout(6, rate=0.4)
    torch.manual_seed(0)
    factors = part(X.repeat(50, 1, 1)) / X.repeat(50, 1, 1)
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


def test_dropout_prefers_redundant_and_weak_channels():
    shared, own = torch.linalg.qr(torch.randn(16, 4, generator=torch.Generator().manual_seed(0)).double())[0].T[:2]
    shared, own = (v - v.mean() for v in (shared, own))
    own = own - (own @ shared) / (shared @ shared) * shared
    own = own * shared.norm() / own.norm()
    X = torch.stack([shared, shared, shared, own, 0.1 * own]).unsqueeze(0)
    p = AdaptiveChannelDropout(5, rate=0.5).probabilities(X)[0]
    assert (p[:3] - p[0]).abs().max() < 1e-12
    assert p[0] > p[3] and p[4] > p[3]


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


@pytest.mark.parametrize("factor", [1e-25, 1e25])
def test_dropout_probabilities_do_not_depend_on_the_scale(factor):
    X = features(6, 12).float()
    part = AdaptiveChannelDropout(6)
    assert relative_error(part.probabilities(factor * X), part.probabilities(X)) < 1e-6


@pytest.mark.parametrize("kind", DEGENERATE)
def test_dropout_degenerate_features(kind):
    X = degenerate(kind).requires_grad_()
    part = AdaptiveChannelDropout(6)
    p = part.probabilities(X)
    assert ((p > 0) & (p < 1)).all()
    assert torch.equal(p[1:], part.probabilities(X[1:]))
    out = part(X)
    out.sum().backward()
    assert torch.isfinite(out).all()
    # The probabilities are constants: the gradient is the factor of the channel.
    assert torch.equal(out, X * X.grad) and torch.equal(X.grad, X.grad[..., :1].expand_as(X))


def test_dropout_keeps_a_broken_sample_to_itself():
    X = features(6, 9, batch=3).float()
    broken = X.clone()
    broken[1, 2, 3] = torch.nan
    part = AdaptiveChannelDropout(6)
    torch.manual_seed(0)
    expected = part(X)
    torch.manual_seed(0)
    out = part(broken)
    assert torch.isnan(out[1]).any() and torch.equal(out[[0, 2]], expected[[0, 2]])
