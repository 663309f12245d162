"""Bilinear pooling: of two networks, compact (tensor sketch), low-rank, and parity with the original layers."""

import pytest
import torch
from support.golden import load, names, sample_errors
from support.matrices import features, relative_error

from covpool_plugins.errors import OptionError, ShapeError
from covpool_plugins.linalg import covariance
from covpool_plugins.pooling import create_pool
from covpool_plugins.pooling.bilinear import BilinearPool
from covpool_plugins.pooling.compact_bilinear import CompactBilinearPool
from covpool_plugins.pooling.low_rank_bilinear import LowRankBilinearPool, low_rank_factors

ROUTES = ("matrix", "fft")
# The low-rank pool has a route for fewer and one for more positions than channels.
SHAPES = [(6, 4), (6, 11)]
DOUBLE = {"dtype": torch.float64}


def maps(channels, height, width, batch=2, seed=0):
    return features(channels, height * width, batch, seed).unflatten(-1, (height, width))


def double_pool(name, channels, **options):
    return create_pool(name, channels, reduce_channels=None, **DOUBLE, **options)


# Parity with the original layers. They compute in float32: 1e-6 of the output, 1e-5 of the gradient.


def check_golden(golden, x, out):
    out.backward(golden.arrays["grad_output"].reshape(out.shape))
    expected = golden.arrays["output"].reshape(out.shape)
    assert max(sample_errors(out.detach(), expected)) < 1e-6
    assert max(sample_errors(x.grad, golden.arrays["grad_input"])) < 1e-5
    if golden.meta["input_kind"] == "zero":
        assert not out[0].any() and not x.grad[0].any()
        assert out[1].any() and x.grad[1].any()


@pytest.mark.parametrize("build", [lambda: double_pool("bcnn", 16), lambda: BilinearPool(16)], ids=["bcnn", "bilinear"])
@pytest.mark.parametrize("name", names("fmpn__BCNN__"))
def test_bilinear_golden(name, build):
    golden = load(name)
    x = golden.arrays["input"].requires_grad_()
    pool = build()
    check_golden(golden, x, pool(x))


@pytest.mark.parametrize("name", names("fmpn__BCNN_novec__"))
def test_bilinear_golden_normalised_by_columns(name):
    # Without vectorisation the original normalises each column of the matrix, which undoes the norm of the whole.
    golden = load(name)
    x = golden.arrays["input"].requires_grad_()
    pool = double_pool("bcnn", 16)
    check_golden(golden, x, torch.nn.functional.normalize(pool(x).unflatten(-1, (16, 16)), dim=1))


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", names("fmpn__CBP__"))
def test_compact_golden(name, route):
    golden = load(name)
    args = golden.meta["args"]
    pool = double_pool("cbp", args["input_dim"], projection=args["projDim"], eps=args["thresh"], route=route)
    for buffer in ("h1", "h2", "s1", "s2"):
        assert torch.equal(getattr(pool, buffer).double(), golden.arrays[buffer])
    x = golden.arrays["input"].requires_grad_()
    check_golden(golden, x, pool(x))


def sketch_by_definition(pool, X):
    """Circular convolution of the two count sketches, entry by entry."""
    out = torch.zeros(X.shape[0], pool.out_features, dtype=X.dtype)
    products = torch.einsum("bim,bjm->bij", X, X)
    for i, j in torch.cartesian_prod(torch.arange(X.shape[1]), torch.arange(X.shape[1])).tolist():
        to = (int(pool.h1[i]) + int(pool.h2[j])) % pool.out_features
        out[:, to] += float(pool.s1[i] * pool.s2[j]) * products[:, i, j]
    return out


