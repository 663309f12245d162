"""Every pool of the table: layouts, options, batches, state dicts, bad input."""

import copy

import pytest
import torch
from support.matrices import relative_error
from torch import nn

from covpool_plugins.errors import OptionError
from covpool_plugins.linalg import NewtonSchulz, covariance_sqrt, list_methods
from covpool_plugins.pooling import REDUCTIONS, CovariancePool, create_pool, list_pools, pool_options

POOLS = list_pools()
LAYOUTS = {
    "NCHW": lambda x: x,
    "NHWC": lambda x: x.permute(0, 2, 3, 1),
    "NLC": lambda x: x.flatten(2).mT,
    "NCL": lambda x: x.flatten(2),
    "NCDHW": lambda x: x.unflatten(2, (2, -1)),
}


def maps(batch=2, channels=12, height=4, width=5):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, channels, height, width, generator=generator).relu()


@pytest.mark.parametrize("name", POOLS)
def test_layouts_copies_and_prefix_tokens(name):
    pool = create_pool(name, 12).eval()
    expected = pool(maps())
    assert expected.shape == (2, pool.out_features)
    assert torch.equal(copy.deepcopy(pool)(maps()), expected)
    assert relative_error(pool(maps().contiguous(memory_format=torch.channels_last)), expected) < 1e-5
    options = {} if name == "gap" else {"reduce_channels": None}
    if name == "moment":  # which takes other channels together in maps than in tokens
        options["interleaved"] = False
    pool = create_pool(name, 12, **options).eval()
    for fmt, to_layout in LAYOUTS.items():
        other = create_pool(name, 12, input_fmt=fmt, **options).eval()
        other.load_state_dict(pool.state_dict())
        assert relative_error(other(to_layout(maps())), pool(maps())) < 1e-5
    tokens, prefix = LAYOUTS["NLC"](maps()), torch.full((2, 2, 12), 1e3)
    pool, skipping = (create_pool(name, 12, input_fmt="NLC", num_prefix_tokens=count).eval() for count in (0, 2))
    skipping.load_state_dict(pool.state_dict())
    assert relative_error(skipping(torch.cat([prefix, tokens], 1)), pool(tokens)) < 1e-6


@pytest.mark.parametrize("reduction", list(REDUCTIONS))
@pytest.mark.parametrize("fmt", LAYOUTS)
def test_reductions_work_in_every_layout(reduction, fmt):
    pool = create_pool("svdpade", 12, input_fmt=fmt, reduce_channels=5, reduction=reduction)
    out = pool(LAYOUTS[fmt](maps()))
    out.square().sum().backward()
    assert out.shape == (2, 15)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in pool.parameters())


def test_reduction_by_default():
    assert [create_pool("svdpade", c).out_features for c in (2048, 256, 8)] == [32896, 32896, 36]
    assert isinstance(create_pool("svdpade", 8).reduction[0], nn.Conv2d)
    assert isinstance(create_pool("svdpade", 8, input_fmt="NLC").reduction[0], nn.Linear)
    assert isinstance(create_pool("svdpade", 8, reduce_channels=None).reduction, nn.Identity)


@pytest.mark.parametrize("name", list_methods())
def test_output_is_the_vectorised_root(name):
    x = maps()
    root = covariance_sqrt(x.flatten(2), name)
    row, column = torch.triu_indices(12, 12)
    assert relative_error(create_pool(name, 12, reduce_channels=None)(x), root[:, row, column]) < 1e-6
    full = create_pool(name, 12, reduce_channels=None, vectorize="full")
    assert full.out_features == 144
    assert relative_error(full(x), root.flatten(1)) < 1e-6


@pytest.mark.parametrize("name", POOLS)
def test_autocast_rounds_the_reduction_only(name):
    pool = create_pool(name, 12).eval()
    x = maps().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        features = pool.features(x)
        out = pool.represent(features)
        (grad,) = torch.autograd.grad(out.float().sum(), x)
    assert torch.isfinite(grad).all() and grad.any()
    assert relative_error(out, pool.represent(features.detach().double())) < torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", POOLS)
def test_half_precision_is_computed_in_float32(name, dtype):
    pool = create_pool(name, 12).eval().to(dtype)
    X = pool.features(maps().to(dtype)).detach()
    out = pool.represent(X)
    expected = pool.float().represent(X.float()).to(out.dtype)
    assert out.dtype == dtype or (out.dtype == torch.float32 and dtype == torch.float16 and not pool.in_range)
    if name in ("seb", "ibcnn", "democratic"):  # what they pass on is rounded too
        assert relative_error(out, expected) < torch.finfo(dtype).eps
    else:
        assert torch.equal(out, expected)


