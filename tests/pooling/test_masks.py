"""Masks of ragged samples: what is left out might as well not be there."""

import pytest
import torch
from support.matrices import relative_error

from covpool_plugins.pooling import BilinearPool, create_pool, list_pools, pool_options

LENGTHS = (9, 4, 0)  # more positions than channels, fewer, none
CHANNELS = 6


def ragged(dtype=torch.float64):
    """Tokens (3, 9, 6), what counts of them in front, behind it what must not matter, and the mask."""
    tokens = torch.randn(3, 9, CHANNELS, dtype=dtype)
    mask = torch.arange(9) < torch.tensor(LENGTHS).unsqueeze(-1)
    order = torch.randperm(9)  # what counts may be anywhere
    tokens[~mask] = torch.nan
    return tokens[:, order], mask[:, order]


def token_pool(name, **options):
    return create_pool(name, CHANNELS, input_fmt="NLC", **options).double()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", list_pools())
def test_a_masked_sample_is_the_shorter_one(name, training):
    pool = token_pool(name).train(training)
    tokens, mask = ragged()
    tokens.requires_grad_()
    torch.manual_seed(1)
    vectors = pool(tokens, mask)
    assert not vectors[2].any() and torch.isfinite(vectors).all()
    grad_output = torch.randn_like(vectors)
    (grad,) = torch.autograd.grad((vectors * grad_output).sum(), tokens)
    assert not grad[~mask].any() and torch.isfinite(grad).all()
    if training and name == "dropcov":  # random
        return
    for i in range(2):
        shorter = tokens[i : i + 1, mask[i]].detach().requires_grad_()
        expected = pool(shorter)
        assert relative_error(vectors[i : i + 1], expected) < 1e-9
        (its_grad,) = torch.autograd.grad((expected * grad_output[i]).sum(), shorter)
        assert relative_error(grad[i, mask[i]], its_grad[0]) < 1e-6


@pytest.mark.parametrize("name", list_pools())
def test_batch_norm_takes_its_statistics_of_what_counts(name):
    """Every sample has as many positions, in other places, so that the batch could be given without a mask."""
    options = {"reduce_channels": 8, "reduction": "conv-bn-relu"} if "reduction" in pool_options(name) else {}
    pool, other = (create_pool(name, CHANNELS, input_fmt="NCL", **options).double() for _ in range(2))
    other.load_state_dict(pool.state_dict())
    x = torch.randn(2, CHANNELS, 7, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 0, 1, 1, 0, 1], [0, 1, 1, 1, 1, 1, 0]]).bool()
    short = torch.stack([sample[:, row] for sample, row in zip(x, mask, strict=True)])
    torch.manual_seed(1)
    vectors = pool(x, mask)
    torch.manual_seed(1)
    assert relative_error(vectors, other(short)) < 1e-9
    for key, value in other.state_dict().items():
        assert torch.allclose(pool.state_dict()[key].double(), value.double(), atol=1e-12)


@pytest.mark.parametrize("options", [dict(), dict(level="frame"), dict(spatial_attention=False)])
def test_a_masked_clip_is_the_shorter_one(options):
    pool = create_pool("temporal", CHANNELS, frames=3, input_fmt="NCL", **options).double().train()
    for module in pool.attention.modules():
        for parameter in module.parameters(recurse=False):
            torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(6, CHANNELS, 7, dtype=torch.float64)
    mask = torch.arange(7).expand(6, 7) < 5
    assert relative_error(pool(x, mask), pool(x[..., :5])) < 1e-9
    assert relative_error(pool.eval()(x, mask), pool(x[..., :5])) < 1e-9


@pytest.mark.parametrize("name", ["svdpade", "powcov", "gaussian", "seb", "ibcnn"])
def test_second_derivatives_are_those_of_the_shorter_sample(name):
    """Fewer positions than channels count, of more than channels in the batch."""
    pool = create_pool(name, 4, reduce_channels=None, input_fmt="NCL", dtype=torch.float64).eval()
    generator = torch.Generator().manual_seed(0)
    x, along = (torch.randn(1, 4, 9, dtype=torch.float64, generator=generator) for _ in range(2))

    def second(x, along, *mask):
        gradient = torch.func.grad(lambda x: pool(x, *mask).sin().sum())
        return torch.func.jvp(gradient, (x,), (along,))[1]

    masked, short = second(x, along, torch.arange(9)[None] < 3), second(x[..., :3], along[..., :3])
    assert (masked[..., :3] - short).norm() < 1e-9 * short.norm() and not masked[..., 3:].any()


def test_two_streams_share_a_mask():
    pool = BilinearPool(CHANNELS, 2, input_fmt="NLC").double()
    tokens, mask = ragged()
    vectors = pool(tokens, tokens[..., :2], mask=mask)
    assert not vectors[2].any()
    short = tokens[1:2, mask[1]]
    assert relative_error(vectors[1:2], pool(short, short[..., :2])) < 1e-12


@pytest.mark.parametrize("name", list_pools())
def test_the_rounding_of_a_large_mean_is_no_variance(name):
    """A constant sample, in float32."""
    tokens = torch.full((1, 9, CHANNELS), 1e3) * torch.linspace(0.3, 1, CHANNELS)
    options = {"reduce_channels": None} if "reduce_channels" in pool_options(name) else {}
    pool = create_pool(name, CHANNELS, input_fmt="NLC", **options).eval()
    expected = pool(tokens[:, :7])
    assert (pool(tokens, torch.arange(9)[None] < 7) - expected).abs().max() <= 1e-3 * expected.abs().max()


def test_a_mask_of_nothing_and_mapped_samples_in_evaluation():
    """No statistics are taken there: ``temporal`` has a batch norm behind its reduction, too."""
    pool = create_pool("temporal", 8, frames=1, reduce_channels=6, input_fmt="NLC").eval()
    x, mask = torch.randn(2, 9, 8), torch.arange(9) < torch.tensor([[9], [5]])
    assert not pool(x, torch.zeros(2, 9, dtype=torch.bool)).any()
    mapped = torch.vmap(lambda x, mask: pool(x[None], mask[None])[0])(x, mask)
    assert torch.allclose(mapped, pool(x, mask), atol=1e-6)


@pytest.mark.parametrize("positions", [7, 12])
def test_the_signed_root_of_small_entries_of_a_root(positions):
    """It magnified their rounding: the gradient was 8e-5 off."""
    X = torch.randn(2, 64, positions, positions, generator=torch.Generator().manual_seed(0))
    weights = torch.linspace(-1, 1, 64**2, dtype=torch.float64)
    gradients = []
    for dtype in (torch.float32, torch.float64):
        x = X.to(dtype, copy=True).requires_grad_()
        (create_pool("ibcnn", 64, dtype=dtype)(x).double() * weights).sum().backward()
        gradients.append(x.grad.double())
    assert (gradients[0] - gradients[1]).norm() < 1e-6 * gradients[1].norm()


@pytest.mark.parametrize("name", [name for name in list_pools() if name not in ("gap", "temporal")])
def test_samples_that_are_constant_but_for_rounding(name):
    """What counts as rounding is the same with a mask and without."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 1, 8, generator=generator) * (1 + 6e-8 * torch.randn(1, 20, 8, generator=generator))
    pool, mask = create_pool(name, 8, reduce_channels=None, input_fmt="NLC").eval(), (torch.arange(24) < 20)[None]
    alone, masked = pool(x), pool(torch.cat([x, torch.zeros(1, 4, 8)], dim=1), mask)
    torch.testing.assert_close(masked, alone, rtol=1e-4, atol=1e-6)
