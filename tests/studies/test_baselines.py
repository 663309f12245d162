"""The baselines are what they say: the originals' numbers, the exact root, or the package's own operator."""

from functools import partial

import pytest
import torch
from studies.baselines import (
    BASELINES,
    ISQRT,
    MPA,
    SVD_PADE,
    lyapunov_steps,
    pade_quotients,
    published_inverse_root,
)
from studies.measure import exact_root_and_gradient, seeded_gradient, value_and_gradient
from support.golden import load, names
from support.matrices import exact_covariance_root, features, relative_error

from covpool_plugins.linalg import covariance_sqrt, inv_sqrtm, lyapunov, packed_size, sqrtm

SHAPES = [(6, 15), (9, 5)]  # of full rank, and with fewer positions than channels


def _input(shape):
    X = features(*shape)
    return X, seeded_gradient(torch.Size([2, packed_size(shape[0])])).double()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_exact_reference_is_the_root_and_its_gradient(shape):
    X, G = _input(shape)
    value, gradient = exact_root_and_gradient(X, G)
    row, column = torch.triu_indices(shape[0], shape[0])
    assert relative_error(value, exact_covariance_root(X)[:, row, column]) < 1e-12
    direction, step = features(*shape, seed=1), 1e-5
    along = [(exact_root_and_gradient(X + h * direction, G)[0] * G).sum() for h in (step, -step)]
    assert torch.isclose((along[0] - along[1]) / (2 * step), (gradient * direction).sum(), rtol=1e-7)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", [name for name, baseline in BASELINES.items() if not baseline.operator])
def test_roots(name, shape):
    X, G = _input(shape)
    value, gradient = value_and_gradient(partial(BASELINES[name], dtype=torch.float64), X, G)
    exact_value, exact_gradient = exact_root_and_gradient(X, G)
    # Autograd through eigh lifts zero eigenvalues to a rounding error.
    assert relative_error(value, exact_value) < 1e-7
    if "matrix_sqrth" in name and shape[1] <= shape[0]:
        assert not torch.isfinite(gradient).all()  # what the table's nan says
    else:
        assert relative_error(gradient, exact_gradient) < (1e-10 if name == SVD_PADE else 1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name, method, options", [(ISQRT, "isqrt", {}), (MPA, "mpa", {"gradient": "lyapunov"})])
def test_operators_of_their_own_are_those_of_the_package(name, method, options, shape):
    X, G = _input(shape)
    theirs = value_and_gradient(lambda X: BASELINES[name](X, torch.float64), X, G)
    ours = value_and_gradient(lambda X: covariance_sqrt(X, method, vectorize="triu", **options), X, G)
    for value, expected in zip(theirs, ours, strict=True):
        assert relative_error(value, expected) < 1e-9
    assert relative_error(theirs[0], exact_root_and_gradient(X, G)[0]) > 1e-3


@pytest.mark.parametrize("name", [n for n in names("fms__MPA_Lya__") if "zero" not in n])
def test_mpa_is_the_released_one(name):
    golden = load(name)
    theirs = value_and_gradient(BASELINES[MPA].from_matrix, golden.arrays["input"], golden.arrays["grad_output"])
    tolerance = 1e-3 if "deficient" in name or "dominant" in name else 1e-4
    assert relative_error(theirs[0], golden.arrays["output"]) < tolerance
    if "dominant" not in name:  # its gradient in float32 is 0.2 % off
        assert relative_error(theirs[1], golden.arrays["grad_input"]) < tolerance


def test_the_inverse_of_mpa():
    A = features(6, 40) @ features(6, 40).mT / 40
    G = seeded_gradient(A.shape).double()
    G = G + G.mT
    theirs = value_and_gradient(published_inverse_root, A, G)
    ours = value_and_gradient(lambda A: inv_sqrtm(A, "mpa", gradient="lyapunov"), A, G)
    for value, expected in zip(theirs, ours, strict=True):
        assert relative_error(value, expected) < 1e-9


def test_lyapunov_steps_solve_the_equation():
    S = sqrtm(features(6, 40) @ features(6, 40).mT / 40 + torch.eye(6))
    G = seeded_gradient(S.shape).double()
    assert relative_error(lyapunov_steps(S, G), lyapunov(S, G)) < 1e-3


def test_pade_quotients_are_the_differences():
    values = torch.tensor([[0.0, 0.0, 0.3, 0.3, 0.7, 0.7 * (1 - 1e-6)]], dtype=torch.float64)
    difference = values.unsqueeze(-1) - values.unsqueeze(-2)
    tie = difference == 0
    K = pade_quotients(values)
    assert not K[tie].any()
    assert torch.allclose(K[~tie], 1 / difference[~tie], rtol=1e-8)
