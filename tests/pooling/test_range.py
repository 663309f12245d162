"""Half precision, autocast and huge features: what is finite comes out finite, and right."""

import pytest
import torch
from support.matrices import relative_error

from covpool_plugins.pooling import create_pool, list_pools, pool_options

POOLS = list_pools()


def whole_pool(name, channels=8, **options):
    """A pool without reduction, so that the features are what is given, ready for inference."""
    if "reduce_channels" in pool_options(name):
        options["reduce_channels"] = None
    torch.manual_seed(0)
    return create_pool(name, channels, **options).eval()


STEEP = [("crosscov", dict(normalization="none")), ("crosscov", dict(alpha=0.8)), ("svpn", dict(alpha=0.8))]
STEEP += [("powcov", dict(p=0.8)), ("powcov", dict(learn_p=True)), ("logcov", dict(eps=1.0))]


@pytest.mark.parametrize("scale", [1e4, 1e-3, 1e-5])
@pytest.mark.parametrize("name, options", [*((name, {}) for name in POOLS), *STEEP])
def test_float16_neither_overflows_nor_vanishes(name, options, scale):
    pool, x = whole_pool(name, **options), (torch.randn(2, 8, 4, 5).relu() * scale).half()
    vectors, expected = pool.half()(x), pool.double()(x.double())
    assert expected.abs().max() > 0
    smallest = 2.0**-24 * expected.numel() ** 0.5  # what float16 has between zero and the features themselves
    assert (vectors - expected).norm() < 4 * torch.finfo(torch.float16).eps * expected.norm() + smallest


@pytest.mark.parametrize("name", POOLS)
def test_backward_inside_autocast_is_in_full_precision(name):
    pool, x = whole_pool(name), torch.randn(2, 8, 4, 5).relu()

    def gradients(inside):
        leaf = x.clone().requires_grad_()
        X = pool.features(leaf)
        with torch.autocast("cpu", torch.bfloat16):
            loss = pool.represent(X).float().sin().sum()
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
        of_parameters = [parameter.grad for parameter in pool.parameters() if parameter.grad is not None]
        pool.zero_grad()
        return [leaf.grad, *of_parameters]

    for inside, outside in zip(gradients(True), gradients(False), strict=True):
        assert (inside - outside).norm() <= 1e-6 * outside.norm()


@pytest.mark.parametrize("name", POOLS)
def test_the_largest_features_whose_vectors_are_finite(name):
    """As many as make sums of squares leave the range of float32 before their mean does."""
    pool, x = whole_pool(name), torch.randn(1, 8, 28, 28).relu()
    big = x * 1e18
    expected = pool.double()(big.double())
    assert torch.isfinite(pool.float()(big)).all()
    assert relative_error(pool(big), expected) < 1e-4
    big.requires_grad_()
    direction = torch.randn_like(expected)
    (grad,) = torch.autograd.grad((pool(big) * direction.float()).sum(), big)
    assert torch.isfinite(grad).all()
