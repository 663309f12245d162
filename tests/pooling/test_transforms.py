"""torch.compile, torch.export, ONNX by both exporters, tracing, vmap and second derivatives of every pool."""

import io
from functools import partial

import pytest
import torch
from support.exporting import parametrize_names, run_onnx, to_onnx
from support.matrices import features, relative_error

from covpool_plugins.errors import ExportError
from covpool_plugins.pooling import BilinearPool, create_pool, list_pools

POOLS = list_pools()
EXPORTABLE = list_pools(exportable=True)
# Options that lead to other code than the defaults.
VARIANTS = {
    **{name: partial(create_pool, name, 12) for name in POOLS},
    "bilinear": partial(BilinearPool, 12, 12),
    "cbp-matrix": partial(create_pool, "cbp", 12, projection=16, route="matrix"),
    "cbp-fft": partial(create_pool, "cbp", 12, projection=16, route="fft"),
    "lrbp-wide": partial(create_pool, "lrbp", 12, filters=4, reduce_channels=6),
    "svpn-three": partial(create_pool, "svpn", 12, iterations=2, n=3),
    "powcov-learned": partial(create_pool, "powcov", 12, learn_p=True),
}
# Their gradient is no derivative of what they compute.
APPROXIMATE = {"svdtaylor", "svdpi", "svdtrunc", "svdtopn", "svdoriginal"}


def every_variant(*fast, among=VARIANTS):
    return parametrize_names(fast, among)


def pool_and_inputs(name, batch=3, seed=0):
    inputs = 2 if name == "bilinear" else 1
    maps = [features(12, 12, batch, seed + i).float().unflatten(-1, (3, 4)) for i in range(inputs)]
    torch.manual_seed(0)
    return VARIANTS[name]().eval(), maps


@every_variant("svdpade")
def test_compiles_without_graph_breaks(name):
    pool, inputs = pool_and_inputs(name)
    torch.compiler.reset()
    compiled = torch.compile(pool, fullgraph=True, backend="aot_eager")
    assert relative_error(compiled(*inputs), pool(*inputs)) < 1e-6
    with torch.no_grad():
        assert relative_error(compiled(*inputs), pool(*inputs)) < 1e-6


@pytest.mark.slow
def test_dropout_compiles_for_training():
    pool = create_pool("dropcov", 12, reduce_channels=None)
    x = features(12, 12).float().unflatten(2, (3, 4)).requires_grad_()
    torch.compiler.reset()
    out = torch.compile(pool, fullgraph=True, backend="aot_eager")(x)
    out.sum().backward()
    assert torch.isfinite(out).all() and torch.isfinite(x.grad).all()


OPEN = (0, 2, 3)  # batch, height, width


def larger_inputs(name):
    """More positions than the 12 channels, and another batch."""
    return [features(12, 24, 5, seed).float().unflatten(-1, (6, 4)) for seed, _ in enumerate(pool_and_inputs(name)[1])]


@every_variant("isqrt", "seb", among=[name for name in VARIANTS if name not in POOLS or name in EXPORTABLE])
def test_exports_with_any_batch_height_and_width(name):
    pool, inputs = pool_and_inputs(name)
    sizes = tuple({axis: torch.export.Dim.DYNAMIC for axis in OPEN} for _ in inputs)
    program = torch.export.export(pool, tuple(inputs), dynamic_shapes=sizes)
    for more in (inputs, larger_inputs(name)):
        assert relative_error(program.module()(*more), pool(*more)) < 1e-5


