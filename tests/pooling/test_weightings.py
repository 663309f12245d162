"""What weights features before their covariance: democratic aggregation and channel dropout."""

import numpy as np
import pytest
import torch
from support.matrices import features, relative_error

from covpool_plugins.linalg import covariance, pack_triu
from covpool_plugins.pooling import AdaptiveChannelDropout, DemocraticWeighting, create_pool


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
    part, omega = AdaptiveChannelDropout(6), torch.ones(2, 6) / 6
    assert part.rate(factor * X, omega) == pytest.approx(part.rate(X, omega).item(), abs=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_dead_and_faint_positions_and_channels(gamma):
    X = features(6, 9, batch=4).float()
    X[0, :, 4], X[1, 2] = 0, 0
    X[2, :, 4] *= 1e-12
    leaf = X.clone().requires_grad_()
    part = DemocraticWeighting(gamma=gamma)
    out = part(leaf)
    (grad,) = torch.autograd.grad(out.square().sum(), leaf)
    assert torch.isfinite(out).all() and torch.isfinite(grad).all() and torch.isfinite(part.weights(X)).all()
    assert not out[X == 0].any()


@pytest.mark.parametrize("part", [DemocraticWeighting(), AdaptiveChannelDropout(6)], ids=["democratic", "dropcov"])
def test_autocast_is_computed_in_float32(part):
    X = (100 * features(6, 9)).bfloat16()
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        out = part(X)
    torch.manual_seed(0)
    assert torch.equal(out.to(X.dtype), part(X.float()).to(X.dtype))


@pytest.mark.parametrize("options", [{}, {"gamma": 0.0}, {"gamma": 0.8, "damping": 0.3, "iterations": 2}])
def test_democratic_gradient(options):
    part = DemocraticWeighting(**options)
    X = (features(3, 5) + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(part, (X,))
    assert torch.autograd.gradcheck(part.weights, (X,))


def uneven(batch=2):
    """Features (B, 16, 40) of which few channels have most of the variance: the rate is between zero and one."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.logspace(0, -6, 16, dtype=torch.float64).unsqueeze(-1)
    return scales * torch.randn(batch, 16, 40, generator=generator, dtype=torch.float64)


def test_dropout_follows_the_seed_and_is_none_at_inference():
    X = uneven().float()
    pool, x = create_pool("dropcov", 16, reduce_channels=None), X.unflatten(2, (5, 8))
    assert AdaptiveChannelDropout(16).eval()(X) is X
    assert torch.equal(pool.eval()(x), pack_triu(covariance(X.double())).float())
    pool.train()

    def draw(seed):
        torch.manual_seed(seed)
        return pool(x)

    assert torch.equal(draw(0), draw(0))
    assert any(not torch.equal(draw(0), draw(seed)) for seed in range(1, 5))


def with_rate(rate, **factory):
    """One that finds this rate."""
    part = AdaptiveChannelDropout(6, **factory)
    part.rate = lambda *_: torch.tensor(rate)
    return part


def test_dropout_drops_whole_channels_and_scales_the_others():
    X, part = (features(6, 12) + 0.1).repeat(50, 1, 1), with_rate(0.4, dtype=torch.float64)
    torch.manual_seed(0)
    factors = (part(X) / X).detach()
    assert (factors.amax(-1) - factors.amin(-1)).abs().max() < 1e-12
    kept = factors[..., 0] != 0
    assert kept.any() and not kept.all()
    assert torch.allclose(factors[..., 0][kept], (1 + part.attention(X))[kept] / 0.6, rtol=1e-6)


def test_dropout_frequencies_and_average_covariance():
    X, part, n = features(6, 12, batch=1), with_rate(0.4, dtype=torch.float64), 20000
    torch.manual_seed(0)
    dropped = part(X.expand(n, -1, -1)).detach()
    frequency = (dropped == 0).all(-1).double().mean(0)
    assert ((frequency - 0.4).abs() < 5 * (0.24 / n) ** 0.5).all()
    samples = covariance(dropped)
    weighted = X * (1 + part.attention(X)).unsqueeze(-1)
    expected = covariance(weighted)[0].detach() * (1 + torch.eye(6) * 0.4 / 0.6)
    assert ((samples.mean(0) - expected).abs() <= 5 * samples.std(0) / n**0.5 + 1e-7).all()


def test_the_rate_is_its_formula():
    X, part = uneven(), AdaptiveChannelDropout(16, dtype=torch.float64)
    taps, cosines = part.weight.detach().flatten().numpy(), []
    omega = part.attention(X)
    for sample, attention in zip(X.numpy(), omega.detach().numpy(), strict=True):
        means = np.pad(sample.mean(1), 1)
        logits = np.array([taps @ means[i : i + 3] for i in range(16)])
        assert np.allclose(attention, np.exp(logits) / np.exp(logits).sum(), rtol=1e-12)
        sums = np.cov(sample * (1 + attention[:, None]), bias=True).sum(1)
        cosines.append(attention @ sums / np.linalg.norm(attention) / np.linalg.norm(sums))
    rate = part.rate(X * (1 + omega).unsqueeze(-1), omega)
    assert rate.item() == pytest.approx(min(max(1 - 10 / 4 * np.mean(cosines), 0), 1), abs=1e-12)
    assert 0 < rate < 1


@pytest.mark.parametrize("spoil", [0.0, 5.0, torch.nan, torch.inf])
def test_a_zero_constant_or_bad_sample_does_not_count(spoil):
    X, part = uneven(3).float(), AdaptiveChannelDropout(16)
    spoiled = torch.cat([X, torch.full_like(X[:1], spoil) * torch.linspace(0.3, 1, 16).unsqueeze(-1)])
    omega, expected = part.attention(spoiled), part.rate(X, part.attention(X))
    assert torch.equal(part.rate(spoiled, omega), expected) and 0 < expected < 1
    torch.manual_seed(0)
    x = spoiled.requires_grad_()
    out = create_pool("dropcov", 16, reduce_channels=None)(x.unsqueeze(-1))
    out[:3].sum().backward()
    assert torch.isfinite(out[:3]).all() and torch.isfinite(x.grad[:3]).all()
    assert torch.isfinite(torch.tensor(spoil)) != bool(out[3].isnan().any())


def test_channels_that_all_go_leave_zeros():
    X = features(6, 12).float().requires_grad_()
    out = with_rate(1.0)(X)
    out.sum().backward()
    assert not out.any() and not X.grad.any()
    one = AdaptiveChannelDropout(1)
    assert 0 <= one.rate(X[:, :1], one.attention(X[:, :1])) <= 1
