"""Inverse root, powers, logarithm, exponential and the Lyapunov equation."""

import pytest
import torch
from support.matrices import SPECTRA, relative_error, with_spectrum

from covpool_plugins.linalg import expm_neg, inv_sqrtm, list_methods, logm, lyapunov, powm, sqrtm
from covpool_plugins.linalg.methods.minimax import best_odd_polynomial

EYE = torch.eye(6, dtype=torch.float64)
INVERSE = list_methods("inv_sqrtm")
SPECTRAL = {
    "inv_sqrtm": inv_sqrtm,
    "powm(0.3)": lambda A: powm(A, 0.3),
    "powm(-1.5)": lambda A: powm(A, -1.5),
    "powm(2)": lambda A: powm(A, 2),
    "expm_neg": expm_neg,
    "logm": logm,
}


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_values_against_other_algorithms(spectrum):
    A = with_spectrum(spectrum)
    assert relative_error(inv_sqrtm(A) @ A @ inv_sqrtm(A), EYE.expand_as(A)) < 1e-10
    assert relative_error(torch.linalg.matrix_exp(logm(A)), A) < 1e-12
    assert relative_error(logm(3 * A), logm(A) + 1.0986122886681098 * EYE) < 1e-9
    assert relative_error(expm_neg(A), torch.linalg.matrix_exp(-A)) < 1e-13
    assert relative_error(powm(A, 3), A @ A @ A) < 1e-13
    assert relative_error(powm(A, 0.5), sqrtm(A)) < 1e-14
    third = powm(A, 1 / 3)
    assert relative_error(third @ third @ third, A) < 1e-13
    assert relative_error(powm(A, -1) @ A, EYE.expand_as(A)) < 1e-10


@pytest.mark.parametrize("spectrum", ["well", "repeated", "identity"])
@pytest.mark.parametrize("method", ["newton_schulz", "minimax"])
def test_iterative_inverse_converges(method, spectrum):
    A = with_spectrum(spectrum)
    steps = {"iterations": 20} if method == "newton_schulz" else {"steps": 8}
    assert relative_error(inv_sqrtm(A, method, **steps), inv_sqrtm(A)) < 1e-10


@pytest.mark.parametrize("spectrum", ["repeated", "nearly_equal", "identity"])
@pytest.mark.parametrize("name", SPECTRAL)
def test_gradients(name, spectrum):
    A = with_spectrum(spectrum, 1, 4).requires_grad_()
    assert torch.autograd.gradcheck(SPECTRAL[name], A)
    assert torch.autograd.gradgradcheck(SPECTRAL[name], A, atol=1e-4)


@pytest.mark.parametrize("method", INVERSE)
def test_gradients_of_the_inverse_root(method):
    A = with_spectrum("well", 1, 4).requires_grad_()
    options = {} if method == "exact" else {"gradient": "exact"}
    assert torch.autograd.gradcheck(lambda A: inv_sqrtm(A, method, eps=0.1, **options), A)


@pytest.mark.parametrize("name", SPECTRAL)
def test_singular_and_zero_matrices_are_finite(name):
    A = torch.stack([torch.zeros(6, 6), torch.ones(6, 6), torch.diag(torch.tensor([0.0, 0, 0, 1, 2, 3]))])
    A.requires_grad_()
    out = SPECTRAL[name](A)
    (grad,) = torch.autograd.grad(out.sum(), A)
    assert torch.isfinite(out).all() and torch.isfinite(grad).all()


@pytest.mark.parametrize("function", [*SPECTRAL.values(), lambda A: powm(A, 0)], ids=[*SPECTRAL, "powm(0)"])
def test_a_poisoned_matrix_spoils_only_itself(function):
    A = with_spectrum("well", 3)
    expected = function(A)[[0, 2]]
    A[1, 0, 0] = torch.nan
    assert relative_error(function(A)[[0, 2]], expected) < 1e-14 and function(A)[1].isnan().all()


def test_inverse_of_a_singular_matrix_is_the_pseudo_inverse():
    A = with_spectrum("well", 1)[0]
    values, U = torch.linalg.eigh(A)
    basis, P = U[:, 2:], U[:, 2:] @ U[:, 2:].mT
    assert relative_error(inv_sqrtm(P @ A @ P), basis @ torch.diag(values[2:].rsqrt()) @ basis.mT) < 1e-9


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_lyapunov(spectrum):
    S = with_spectrum(spectrum)
    G = torch.randn(2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    R = lyapunov(S, G)
    assert relative_error(S @ R + R @ S, G) < 1e-11
    iterative = lyapunov(S, G + G.mT, "newton_schulz", iterations=40)
    assert relative_error(iterative, lyapunov(S, G + G.mT)) < 1e-8


def test_lyapunov_derivatives():
    S = with_spectrum("well", 1, 4).requires_grad_()
    G = torch.randn(1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    symmetric = lambda S, G: lyapunov(0.5 * (S + S.mT), G)  # noqa: E731
    assert torch.autograd.gradcheck(symmetric, (S, G)) and torch.autograd.gradgradcheck(symmetric, (S, G))
    iterative = lambda S, G: lyapunov(S, G, "newton_schulz")  # noqa: E731
    assert torch.autograd.gradcheck(iterative, (S, G))


def test_iterative_lyapunov_on_singular_matrices_misses_half_of_a_block():
    """Why features take the route through the Gram matrix (notes: structurally wrong)."""
    S = torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64))
    G = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    exact, iterative = lyapunov(S, G), lyapunov(S, G, "newton_schulz", iterations=30)
    assert exact[0, 1].item() == pytest.approx(1.0) and iterative[0, 1].item() == pytest.approx(0.5)


@pytest.mark.parametrize("degree", [3, 5, 7, 9])
def test_minimax_polynomials_alternate(degree):
    """The error of a best approximation takes its largest size at one point more than it has coefficients."""
    coefficients, level = best_odd_polynomial(0.2, 1.0, degree)
    x = torch.linspace(0.2, 1, 20001, dtype=torch.float64)
    error = 1 - sum(c * x ** (2 * k + 1) for k, c in enumerate(coefficients))
    peaks = (error.abs() > level * (1 - 1e-5)).nonzero().flatten()
    signs = torch.sign(error[peaks])
    assert error.abs().max() <= level * (1 + 1e-6)
    assert 1 + int((signs[1:] != signs[:-1]).sum()) == (degree + 1) // 2 + 1