@pytest.mark.parametrize("name", POOLS)
def test_device_dtype_and_options(name):
    pool = create_pool(name, 12, device="meta").eval()
    with torch.device("meta"):
        parameters = [*pool.parameters(), *create_pool(name, 4).parameters()]
    assert all(p.is_meta for p in parameters) and pool(maps().to("meta")).shape == (2, pool.out_features)
    assert create_pool(name, 12, dtype=torch.float64)(maps().double()).dtype == torch.float64
    options = pool_options(name)
    assert len(set(options)) == len(options)
    assert not {"pool_type", "weighting", "device", "dtype"} & set(options)
    assert set(pool_options(name, of_parts=False)) <= set(options)


@pytest.mark.parametrize("name", POOLS)
def test_the_repr_tells_what_is_pooled_and_how(name):
    pool = create_pool(name, 12, input_fmt="NLC", num_prefix_tokens=1)
    text = repr(pool)
    assert f"{name!r}, 12 -> {pool.out_features}, input_fmt='NLC', num_prefix_tokens=1" in text
    assert all(f"{option}={getattr(pool, option)!r}" in text for option in pool.shown)
    assert "centered=" in text or not isinstance(pool, CovariancePool)


def test_options_of_the_method():
    pool = create_pool("isqrt", 12, iterations=3, scaling="frobenius")
    assert (pool.method.iterations, pool.method.scaling) == (3, "frobenius")
    assert CovariancePool(12, method=pool.method).method is pool.method
    assert pool_options("isqrt")[0] == "scaling" and {"alpha", "n", "start"} <= set(pool_options("svpn"))
    assert "method" in pool_options("ibcnn") and "method" not in pool_options("svdpade")
    assert create_pool("ibcnn", 4, method="isqrt", iterations=3).method == NewtonSchulz(iterations=3)


@pytest.mark.parametrize("name", ["bcnn", "ibcnn", "cbp", "democratic"])
@pytest.mark.parametrize("scale, dtype", [(300.0, torch.float16), (3e18, torch.float32), (1e-18, torch.float32)])
def test_vectors_of_length_one_at_any_scale(name, scale, dtype):
    vectors = create_pool(name, 12)((maps() * scale).to(dtype)).double()
    assert torch.allclose(vectors.norm(dim=1), torch.ones(2, dtype=torch.float64), atol=1e-2)


def test_a_sketch_is_the_same_by_both_routes_at_any_scale():
    for scale in (1.0, 1e17):
        by_matrix, by_fft = (create_pool("cbp", 12, route=route)(maps() * scale) for route in ("matrix", "fft"))
        assert relative_error(by_fft, by_matrix) < 1e-3


@pytest.mark.parametrize("name", POOLS)
def test_spectrum_changes_nothing_and_survives_a_bad_sample(name):
    pool = create_pool(name, 12).train()
    before = copy.deepcopy(pool.state_dict())
    random = torch.get_rng_state()
    x = torch.cat([maps(), torch.full((1, 12, 4, 5), torch.nan), torch.zeros(1, 12, 4, 5)])
    pool.spectrum(x)
    assert pool.training and all(torch.equal(before[key], value) for key, value in pool.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    out = pool(maps())
    pool.spectrum(maps())
    out.sum().backward() if out.requires_grad else None  # nothing that it needs was changed
    spectrum = pool.eval().spectrum(x)
    assert torch.isfinite(spectrum.eigenvalues[:2]).all() and torch.isnan(spectrum.eigenvalues[2]).all()
    assert torch.isnan(spectrum.condition_number[2]) and torch.isnan(spectrum.effective_rank[2])


def test_spectrum_of_zeros():
    spectrum = create_pool("gap", 12).spectrum(torch.zeros(1, 12, 4, 5))
    assert spectrum.effective_rank == 0 and spectrum.rank == 0 and torch.isinf(spectrum.condition_number)


@pytest.mark.parametrize("name, options", [("svdpade", {}), ("isqrt", {"centered": False}), ("bcnn", {}), ("cbp", {})])
def test_spectrum_centres_as_the_pool(name, options):
    pool = create_pool(name, 12, reduce_channels=None, **options)
    X = maps().flatten(2).double()
    X = X - X.mean(-1, keepdim=True) if name == "svdpade" else X
    expected = torch.linalg.eigvalsh(X @ X.mT / X.shape[-1]).flip(-1)
    assert relative_error(pool.spectrum(maps()).eigenvalues, expected) < 1e-9


@pytest.mark.parametrize("name", POOLS)
def test_matrices_come_back_from_vectors(name):
    pool = create_pool(name, 12).eval()
    vectors = pool(maps())
    try:
        matrices = pool.matrix(vectors)
    except OptionError:
        return
    assert torch.equal(matrices, matrices.mT)
    rows, columns = torch.triu_indices(*matrices.shape[1:])
    assert torch.equal(vectors, matrices[:, rows, columns] if pool.vectorize == "triu" else matrices.flatten(1))
    weights = torch.randn(pool.out_features)
    assert torch.allclose((pool.weight_matrix(weights) * matrices).sum((1, 2)), vectors @ weights, atol=1e-4)
