"""What the functions compute."""

import pytest
import torch
from support.matrices import (
    SPECTRA,
    exact_covariance_root,
    features,
    orthogonal,
    regular_shape,
    relative_error,
    with_spectrum,
)

from covpool_plugins.linalg import (
    EigenMethod,
    NewtonSchulz,
    covariance,
    covariance_sqrt,
    list_methods,
    pack_triu,
    resolve_method,
    sqrtm,
    unpack_symmetric,
)

METHODS = list_methods()
EIGEN = [name for name in METHODS if isinstance(resolve_method(name), EigenMethod)]
SHAPES = [(8, 5), (6, 6), (5, 9)]  # dual, square, primal


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("method", EIGEN)
def test_eigen_methods_are_the_root(method, spectrum):
    A = with_spectrum(spectrum)
    S = sqrtm(A, method)
    assert relative_error(S @ S, A) < 1e-13


def test_published_newton_schulz():
    for spectrum in ("well", "repeated", "identity"):
        A = with_spectrum(spectrum)
        assert relative_error(sqrtm(A, "isqrt", iterations=20), sqrtm(A, "exact")) < 1e-12
    # For a 1 x 1 matrix, a / trace is 1: a fixed point, whatever the number of steps.
    assert sqrtm(torch.tensor([[9.0]]), "isqrt").item() == pytest.approx(3.0)
    # Two equal eigenvalues: x = 1/2, one step y = x (3 - x) / 2 = 5/8, times sqrt(trace) = sqrt(2).
    root = sqrtm(torch.eye(2, dtype=torch.float64), "isqrt", iterations=1)
    assert torch.allclose(root, torch.eye(2, dtype=torch.float64) * 0.625 * 2**0.5)


@pytest.mark.parametrize("method", METHODS)
def test_root_is_symmetric_commutes_and_scales(method):
    A, U = with_spectrum("well", 1)[0], orthogonal(6, 7)
    S = sqrtm(A, method)
    assert relative_error(S.mT, S) < 1e-14
    assert relative_error(S @ A, A @ S) < 1e-13
    assert relative_error(sqrtm(4 * A, method), 2 * S) < 1e-13
    assert relative_error(sqrtm(U @ A @ U.mT, method), U @ S @ U.mT) < 1e-12


@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", METHODS)
def test_fused_map_is_root_of_covariance(method, shape, centered):
    X = features(*shape)
    fused = covariance_sqrt(X, method, centered=centered)
    # A rank-deficient covariance has its zero eigenvalues only to rounding: their roots are 1e-8.
    assert relative_error(fused, sqrtm(covariance(X, centered), method)) < 1e-7
    if method in EIGEN:
        assert relative_error(fused, exact_covariance_root(X, centered)) < 1e-12


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", METHODS)
def test_triu_is_the_upper_triangle_row_by_row(method, shape):
    X = features(*shape)
    full, packed = covariance_sqrt(X, method), covariance_sqrt(X, method, vectorize="triu")
    row, column = torch.triu_indices(shape[0], shape[0])
    assert torch.allclose(packed, full[:, row, column], rtol=1e-12, atol=1e-14)
    assert torch.equal(unpack_symmetric(pack_triu(full), shape[0]).triu(), full.triu())


@pytest.mark.parametrize("compute, tolerance", [("mixed", 1e-6), ("float32", 1e-4), ("float64", 1e-6)])
@pytest.mark.parametrize("shape", [(64, 25), (25, 64)])
def test_float32_features(shape, compute, tolerance):
    X = features(*shape).float()
    S = covariance_sqrt(X, "exact", compute=compute)
    assert S.dtype == torch.float32
    assert relative_error(S, exact_covariance_root(X)) < tolerance


def test_covariance_survives_a_large_mean():
    X = features(6, 40)
    assert relative_error(covariance((X + 1e3).float()), covariance(X)) < 1e-3
    assert relative_error(covariance(X + 1e6), covariance(X)) < 1e-9
    assert torch.allclose(covariance(X[0]), torch.cov(X[0], correction=0))


@pytest.mark.parametrize("method", METHODS)
def test_samples_dimensions_positions_and_strides(method):
    shape = regular_shape(method, (6, 5))
    X = features(*shape, batch=6)
    expected = covariance_sqrt(X, method)
    together = covariance_sqrt(X.view(2, 3, *shape), method)
    assert together.shape == (2, 3, shape[0], shape[0])
    assert relative_error(together.flatten(0, 1), expected) < 1e-12
    for sample, root in zip(X, expected, strict=True):
        assert relative_error(covariance_sqrt(sample, method), root) < 1e-12
    order = torch.randperm(shape[1], generator=torch.Generator().manual_seed(1))
    assert relative_error(covariance_sqrt(X[..., order], method), expected) < 1e-12
    assert relative_error(covariance_sqrt(X.mT.contiguous().mT, method), expected) < 1e-14
    assert relative_error(covariance_sqrt(X[:1].expand(3, -1, -1), method)[2], expected[0]) < 1e-14


def test_method_objects_and_options_agree():
    A = with_spectrum("well")
    options = {"iterations": 3, "scaling": "frobenius"}
    roots = [sqrtm(A, NewtonSchulz(**options)), sqrtm(A, NewtonSchulz(), **options), sqrtm(A, "isqrt", **options)]
    assert torch.equal(roots[0], roots[1]) and torch.equal(roots[0], roots[2])


# Half precision and autocast: computed in float32 at least, in the backward too.
FUNCTIONS = {name: lambda X, name=name: covariance_sqrt(X, name) for name in METHODS}
FUNCTIONS |= {f"sqrtm-{name}": lambda X, name=name: sqrtm(covariance(X), name) for name in METHODS}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(8, 5), (5, 9)])
@pytest.mark.parametrize("method", METHODS)
def test_half_input_is_rounded_once(method, shape, dtype):
    X = features(*regular_shape(method, shape)).to(dtype).requires_grad_()
    out = covariance_sqrt(X, method)
    out.float().sum().backward()
    assert out.dtype == X.grad.dtype == dtype
    expected = covariance_sqrt(X.detach().double(), method)
    assert relative_error(out, expected) < 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("shape", [(8, 5), (5, 9)])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_autocast_changes_nothing_inside(name, shape):
    X = features(*shape).float()
    G = with_spectrum("well", 1).float().new_ones(2, shape[0], shape[0])
    plain, cast = X.clone().requires_grad_(), X.clone().requires_grad_()
    expected = FUNCTIONS[name](plain)
    expected.backward(G)
    with torch.autocast("cpu", torch.bfloat16):
        out = FUNCTIONS[name](cast)
        out.backward(G)  # inside: the backward products would be autocast as well
    assert torch.equal(out, expected) and torch.equal(cast.grad, plain.grad)
