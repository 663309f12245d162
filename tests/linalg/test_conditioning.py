"""Right at any conditioning and scale, in every precision: against a singular value decomposition in float64."""

import math
from functools import partial

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.matrices import features, orthogonal, relative_error
from torch.utils._python_dispatch import TorchDispatchMode

from covpool_plugins import linalg
from covpool_plugins.linalg import (
    EigenMethod,
    covariance,
    covariance_sqrt,
    inv_sqrtm,
    list_methods,
    resolve_method,
    sqrtm,
)

EIGEN = [name for name in list_methods() if isinstance(resolve_method(name), EigenMethod)]
CALM = settings(max_examples=15, deadline=None, derandomize=True)


def decaying(channels, positions, decay, seed=0, scale=1.0):
    """Features (channels, positions) whose singular values fall to 10^decay of the largest, with mean zero."""
    n = min(channels, positions - 1)
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(positions, n, dtype=torch.float64, generator=generator)
    V = torch.linalg.qr(W - W.mean(0))[0]
    s = scale * positions**0.5 * torch.logspace(0, decay, n, dtype=torch.float64)
    return orthogonal(channels, seed)[:, :n] * s @ V.mT


def exact_root_and_gradient(X, G, centered=True):
    """The root of the covariance and the gradient of ⟨G, root⟩, from the singular vectors of the features."""
    X = X.double()
    Y = (X - X.mean(-1, keepdim=True) if centered else X) / X.shape[-1] ** 0.5
    U, s, Vh = torch.linalg.svd(Y, full_matrices=False)
    kept = s > 1e-8 * s.max()
    U, s, Vh = U[:, kept], s[kept], Vh[kept]
    GU = (G + G.mT).double() @ U
    share = s / (s.unsqueeze(-1) + s)
    return U * s @ U.mT, (GU + U @ ((share - 1) * (U.mT @ GU))) @ Vh / X.shape[-1] ** 0.5


def value_and_gradient(function, A, G, **options):
    leaf = A.clone().requires_grad_()
    out = function(leaf)
    return out.detach(), torch.autograd.grad(out, leaf, G, **options)[0]


