"""Every pool of the table: layouts, options, batches, state dicts, bad input."""

import copy

import pytest
import torch
from support.matrices import relative_error
from torch import nn

from covpool_plugins.errors import ExportError
from covpool_plugins.linalg import NewtonSchulz, covariance_sqrt, list_methods
from covpool_plugins.pooling import REDUCTIONS, CovariancePool, create_pool, list_pools, pool_options

POOLS = list_pools()
LAYOUTS = {
    "NCHW": lambda x: x,
    "NHWC": lambda x: x.permute(0, 2, 3, 1),
    "NLC": lambda x: x.flatten(2).mT,
}


def maps(batch=2, channels=12, height=4, width=5):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, channels, height, width, generator=generator).relu()


@pytest.mark.parametrize("fmt", LAYOUTS)
@pytest.mark.parametrize("name", POOLS)
def test_layouts_agree(name, fmt):
    options = {} if name == "gap" else {"reduce_channels": None}
    reference = create_pool(name, 12, **options).eval()
    expected = reference(maps())
    pool = create_pool(name, 12, input_fmt=fmt, **options).eval()
    pool.load_state_dict(reference.state_dict())
    assert expected.shape == (2, pool.out_features)
    assert relative_error(pool(LAYOUTS[fmt](maps())), expected) < 1e-5


@pytest.mark.parametrize("name", POOLS)
def test_prefix_tokens_are_left_out(name):
    tokens = LAYOUTS["NLC"](maps())
    pool = create_pool(name, 12, input_fmt="NLC").eval()
    skipping = create_pool(name, 12, input_fmt="NLC", num_prefix_tokens=2).eval()
    skipping.load_state_dict(pool.state_dict())
    prefix = torch.full((2, 2, 12), 1e3)
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


def test_method_options_reach_the_method():
    pool = create_pool("isqrt", 12, iterations=3, scaling="frobenius")
    assert (pool.method.iterations, pool.method.scaling) == (3, "frobenius")
    assert create_pool("svdpade", 12).represent(maps().flatten(2)).shape == (2, 78)
    assert CovariancePool(12, method=pool.method).method is pool.method


@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("name", POOLS)
def test_any_batch(name, batch):
    pool = create_pool(name, 12).eval()
    assert pool(maps(batch)).shape == (batch, pool.out_features)


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


@pytest.mark.parametrize("name", POOLS)
def test_channels_last_and_copies_and_state(name):
    pool = create_pool(name, 12).eval()
    expected = pool(maps())
    assert relative_error(pool(maps().contiguous(memory_format=torch.channels_last)), expected) < 1e-5
    assert torch.equal(copy.deepcopy(pool)(maps()), expected)
    other = create_pool(name, 12).eval()
    other.load_state_dict(pool.state_dict())
    assert torch.equal(other(maps()), expected)


@pytest.mark.parametrize("name", POOLS)
def test_device_and_dtype(name):
    assert all(p.is_meta for p in create_pool(name, 12, device="meta").parameters())
    pool = create_pool(name, 12, dtype=torch.float64)
    assert pool(maps().double()).dtype == torch.float64


@pytest.mark.fast_for("svdpade", "isqrt", "cbp", "temporal", "gap")
@pytest.mark.parametrize("name", POOLS)
def test_compiles_and_exports(name):
    pool = create_pool(name, 12).eval()
    torch.compiler.reset()
    assert relative_error(torch.compile(pool, fullgraph=True, backend="aot_eager")(maps()), pool(maps())) < 1e-6
    dims = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(pool, (maps(),), dynamic_shapes=dims)
    assert relative_error(program.module()(maps(5)), pool(maps(5))) < 1e-5


@pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated
@pytest.mark.parametrize("name", POOLS)
def test_traces(name):
    pool = create_pool(name, 12).eval()
    assert relative_error(torch.jit.trace(pool, maps())(maps(3)), pool(maps(3))) < 1e-6


@pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated
def test_scripts_are_refused_in_one_line():
    with pytest.raises(ExportError, match=r"torch.jit.script cannot take the svdpade pool, .*; use torch.jit.trace"):
        torch.jit.script(nn.Sequential(create_pool("svdpade", 12)))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: create_pool("svdpate", 4), "unknown pool 'svdpate'; available: svdpade, "),
        (
            lambda: create_pool("gap", 4, reduce_channels=2),
            "pool 'gap' has no option 'reduce_channels'; its options: ",
        ),
        (lambda: create_pool("isqrt", 4, iteration=3), "pool 'isqrt' has no option 'iteration'; its options: scaling"),
        (
            lambda: create_pool("isqrt", 4, reduce_channels=0),
            "reduce_channels must be a positive integer or None, got 0",
        ),
        (lambda: create_pool("isqrt", 0), "in_channels must be a positive integer, got 0"),
        (lambda: create_pool("gap", None), "in_channels must be a positive integer, got None"),
        (lambda: create_pool("isqrt", 4, num_prefix_tokens=-1), "num_prefix_tokens must be an integer >= 0, got -1"),
        (lambda: create_pool("isqrt", 4, num_prefix_tokens="1"), "num_prefix_tokens must be an integer >= 0, got '1'"),
        (lambda: create_pool("isqrt", 4, centered="no"), "centered must be True or False, got 'no'"),
        (lambda: create_pool("isqrt", 4, method="mpa"), "pool 'isqrt' has no option 'method'"),
        (lambda: create_pool("powcov", 4, method="mpa"), "pool 'powcov' has no option 'method'"),
        (lambda: create_pool("isqrt", 4, pool_type="x"), "pool 'isqrt' has no option 'pool_type'"),
        (lambda: create_pool("isqrt", 4, weighting=3), "pool 'isqrt' has no option 'weighting'"),
        (lambda: create_pool("bcnn", 4, reduction="conv-bn-relu"), "reduction='conv-bn-relu' needs reduce_channels"),
        (lambda: create_pool("bcnn", 4)(torch.ones(2, 4, 3, 3).long()), "must be real floating point, got torch.int64"),
        (lambda: create_pool("bcnn", 4)([1.0]), "must be a tensor, got list"),
        (lambda: create_pool("isqrt", 4, reduction="conv"), "unknown reduction 'conv'; available: conv-bn-relu, "),
        (lambda: create_pool("isqrt", 4, vectorize="tril"), "vectorize must be one of full, triu, got 'tril'"),
        (lambda: create_pool("isqrt", 4, compute="half"), "compute must be one of mixed, float32, float64, got 'half'"),
        (lambda: create_pool("isqrt", 4, input_fmt="NHCW"), "input_fmt must be one of NCHW, NHWC, NLC, got 'NHCW'"),
        (lambda: create_pool("isqrt", 4, num_prefix_tokens=1), "num_prefix_tokens=1 needs input_fmt='NLC', got 'NCHW'"),
        (lambda: create_pool("isqrt", 4)(torch.ones(2, 5, 3, 3)), r"NCHW with in_channels=4, got shape \(2, 5, 3, 3\)"),
        (lambda: create_pool("gap", 4)(torch.ones(2, 4, 9)), r"NCHW with in_channels=4, got shape \(2, 4, 9\)"),
        (lambda: create_pool("gap", 4)(torch.ones(2, 4, 0, 3)), r"no positions to pool over, got shape \(2, 4, 0, 3\)"),
        (
            lambda: create_pool("gap", 4, input_fmt="NLC", num_prefix_tokens=3)(torch.ones(2, 3, 4)),
            r"no positions to pool over, got shape \(2, 3, 4\)",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", POOLS)
def test_listed_options_are_taken(name):
    with torch.device("meta"):
        pool = create_pool(name, 4)
    assert all(p.is_meta for p in pool.parameters())
    options = pool_options(name)
    assert len(set(options)) == len(options)
    assert not {"pool_type", "weighting", "device", "dtype"} & set(options)
    assert set(pool_options(name, of_parts=False)) <= set(options)


def test_options_of_the_method_that_a_pool_leaves_open():
    assert pool_options("isqrt")[0] == "scaling" and "iterations" in pool_options("isqrt")
    assert {"alpha", "n", "start"} <= set(pool_options("svpn")) and "p" in pool_options("powcov")
    assert "method" in pool_options("ibcnn") and "method" not in pool_options("svdpade")
    pool = create_pool("ibcnn", 4, method="isqrt", iterations=3)
    assert pool.method == NewtonSchulz(iterations=3)


@pytest.mark.parametrize("name", POOLS)
def test_shapes_without_data(name):
    pool = create_pool(name, 12, device="meta").eval()
    assert pool(maps().to("meta")).shape == (2, pool.out_features)


@pytest.mark.parametrize("name", ["bcnn", "ibcnn", "cbp", "democratic"])
@pytest.mark.parametrize("scale, dtype", [(300.0, torch.float16), (3e18, torch.float32), (1e-18, torch.float32)])
def test_vectors_of_length_one_at_any_scale(name, scale, dtype):
    vectors = create_pool(name, 12)((maps() * scale).to(dtype)).double()
    assert torch.allclose(vectors.norm(dim=1), torch.ones(2, dtype=torch.float64), atol=1e-2)


def test_a_sketch_is_the_same_by_both_routes_at_any_scale():
    for scale in (1.0, 1e17):
        by_matrix, by_fft = (create_pool("cbp", 12, route=route)(maps() * scale) for route in ("matrix", "fft"))
        assert relative_error(by_fft, by_matrix) < 1e-3


def test_hashes_of_another_length_are_refused():
    state = {d: create_pool("cbp", 32, projection=d).state_dict() for d in (64, 256)}
    for own, other in ((64, 256), (256, 64)):
        pool = create_pool("cbp", 32, projection=own)
        pool.load_state_dict(state[own])
        with pytest.raises(RuntimeError, match=f"does not fit projection={own}"):
            pool.load_state_dict(state[other])


def test_spectrum_changes_nothing_and_survives_a_bad_sample():
    pool = create_pool("svdpade", 12).train()
    before = copy.deepcopy(pool.state_dict())
    x = torch.cat([maps(), torch.full((1, 12, 4, 5), torch.nan), torch.zeros(1, 12, 4, 5)])
    pool.spectrum(x)
    assert pool.training and all(torch.equal(before[key], value) for key, value in pool.state_dict().items())
    out = pool(maps())
    pool.spectrum(maps())
    out.sum().backward()  # nothing that it needs was changed
    found = create_pool("gap", 12).spectrum(x)
    assert torch.isfinite(found.eigenvalues[:2]).all() and torch.isnan(found.eigenvalues[2]).all()
    assert torch.isnan(found.condition_number[2]) and torch.isnan(found.effective_rank[2])
    assert found.effective_rank[3] == 0 and found.rank[3] == 0 and torch.isinf(found.condition_number[3])


@pytest.mark.parametrize("scale", [1e-18, 1e18])
@pytest.mark.parametrize("name", POOLS)
def test_ends_of_the_range(name, scale):
    options = {} if name == "gap" else {"reduce_channels": None}
    pool = create_pool(name, 12, **options)
    x = (maps() * scale).requires_grad_()
    out = pool(x)
    # A loss of the size that ordinary features would have: its gradient is within range where the pool's are.
    size = out.detach().abs().amax().clamp_min(1e-30)
    grads = torch.autograd.grad((out / size).sum(), [x, *pool.parameters()], allow_unused=True)
    assert torch.isfinite(out).all() and all(g is None or torch.isfinite(g).all() for g in grads)
