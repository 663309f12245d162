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


@pytest.mark.parametrize("spectrum", ["well", "repeated", "identity"])
def test_newton_schulz_converges_to_the_root(spectrum):
    A = with_spectrum(spectrum)
    assert relative_error(sqrtm(A, "isqrt", iterations=20), sqrtm(A, "exact")) < 1e-12


def test_published_newton_schulz_on_one_number():
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
def test_order_of_positions_does_not_matter(method):
    X = features(*regular_shape(method, (7, 6)))
    shuffled = X[..., torch.randperm(X.shape[-1], generator=torch.Generator().manual_seed(1))]
    assert relative_error(covariance_sqrt(shuffled, method), covariance_sqrt(X, method)) < 1e-12


@pytest.mark.parametrize("method", METHODS)
def test_samples_and_leading_dimensions_are_independent(method):
    shape = regular_shape(method, (6, 5))
    X = features(*shape, batch=6)
    together = covariance_sqrt(X.view(2, 3, *shape), method)
    assert together.shape == (2, 3, shape[0], shape[0])
    for i in range(6):
        assert relative_error(together.flatten(0, 1)[i], covariance_sqrt(X[i], method)) < 1e-12


def test_method_objects_and_options_agree():
    A = with_spectrum("well")
    assert torch.equal(sqrtm(A, NewtonSchulz(iterations=3)), sqrtm(A, "isqrt", iterations=3))
    by_options = sqrtm(A, NewtonSchulz(), iterations=3, scaling="frobenius")
    assert torch.equal(by_options, sqrtm(A, NewtonSchulz(scaling="frobenius", iterations=3)))