@pytest.mark.filterwarnings("ignore")  # the exporters' own, about themselves
@pytest.mark.parametrize("exporter", ["dynamo", "legacy"])
@every_variant("svdpade", among=EXPORTABLE)
def test_onnx_gives_the_same_vectors(name, exporter, tmp_path):
    pytest.importorskip("onnx")
    pool, inputs = pool_and_inputs(name)
    to_onnx(pool, inputs, exporter, tmp_path / "pool.onnx", OPEN)
    batches = [pool_and_inputs(name, 1, seed=1)[1][0], larger_inputs(name)[0]]
    for x, vectors in zip(batches, run_onnx(tmp_path / "pool.onnx", *batches), strict=True):
        assert relative_error(vectors, pool(x)) < 1e-5


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "layout, shape", [("NLC", (2, 9, 6)), ("NHWC", (2, 3, 4, 6)), ("NCL", (2, 6, 9)), ("NCDHW", (2, 6, 2, 3, 4))]
)
def test_onnx_takes_every_layout(layout, shape, tmp_path):
    pytest.importorskip("onnx")
    pool = create_pool("isqrt", 6, input_fmt=layout, num_prefix_tokens=int(layout == "NLC")).eval()
    x = torch.randn(shape)
    to_onnx(pool, (x,), "legacy", tmp_path / "pool.onnx", ())
    (vectors,) = run_onnx(tmp_path / "pool.onnx", x)
    assert relative_error(vectors, pool(x)) < 1e-5


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in POOLS if name not in EXPORTABLE])
def test_onnx_is_refused_by_the_others(name, tmp_path):
    pytest.importorskip("onnx")
    with pytest.raises(ExportError, match="needs a matrix decomposition, which ONNX does not have"):
        to_onnx(*pool_and_inputs(name), "legacy", tmp_path / "pool.onnx")


@pytest.mark.filterwarnings("ignore")
def test_onnx_of_a_sketch_takes_the_route_that_onnx_has(tmp_path):
    pytest.importorskip("onnx")
    pool, x = create_pool("cbp", 24, projection=16).eval(), features(24, 9).float().unflatten(2, (3, 3)) - 0.3
    assert 24**2 > 2 * 9 * 16  # outside of an export the transforms would be taken
    to_onnx(pool, (x,), "legacy", tmp_path / "pool.onnx")
    (vectors,) = run_onnx(tmp_path / "pool.onnx", x[:1])
    assert relative_error(vectors, pool(x[:1])) < 1e-5


@pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated
@every_variant("svdpade", "isqrt", "lrbp", "cbp", "seb", "logcov", "powcov", "gap", "svpn", "democratic")
def test_a_traced_pool_is_the_pool_and_can_be_saved(name):
    pool, inputs = pool_and_inputs(name)
    _, others = pool_and_inputs(name, batch=5, seed=1)
    torch.jit.save(torch.jit.trace(pool, tuple(inputs)), saved := io.BytesIO())
    saved.seek(0)
    assert relative_error(torch.jit.load(saved)(*others), pool(*others)) < 1e-6


@pytest.mark.parametrize("name", VARIANTS)
def test_maps_over_a_batch(name):
    pool, inputs = pool_and_inputs(name)
    pool, inputs = pool.double(), [x.double() for x in inputs]
    expected = pool(*inputs)
    mapped = torch.func.vmap(pool)(*[torch.stack([x, x.flip(0)]) for x in inputs])
    assert relative_error(mapped, torch.stack([expected, expected.flip(0)])) < 1e-5
    if name == "powcov-learned":
        return  # torch.func.grad does not find the exponent, which is no argument of the function of the eigenvalues
    leaves = [x.clone().requires_grad_() for x in inputs]
    pool(*leaves).sin().sum().backward()
    loss = lambda *sample: pool(*(x.unsqueeze(0) for x in sample)).sin().sum()  # noqa: E731
    assert relative_error(torch.func.vmap(torch.func.grad(loss))(*inputs), leaves[0].grad) < 1e-4


@pytest.mark.parametrize("shape", [(4, 3), (3, 5)])
@every_variant("bcnn", "seb", "logcov", "svdtaylor", "svpn", "democratic", among=POOLS)
def test_second_derivatives_are_right_or_refused(name, shape):
    if name == "denman_beavers":
        shape = (3, 5)  # magnifies rounding in the null space
    if name == "moment":
        shape = (6, shape[1])
    options = {} if name == "gap" else {"reduce_channels": None}
    options |= {"cbp": {"projection": 8}, "moment": {"heads": 2}}.get(name, {})
    pool = create_pool(name, shape[0], **options).double().eval()
    X = (features(*shape, batch=1) + 0.1).requires_grad_()
    represent = pool.represent if name != "moment" else lambda X: pool.represent(torch.cat([X, X], 1))
    if name in APPROXIMATE:
        with pytest.raises(RuntimeError, match="no further derivative"):
            torch.autograd.gradgradcheck(represent, X)
    else:
        assert torch.autograd.gradgradcheck(represent, X, atol=1e-4)