@pytest.mark.parametrize("projection", [1, 15, 16])
@pytest.mark.parametrize("route", ROUTES)
def test_sketch(route, projection):
    pool = CompactBilinearPool(6, projection=projection, route=route)
    X = features(6, 5) - 0.2
    expected = sketch_by_definition(pool, X)
    assert relative_error(pool.sketch(X), expected) < 1e-14
    assert relative_error(pool.sketch(X.float()), expected) < 1e-6
    assert pool.sketch(X.bfloat16()).dtype == torch.float32
    assert pool.represent(X.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("route", ROUTES)
def test_sketch_derivatives(route):
    X = (features(4, 3) + 0.1).requires_grad_()
    pool = double_pool("cbp", 4, projection=7, route=route)
    assert torch.autograd.gradcheck(pool.sketch, X)
    assert torch.autograd.gradgradcheck(pool.sketch, X)
    assert torch.autograd.gradcheck(pool.represent, X)


@pytest.mark.parametrize("projection, positions, taken", [(16, 4, "fft"), (16, 5, "matrix"), (64, 4, "matrix")])
def test_automatic_route_handles_fewer_numbers(projection, positions, taken, monkeypatch):
    pool = CompactBilinearPool(12, projection=projection)
    for route in ROUTES:
        value = torch.full((2, projection), float(ROUTES.index(route)))
        monkeypatch.setattr(pool, f"_by_{route}", lambda X, value=value: value)
    assert torch.all((pool.sketch(features(12, positions)) == 0) == (ROUTES.index(taken) == 0))


@pytest.mark.filterwarnings("ignore")  # the exporter's own, about itself
def test_onnx_export_takes_the_route_that_onnx_has(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pool, x = CompactBilinearPool(24, projection=16).eval(), (maps(24, 3, 3) - 0.3).float()
    assert 24**2 > 2 * 9 * 16  # outside of an export the transforms would be taken
    axes = {"x": {0: "batch"}}
    torch.onnx.export(pool, (x,), tmp_path / "pool.onnx", dynamo=False, input_names=["x"], dynamic_axes=axes)
    session = onnxruntime.InferenceSession(tmp_path / "pool.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": x[:1].numpy()})
    assert relative_error(torch.from_numpy(found), pool(x[:1])) < 1e-5


def test_bins_of_dead_channels_are_exactly_zero():
    X = features(12, 3) + 0.1
    X[0, 3:] = 0
    by_matrix, by_fft = (double_pool("cbp", 12, projection=40, route=route).represent(X) for route in ROUTES)
    assert (by_matrix[0] == 0).sum() > 0 and by_matrix[0].any()
    assert torch.equal(by_fft == 0, by_matrix == 0)
    # Without the mask the rounding of the transforms would be signed and rooted to √ε.
    assert relative_error(by_fft, by_matrix) < 1e-12


def sketch_products(X, Y, draws, signed=True):
    """⟨sketch(X), sketch(Y)⟩ of one sample each, over independent draws, divided by the squared number of positions."""
    products = []
    for seed in range(draws):
        pool = CompactBilinearPool(X.shape[1], projection=64, seed=seed)
        if not signed:
            pool.s1.fill_(1), pool.s2.fill_(1)
        products.append(float((pool.sketch(X) * pool.sketch(Y)).sum()) / X.shape[-1] ** 2)
    estimates = torch.tensor(products, **DOUBLE)
    return float(estimates.mean()), float(estimates.std() / draws**0.5)


def test_sketch_is_unbiased():
    # By the central limit theorem the mean over independent draws is within 4 standard errors of the expectation but
    # for one choice of seeds in 16000. The standard error, below 1% of the expectation, is what a bias could hide in;
    # hashes without signs, which are biased by 61%, show that it cannot.
    X, Y = features(8, 9, batch=1, seed=1), features(8, 9, batch=1, seed=2)
    bcnn = create_pool("bcnn", 8)
    first, second = (bcnn.normalization(Z, bcnn.centered, "float64", "full") for Z in (X, Y))
    expected = float((first * second).sum())
    mean, error = sketch_products(X, Y, draws=1600)
    assert error < 0.01 * expected
    assert abs(mean - expected) < 4 * error
    unsigned, error = sketch_products(X, Y, draws=100, signed=False)
    assert unsigned - expected > 4 * error


def test_draws_are_buffers_and_leave_the_global_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    pool = CompactBilinearPool(12)
    assert torch.equal(torch.rand(4), expected)
    assert pool.out_features == 8192 and not list(pool.parameters())
    state = pool.state_dict()
    assert {name: value.dtype for name, value in state.items()} == {
        **dict.fromkeys(("h1", "h2"), torch.int64),
        **dict.fromkeys(("s1", "s2"), torch.float32),
    }
    other = CompactBilinearPool(12, seed=2)
    x = maps(12, 3, 3).float()
    assert not torch.equal(other.h1, pool.h1)
    other.load_state_dict(state)
    assert torch.equal(other(x), pool(x))


def test_draws_after_the_meta_device():
    pool = CompactBilinearPool(12, projection=32, device="meta", dtype=torch.float16).to_empty(device="cpu")
    pool.reset_parameters()
    expected = CompactBilinearPool(12, projection=32).state_dict()
    assert all(torch.equal(value, expected[name].to(value.dtype)) for name, value in pool.state_dict().items())


def classifiers(count=5, channels=6):
    W = torch.randn(count, channels, channels, generator=torch.Generator().manual_seed(0), **DOUBLE)
    return W + W.mT


@pytest.mark.parametrize("channels, positions", SHAPES)
def test_full_rank_is_the_bilinear_classifier(channels, positions):
    W, X = classifiers(channels=channels), features(channels, positions)
    expected = torch.einsum("kij,bij->bk", W, covariance(X, centered=False))
    pool = LowRankBilinearPool.from_classifiers(W, rank=2 * channels)
    assert pool.out_features == 5 and pool.factors.dtype == torch.float64
    assert relative_error(pool.represent(X), expected) < 1e-12


@pytest.mark.parametrize("rank", [2, 4])
def test_truncation_drops_the_smallest_eigenvalues_of_each_sign(rank):
    values = torch.tensor([-3.0, -2.0, -0.5, 0.1, 0.7, 4.0], **DOUBLE)
    basis = torch.linalg.qr(classifiers(1)[0])[0]
    W = ((basis * values) @ basis.T).unsqueeze(0)
    positive, negative = low_rank_factors(W, rank)[0]
    assert positive.shape == negative.shape == (rank // 2, 6)
    approximation = positive.T @ positive - negative.T @ negative
    kept = torch.tensor({2: [-3.0, 4.0], 4: [-3.0, -2.0, 0.7, 4.0]}[rank], **DOUBLE)
    eigenvalues = torch.linalg.eigvalsh(approximation)
    assert relative_error(eigenvalues[eigenvalues.abs() > 1e-9], kept) < 1e-12
    dropped = values.square().sum() - kept.square().sum()
    assert (W[0] - approximation).square().sum() == pytest.approx(float(dropped), rel=1e-9)


def test_factors_of_semi_definite_and_of_asymmetric_matrices():
    W = classifiers()
    W = W @ W.mT
    factors = low_rank_factors(W, 12)
    assert not factors[:, 1].any()
    assert relative_error(factors[:, 0].mT @ factors[:, 0], W) < 1e-12
    skew = torch.ones(6, 6, **DOUBLE).triu(1)
    assert relative_error(low_rank_factors(W + skew - skew.T, 12), factors) < 1e-12
    assert not low_rank_factors(torch.zeros(1, 6, 6), 4).any()


@pytest.mark.parametrize("channels, positions", SHAPES)
def test_responses_and_their_gradients(channels, positions):
    pool = double_pool("lrbp", channels, filters=3, rank=4)
    X = features(channels, positions).requires_grad_()
    expected = torch.stack(
        [((up @ X).square().sum((1, 2)) - (down @ X).square().sum((1, 2))) / positions for up, down in pool.factors], 1
    )
    assert relative_error(pool.represent(X), expected) < 1e-13

    def responses(X, factors):
        return torch.func.functional_call(pool, {"factors": factors}, X.unsqueeze(-1))

    assert torch.autograd.gradcheck(responses, (X, pool.factors))
    assert torch.autograd.gradgradcheck(responses, (X, pool.factors))


def test_shared_projection():
    pool = LowRankBilinearPool(128, filters=3)
    assert {name: tuple(p.shape) for name, p in pool.named_parameters()} == {
        "factors": (3, 2, 4, 100),
        "reduction.weight": (100, 128, 1, 1),
    }
    x = maps(128, 3, 3).float()
    # Filters on projected features are filters U P on the features themselves.
    whole = LowRankBilinearPool(128, filters=3, reduce_channels=None)
    whole.load_state_dict({"factors": pool.factors @ pool.reduction.weight[:, :, 0, 0]})
    assert relative_error(whole(x), pool(x)) < 1e-5
    assert create_pool("lrbp", 12).reduction.weight.shape == (12, 12, 1, 1)
    assert create_pool("lrbp", 12).out_features == 200


@pytest.mark.parametrize("fmt", ["NCHW", "NHWC", "NLC"])
def test_two_streams(fmt):
    layout = {"NCHW": lambda x: x, "NHWC": lambda x: x.permute(0, 2, 3, 1), "NLC": lambda x: x.flatten(2).mT}[fmt]
    x, y = maps(4, 2, 3) - 0.3, maps(5, 2, 3, seed=1)
    product = torch.einsum("bihw,bjhw->bij", x, y).flatten(1) / 6
    root = product.sign() * (product.abs() + 1e-8).sqrt()
    pool = BilinearPool(4, 5, input_fmt=fmt)
    out = pool(layout(x), layout(y))
    assert out.shape == (2, pool.out_features) == (2, 20)
    assert relative_error(out, root / root.norm(dim=1, keepdim=True)) < 1e-14


def test_one_stream_is_bcnn():
    x = maps(6, 3, 3) - 0.2
    pool = BilinearPool(6)
    assert relative_error(pool(x), double_pool("bcnn", 6)(x)) < 1e-13
    assert torch.equal(pool(x, x), pool(x))
    assert relative_error(pool(x.float()), pool(x)) < 1e-6
    assert not pool.state_dict()


def test_two_stream_gradients_and_prefix_tokens():
    # Away from zero, where the signed root jumps.
    x, y = ((maps(c, 2, 2) + 0.1).requires_grad_() for c in (3, 2))
    assert torch.autograd.gradcheck(BilinearPool(3, 2), (x, y))
    pool = BilinearPool(3, 2, input_fmt="NLC", num_prefix_tokens=1)
    tokens = [torch.cat([torch.full((2, 1, z.shape[1]), 1e3), z.flatten(2).mT], 1) for z in (x, y)]
    assert relative_error(pool(*tokens), BilinearPool(3, 2)(x, y)) < 1e-14


POOLS = {
    "cbp-matrix": (lambda: CompactBilinearPool(6, projection=16, route="matrix"), 1),
    "cbp-fft": (lambda: CompactBilinearPool(6, projection=16, route="fft"), 1),
    "lrbp-tall": (lambda: LowRankBilinearPool(6, filters=4, reduce_channels=None), 1),
    "lrbp-wide": (lambda: LowRankBilinearPool(20, filters=4, reduce_channels=None), 1),
    "bilinear": (lambda: BilinearPool(6, 6), 2),
}


def pool_and_inputs(kind, batch=3):
    build, inputs = POOLS[kind]
    pool = build()
    return pool, [maps(pool.in_channels, 3, 3, batch, seed).float() for seed in range(inputs)]


@pytest.mark.parametrize("kind", POOLS)
def test_zero_samples_and_nan_stay_where_they_are(kind):
    pool, inputs = pool_and_inputs(kind)
    expected = pool(*inputs)
    spoiled = [z.clone() for z in inputs]
    for z in spoiled:
        z[0] = 0
        z[1, 0, 0, 0] = torch.nan
        z.requires_grad_()
    out = pool(*spoiled)
    out[::2].square().sum().backward()
    assert not out[0].any() and out[1].isnan().any()
    assert relative_error(out[2], expected[2]) < 1e-6
    for z in spoiled:
        assert not z.grad[0].any() and torch.isfinite(z.grad[2]).all()


@pytest.mark.parametrize("kind", POOLS)
def test_constant_and_dead_channels(kind):
    pool, inputs = pool_and_inputs(kind)
    for z in inputs:
        z[0] = 0.5
        z[1, ::2] = 0
        z.requires_grad_()
    out = pool(*inputs)
    out.sum().backward()
    assert torch.isfinite(out).all() and all(torch.isfinite(z.grad).all() for z in inputs)


@pytest.mark.parametrize("kind", POOLS)
def test_compiles_exports_and_maps(kind):
    pool, inputs = pool_and_inputs(kind)
    expected = pool(*inputs)
    torch.compiler.reset()
    compiled = torch.compile(pool, fullgraph=True, backend="aot_eager")
    assert relative_error(compiled(*inputs), expected) < 1e-6
    batch = torch.export.Dim("batch")
    program = torch.export.export(pool, tuple(inputs), dynamic_shapes=tuple({0: batch} for _ in inputs))
    _, more = pool_and_inputs(kind, batch=5)
    assert relative_error(program.module()(*more), pool(*more)) < 1e-5
    mapped = torch.func.vmap(pool)(*[torch.stack([z, z.flip(0)]) for z in inputs])
    assert relative_error(mapped, torch.stack([expected, expected.flip(0)])) < 1e-5


@pytest.mark.parametrize("kind", POOLS)
def test_autocast_changes_nothing(kind):
    pool, inputs = pool_and_inputs(kind)
    with torch.autocast("cpu", torch.bfloat16):
        out = pool(*inputs)
    assert torch.equal(out, pool(*inputs))
    half = pool(*[z.bfloat16() for z in inputs])
    assert half.dtype == torch.bfloat16
    assert relative_error(half, pool(*[z.bfloat16().double() for z in inputs])) < torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: BilinearPool(4, -1), OptionError, "second_channels must be a positive integer, got -1"),
        (lambda: create_pool("cbp", 4, projection=0), OptionError, "projection must be a positive integer, got 0"),
        (lambda: create_pool("cbp", 4, projection=2.5), OptionError, "projection must be a positive integer, got 2.5"),
        (lambda: create_pool("cbp", 4, seed=-1), OptionError, r"seed must be an integer from 0 to .*, got -1"),
        (lambda: create_pool("cbp", 4, route="dft"), OptionError, "one of auto, matrix, fft, got 'dft'"),
        (lambda: create_pool("cbp", 4, eps=0), OptionError, r"must be a number in \(0, 1\), got 0"),
        (lambda: create_pool("lrbp", 4, filters=0), OptionError, "filters must be a positive integer, got 0"),
        (lambda: create_pool("lrbp", 4, rank=3), OptionError, "rank must be a positive even integer, got 3"),
        (lambda: create_pool("lrbp", 4, rank=0), OptionError, "rank must be a positive even integer, got 0"),
        (lambda: create_pool("lrbp", 4, reduce_channels=0), OptionError, "positive integer or None, got 0"),
        (lambda: low_rank_factors(torch.ones(4, 4), 2), ShapeError, r"\(K, C, C\), got shape \(4, 4\)"),
        (lambda: low_rank_factors(torch.ones(2, 4, 3), 2), ShapeError, r"\(K, C, C\), got shape \(2, 4, 3\)"),
        (lambda: BilinearPool(4, 5)(torch.ones(1, 4, 2, 2)), ShapeError, "4 and 5 channels: expected two inputs"),
        (
            lambda: BilinearPool(4, 5)(torch.ones(1, 4, 2, 2), torch.ones(1, 4, 2, 2)),
            ShapeError,
            r"second input\) pool: expected NCHW with in_channels=5, got shape \(1, 4, 2, 2\)",
        ),
        (
            lambda: BilinearPool(4)(torch.ones(1, 4, 2, 2), torch.ones(1, 4, 3, 3)),
            ShapeError,
            r"same batch and positions, got features \(1, 4, 4\) and \(1, 4, 9\)",
        ),
        (
            lambda: BilinearPool(4)(torch.ones(1, 4, 2, 2), torch.ones(2, 4, 2, 2)),
            ShapeError,
            r"same batch and positions, got features \(1, 4, 4\) and \(2, 4, 4\)",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