def seeded(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


def definite(n, condition, seed=0):
    values = torch.logspace(0, -math.log10(condition), n, dtype=torch.float64)
    A = orthogonal(n, seed) * values @ orthogonal(n, seed).mT
    return 0.5 * (A + A.mT)


@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("decay", [-1, -3, -4, -5])
@pytest.mark.parametrize("shape", [(48, 30), (48, 160)])
def test_mixed_precision_holds_on_both_sides(shape, decay, centered):
    """Of float32 features: 1e-6 for the value and 5e-6 for the gradient, however the singular values fall."""
    X, G = decaying(*shape, decay).float(), seeded(shape[0], shape[0])
    expected = exact_root_and_gradient(X, G, centered)
    functions = [lambda X, m=m: covariance_sqrt(X, m, centered=centered) for m in ("exact", "svdpade")]
    functions += [lambda X: linalg.covariance_powm(X, 0.5, centered)]
    for function in functions:
        result = value_and_gradient(function, X, G)
        assert relative_error(result[0], expected[0]) < 1e-6 and relative_error(result[1], expected[1]) < 5e-6
    dominant = torch.cat([1e4 * X[:1], X[1:]])
    assert relative_error(covariance_sqrt(dominant), exact_root_and_gradient(dominant, G)[0]) < 1e-6


@pytest.mark.parametrize("method", EIGEN)
@pytest.mark.parametrize("shape", [(24, 15), (24, 80)])
def test_mixed_precision_of_every_gradient_rule(shape, method):
    X, G = decaying(*shape, -4).float(), seeded(shape[0], shape[0])
    mixed = value_and_gradient(lambda X: covariance_sqrt(X, method), X, G)
    wide = value_and_gradient(lambda X: covariance_sqrt(X, method), X.double(), G.double())
    assert relative_error(mixed[0], wide[0]) < 1e-6 and relative_error(mixed[1], wide[1]) < 5e-6


@pytest.mark.parametrize("shape", [(32, 20), (32, 90)])
@pytest.mark.parametrize("compute", ["mixed", "float32", "float64"])
def test_create_graph_does_not_change_the_gradient(shape, compute):
    X, G = decaying(*shape, -3).float(), seeded(32, 32)
    for function in (
        lambda X: covariance_sqrt(X, compute=compute),
        lambda X: sqrtm(covariance(X), compute=compute),
        lambda X: linalg.covariance_powm(X, 0.3, compute=compute),
    ):
        plain, recorded = (value_and_gradient(function, X, G, create_graph=graph)[1] for graph in (False, True))
        assert torch.equal(plain, recorded.detach())


class Largest(TorchDispatchMode):
    """The size of the largest tensor that is made."""

    size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.size = max(self.size, tensor.numel())
        return out


@pytest.mark.parametrize("shape", [(40, 30), (40, 50)])
def test_second_derivatives_take_memory_like_the_square(shape):
    X = features(*shape, batch=1).requires_grad_()
    functions = [covariance_sqrt, lambda X: inv_sqrtm(covariance(X), eps=0.1), lambda X: linalg.expm_neg(covariance(X))]
    for function in functions:
        with Largest() as largest:
            (grad,) = torch.autograd.grad(function(X).sin().sum(), X, create_graph=True)
            torch.autograd.grad(grad.sin().sum(), X)
        assert largest.size <= 50 * 50 * 48  # one cube of 50 would be more


@pytest.mark.parametrize("n, condition", [(256, 1e5), (64, 1e6)])
@pytest.mark.parametrize("eps", [0.0, 1e-6])
def test_float32_matrices_are_decomposed_in_float64(n, condition, eps):
    A, G = definite(n, condition).float(), seeded(n, n)
    functions = [lambda A: inv_sqrtm(A, eps=eps)]
    if not eps:
        functions += [sqrtm, linalg.logm, lambda A: linalg.powm(A, -0.3)]
        functions += [lambda A: linalg.lyapunov(A, torch.ones_like(A))]
    for function in functions:
        narrow, wide = value_and_gradient(function, A, G), value_and_gradient(function, A.double(), G.double())
        assert relative_error(narrow[0], wide[0]) < 1e-6 and relative_error(narrow[1], wide[1]) < 1e-6


def test_a_matrix_that_eps_makes_definite_is_inverted():
    half = definite(16, 1e2)[:, :12]  # of rank 12
    A = half @ half.mT
    for dtype in (torch.float32, torch.float64):
        W = inv_sqrtm(A.to(dtype), eps=1e-6).double()
        values = torch.linalg.eigvalsh(W)
        assert (values[-4:] - 1e3).abs().max() < 100


@CALM
@given(
    exponent=st.floats(0, 10),
    power=st.integers(-30, 30),
    channels=st.integers(2, 9),
    positions=st.integers(3, 20),
    centered=st.booleans(),
    packed=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_conditioning_scale_and_shape_in_float64(exponent, power, channels, positions, centered, packed, seed):
    """Condition numbers of the covariance from 1 to 1e10, and scales from 1e-9 to 1e9."""
    X = decaying(channels, positions, -exponent / 2, seed, 2.0**power)
    G = seeded(channels, channels).double()
    vectorize = "triu" if packed else "full"
    root, grad = exact_root_and_gradient(X, G, centered)
    row, column = torch.triu_indices(channels, channels)
    weights = (G + G.mT)[row, column] * torch.where(row == column, 0.5, 1.0) if packed else G
    result = value_and_gradient(lambda X: covariance_sqrt(X, centered=centered, vectorize=vectorize), X, weights)
    assert relative_error(result[0], root[row, column] if packed else root) < 1e-9
    assert relative_error(result[1], grad) < 1e-7


@CALM
@given(
    decay=st.floats(-5, 0),
    power=st.integers(-60, 60),
    channels=st.integers(2, 12),
    positions=st.integers(3, 24),
    name=st.sampled_from(["exact", "svdpade", "svdtopn"]),
    seed=st.integers(0, 1000),
)
def test_any_decay_scale_and_shape_of_float32_features(decay, power, channels, positions, name, seed):
    X, G = decaying(channels, positions, decay, seed, 2.0**power).float(), seeded(channels, channels)
    expected = exact_root_and_gradient(X, G)
    result = value_and_gradient(lambda X: covariance_sqrt(X, name), X, G)
    assert relative_error(result[0], expected[0]) < 1e-6 and relative_error(result[1], expected[1]) < 5e-6


@CALM
@given(exponent=st.floats(0, 10), power=st.integers(-20, 20), n=st.integers(1, 6), seed=st.integers(0, 1000))
def test_any_condition_of_matrices(exponent, power, n, seed):
    """Against 60 digits: root, inverse root, power and logarithm."""
    A = definite(n, 10.0**exponent, seed) * 2.0**power
    with mpmath.workdps(60):
        values, Q = mpmath.eigsy(mpmath.matrix(A.tolist()))

        def expected(f):
            F = Q * mpmath.diag([f(x) for x in values]) * Q.T
            return torch.tensor([[float(F[i, j]) for j in range(n)] for i in range(n)], dtype=torch.float64)

        # Rounding of the matrix moves the smallest eigenvalue by so much of itself.
        slack = 1e-12 + 1e-15 * 10.0**exponent
        assert relative_error(sqrtm(A), expected(mpmath.sqrt)) < 1e-12
        assert relative_error(inv_sqrtm(A), expected(lambda x: 1 / mpmath.sqrt(x))) < 10 * slack
        assert relative_error(linalg.powm(A, -0.3), expected(lambda x: x ** mpmath.mpf(-0.3))) < 10 * slack
        scale = max(abs(float(mpmath.log(x))) for x in values)
        assert (linalg.logm(A) - expected(mpmath.log)).abs().max() < 10 * slack * max(1, scale)


def test_logarithm_of_constant_rank():
    """Central differences along matrices that keep their rank; the floor moves with the largest eigenvalue."""
    basis, turn = orthogonal(6, 1), seeded(6, 6).double()
    turn = turn - turn.mT
    G = seeded(6, 6).double()

    def path(t):
        values = torch.tensor([0.0, 0.0, 0.1, 0.4, 0.7, 2.0], dtype=torch.float64) * (1 + 0.3 * t)
        U = torch.linalg.matrix_exp(t * turn) @ basis
        return (U * values) @ U.mT

    t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad((G * linalg.logm(path(t))).sum(), t)
    step = 1e-5
    ahead, behind = ((G * linalg.logm(path(torch.tensor(s, dtype=torch.float64)))).sum() for s in (step, -step))
    assert slope.item() == pytest.approx(((ahead - behind) / (2 * step)).item(), rel=1e-6)


@pytest.mark.parametrize("scale", [4e18, 1e-18])
@pytest.mark.parametrize("positions", [20, 784])
def test_sums_of_many_squares_stay_in_range(positions, scale):
    X = decaying(32, positions, -1).float()
    functions = [covariance, linalg.smaller_covariance, lambda X: linalg.covariance_powm(X, 0.5)]
    functions += [lambda X, m=m: covariance_sqrt(X, m) for m in list_methods()]
    functions += [lambda X: covariance_sqrt(X, compute="float32")]
    for function in functions:
        scaled = lambda X, function=function: function(X * scale) / scale  # noqa: E731
        out, grad = value_and_gradient(scaled, X, seeded(*function(X).shape))
        assert torch.isfinite(out).all() and torch.isfinite(grad).all() and out.any()


@pytest.mark.parametrize("condition", [1e2, 1e4, 1e6])
def test_pade_approximant_in_float32(condition):
    A, G = definite(64, condition).float(), seeded(64, 64)
    for function in (sqrtm, inv_sqrtm):
        approximant = partial(function, method="mpa", gradient="exact")
        narrow = value_and_gradient(approximant, A, G)
        wide = value_and_gradient(approximant, A.double(), G.double())
        assert relative_error(narrow[0], wide[0]) < 1e-6 and relative_error(narrow[1], wide[1]) < 2e-6


IN_AUTOCAST = {
    "covariance": covariance,
    "smaller_covariance": linalg.smaller_covariance,
    "covariance_powm": lambda X: linalg.covariance_powm(X, 0.4),
    "covariance_log1p": lambda X: linalg.covariance_log1p(X, 0.1),
    "logm": lambda X: linalg.logm(covariance(X)),
    "powm": lambda X: linalg.powm(covariance(X), 0.4),
    "learned powm": lambda X: linalg.powm(covariance(X), torch.tensor(0.4, requires_grad=True)),
    "lyapunov": lambda X: linalg.lyapunov(covariance(X), covariance(X.square())),
    "newton_schulz": lambda X: linalg.lyapunov(covariance(X), covariance(X.square()), "newton_schulz"),
}
IN_AUTOCAST |= {n: (lambda X, n=n: inv_sqrtm(covariance(X), n, eps=0.1)) for n in list_methods("inv_sqrtm")}


@pytest.mark.parametrize("name", IN_AUTOCAST)
def test_backward_inside_autocast_stays_in_full_precision(name):
    X = features(5, 9).float()
    G = seeded(*IN_AUTOCAST[name](X).shape)
    plain = value_and_gradient(IN_AUTOCAST[name], X, G)
    with torch.autocast("cpu", torch.bfloat16):
        inside = value_and_gradient(IN_AUTOCAST[name], X, G)
    assert torch.equal(plain[0], inside[0]) and torch.equal(plain[1], inside[1])


def test_nothing_is_made_on_the_default_device():
    X = features(5, 9).requires_grad_()
    with torch.device("meta"):
        for function in (*IN_AUTOCAST.values(), *(lambda X, m=m: covariance_sqrt(X, m) for m in list_methods())):
            if function is not IN_AUTOCAST["learned powm"]:
                assert torch.autograd.grad(function(X).sum(), X)[0].device.type == "cpu"
