"""Singular-value power normalisation and cross-covariance pooling."""

import copy

import pytest
import torch
from support.matrices import features, relative_error
from torch import nn

from covpool_plugins.linalg import covariance, powm
from covpool_plugins.pooling import create_pool
from covpool_plugins.pooling.singular_value_power import SingularValuePower

SHAPES = [(6, 6), (8, 5), (5, 8)]


def matrices(rows, columns, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, rows, columns, dtype=torch.float64, generator=generator)


def separated(rows, columns, seed=0):
    """Singular values that halve, for a power iteration that converges soon."""
    U, s, Vh = torch.linalg.svd(matrices(rows, columns, seed=seed), full_matrices=False)
    return (U * 2.0 ** -torch.arange(s.shape[-1])) @ Vh


def _power(rows, columns=None, **options):
    return SingularValuePower(rows, columns, dtype=torch.float64, **options)


def _published(Q, start, alpha, iterations, n, eps=0.0):
    """One matrix, every deflated matrix formed, every triplet begun at the same vector."""
    R, powered = Q, torch.zeros_like(Q)
    for _ in range(min(Q.shape) if n is None else n):
        u = start / start.norm()
        for _ in range(iterations):
            v = R.mT @ u / (R.mT @ u).norm()
            u = R @ v / (R @ v).norm()
        value = u @ R @ v
        powered = powered + value**alpha * torch.outer(u, v)
        R = R - value * torch.outer(u, v)
    return powered if n is None else powered + R / (value ** (1 - alpha) + eps)


def _exact(Q, alpha, n):
    """The formula of the paper, with exact singular values."""
    U, s, Vh = torch.linalg.svd(Q, full_matrices=False)
    rest = s[..., n - 1 : n] ** (alpha - 1) * s
    powered = torch.where(torch.arange(s.shape[-1]) < n, s**alpha, rest)
    return (U * powered.unsqueeze(-2)) @ Vh


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("iterations, n", [(1, 1), (4, 1), (2, 2), (3, 4), (3, None)])
def test_it_is_the_published_iteration(shape, iterations, n):
    Q = matrices(*shape)
    normalization = _power(*shape, alpha=0.4, iterations=iterations, n=n, **({"eps": 1e-3} if n else {}))
    start = normalization.weight.detach()
    expected = torch.stack([_published(matrix, start, 0.4, iterations, n, 1e-3) for matrix in Q])
    assert relative_error(normalization.function(Q), expected) < 1e-9


@pytest.mark.parametrize("iterations, n", [(1, 1), (2, 3), (3, None)])
def test_a_product_need_not_be_formed(iterations, n):
    L, R = (1e3 * matrices(6, 4)).requires_grad_(), (1e-5 * matrices(5, 4, seed=1)).requires_grad_()
    normalization = _power(6, 5, iterations=iterations, n=n and min(n, 3))
    results = []
    for F in (normalization.of_product(L, R), normalization.function(L @ R.mT)):
        results.append((F, *torch.autograd.grad(F.sin().sum(), (L, R, normalization.weight))))
    assert all(relative_error(formed, unformed) < 1e-9 for formed, unformed in zip(*results, strict=True))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n", [1, 2, 5])
def test_it_tends_to_powers_of_the_exact_singular_values(shape, n):
    Q = separated(*shape)
    out = _power(*shape, alpha=0.3, iterations=25, n=n, eps=0).function(Q)
    assert relative_error(out, _exact(Q, 0.3, n)) < 1e-6


def test_all_singular_values_of_a_covariance_give_its_power():
    Q = separated(6, 6)
    A = Q @ Q.mT
    assert relative_error(_power(6, alpha=0.3, iterations=25, n=None).function(A), powm(A, 0.3)) < 1e-6
    assert relative_error(_power(6, alpha=1, iterations=2, n=None).function(A), A) < 1e-12
    one_of_tied_values = torch.linalg.svdvals(_power(6, iterations=3, n=None).function(4 * torch.eye(6).double()))
    assert torch.allclose(one_of_tied_values, torch.tensor([2.0, 0, 0, 0, 0, 0]).double(), atol=1e-12)


@pytest.mark.parametrize("vectorize", ["triu", "full"])
def test_the_pool_normalises_the_covariance(vectorize):
    X = features(8, 20)
    pool = create_pool("svpn", 8, reduce_channels=None, vectorize=vectorize, iterations=2, n=3).double()
    expected = pool.normalization.function(covariance(X))
    if vectorize == "triu":
        row, column = torch.triu_indices(8, 8)
        expected = expected[:, row, column]
    assert relative_error(pool.represent(X), expected.flatten(1)) < 1e-14
    assert relative_error(pool.represent(X.float()), expected.flatten(1)) < 1e-5
    wide = create_pool("svpn", 8, reduce_channels=None, vectorize=vectorize, iterations=2, n=3, compute="float64")
    assert relative_error(wide.represent(X.float()), expected.flatten(1)) < 1e-6


@pytest.mark.parametrize("shape", [(3, 3), (4, 3)])
@pytest.mark.parametrize("iterations, n", [(1, 1), (2, 2), (2, 3), (2, None)])
def test_gradients(shape, iterations, n):
    Q = matrices(*shape, batch=1).requires_grad_()
    normalization = _power(*shape, alpha=0.4, iterations=iterations, n=n)

    def function(Q, weight):
        return torch.func.functional_call(normalization, {"weight": weight}, (Q,))

    normalization.forward = normalization.function
    weight = normalization.weight.detach().requires_grad_()
    assert torch.autograd.gradcheck(function, (Q, weight), atol=1e-6, rtol=1e-4)
    (grad,) = torch.autograd.grad(function(Q, weight).sin().sum(), weight)
    assert grad.norm() > 1e-3 and abs(grad @ weight) < 1e-6 * grad.norm()  # the length of the start means nothing
    if iterations == 2 and n is not None:
        assert torch.autograd.gradgradcheck(normalization.function, (Q,), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-12, 1e-4, 1.0, 1e4, 1e12])
def test_without_eps_it_is_homogeneous_at_any_scale(scale, dtype):
    Q = matrices(6, 5).to(dtype)
    normalization = SingularValuePower(6, 5, iterations=2, n=2, eps=0, dtype=dtype)
    leaf = (scale * Q).requires_grad_()
    out = normalization.function(leaf)
    assert relative_error(out / scale**0.5, normalization.function(Q)) < 1e3 * torch.finfo(dtype).eps
    (grad,) = torch.autograd.grad(out.sum(), leaf)
    assert torch.isfinite(grad).all() and grad.any()


def test_eps_damps_the_rest_of_small_matrices_only():
    power, Q = _power(6, iterations=25), separated(6, 6)
    assert relative_error(power.function(Q), _exact(Q, 0.5, 1)) < 2e-5
    U, s, Vh = torch.linalg.svd(1e-12 * Q)
    rest = s / (s[:, :1].sqrt() + 1e-5)
    rest[:, 0] = s[:, 0].sqrt()
    assert relative_error(power.function(1e-12 * Q), (U * rest.unsqueeze(-2)) @ Vh) < 1e-6


RANK_ONE = torch.outer(torch.arange(1.0, 7.0), torch.arange(2.0, 8.0)).double()
DEGENERATE = {
    "zero": (torch.zeros(6, 6).double(), torch.zeros(6, 6).double()),
    "rank one": (RANK_ONE, RANK_ONE / RANK_ONE.norm().sqrt()),
    "one entry": (torch.eye(6).double().mul(torch.eye(6)[2]) * 4, torch.eye(6).double().mul(torch.eye(6)[2]) * 2),
    "identity": (4 * torch.eye(6).double(), 2 * torch.eye(6).double()),
    "rank two, tied": (torch.diag(torch.tensor([4.0, 4, 0, 0, 0, 0])).double(), None),
}


@pytest.mark.parametrize("start", ["learned", "ones"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("iterations, n", [(1, 1), (3, 3), (3, None)])
@pytest.mark.parametrize("kind", DEGENERATE)
def test_degenerate_matrices(kind, iterations, n, dtype, start):
    Q, expected = DEGENERATE[kind]
    if kind in ("identity", "rank two, tied") and n is None:
        return  # a start finds one of tied values: see test_all_singular_values_of_a_covariance_give_its_power
    expected = Q.sign() * Q.abs().sqrt() if expected is None else expected
    leaf = torch.stack([Q, matrices(6, 6)[0]]).to(dtype).requires_grad_()
    options = {"eps": 0} if n else {}
    normalization = SingularValuePower(6, iterations=iterations, n=n, start=start, dtype=dtype, **options)
    out = normalization.function(leaf)
    (grad,) = torch.autograd.grad((out * matrices(6, 6, seed=1).to(dtype)).sum(), leaf)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    assert (out[0].detach() - expected).norm() <= tolerance * expected.norm()
    assert torch.isfinite(grad).all() and grad[1].any()
    # The derivative is of the order of α σ^(α-1) = 1/4 and less; rounding taken for a direction makes it millions.
    assert (grad[0].norm() < 100) and (kind != "zero" or not grad[0].any())


def test_a_start_orthogonal_to_the_matrix_falls_back_on_its_norm():
    Q = matrices(6, 6)
    Q = (Q - Q.mean(1, keepdim=True)).requires_grad_()  # columns add to zero, as layer-normalised features make them
    out = _power(6, start="ones", eps=0).function(Q)
    norm = Q.norm(dim=(1, 2), keepdim=True)
    assert relative_error(out, Q / norm.sqrt()) < 1e-12
    expected = torch.autograd.grad((Q / norm.sqrt()).sin().sum(), Q, retain_graph=True)[0]
    assert relative_error(torch.autograd.grad(out.sin().sum(), Q)[0], expected) < 1e-12


def test_the_start():
    state = torch.get_rng_state()
    first, second = SingularValuePower(12), SingularValuePower(12)
    assert torch.equal(first.weight, second.weight) and torch.equal(torch.get_rng_state(), state)
    assert not list(create_pool("svpn", 12, reduce_channels=None, start="ones").parameters())


@pytest.mark.parametrize("start", ["learned", "ones"])
@pytest.mark.parametrize("channels", [(7, 5), (5, 7), 4, None])
@pytest.mark.parametrize("centered", [True, False])
def test_cross_covariance_of_two_projections(channels, centered, start):
    options = {"reduce_channels": channels, "centered": centered, "input_fmt": "NLC"}
    options |= {} if channels is None else {"reduction": "linear-ln"}
    pool = create_pool("crosscov", 12, iterations=3, n=2, start=start, **options).double()
    for reduction in pool.reductions:
        # Plain layer-normalised features add to zero: orthogonal to a start of ones.
        nn.init.normal_(reduction.norm.weight, 1.0, 0.3, generator=torch.Generator().manual_seed(0))
    tokens = features(12, 20).mT
    Y, Z = (tokens, tokens) if channels is None else (reduction_of(pool, i, tokens) for i in (0, 1))
    if centered:
        Y, Z = Y - Y.mean(1, keepdim=True), Z - Z.mean(1, keepdim=True)
    Q = torch.einsum("bmi,bmj->bij", Y, Z) / 20
    weight = pool.normalization.weight if start == "learned" else Q.new_ones(Q.shape[1])
    expected = torch.stack([_published(matrix, weight, 0.5, 3, 2, 1e-5) for matrix in Q])
    out = pool(tokens)
    assert out.shape == (2, pool.out_features) == (2, Q[0].numel())
    assert relative_error(out, expected.flatten(1)) < 1e-9
    plain = create_pool("crosscov", 12, normalization="none", **options).double()
    plain.load_state_dict(pool.state_dict(), strict=False)
    assert relative_error(plain(tokens), Q.flatten(1)) < 1e-12


def reduction_of(pool, i, tokens):
    linear, norm = pool.reductions[i].linear, pool.reductions[i].norm
    return norm(tokens @ linear.weight.T + linear.bias)


@pytest.mark.parametrize("normalization", ["svpn", "none"])
def test_gradients_of_cross_covariance(normalization):
    pool = create_pool("crosscov", 6, reduce_channels=(4, 3), normalization=normalization).double()
    X = torch.cat([features(4, 5), features(3, 5, seed=1)], 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda X: pool.represent(X).sin(), (X,), atol=1e-6, rtol=1e-4)


def test_sizes():
    assert create_pool("crosscov", 384).out_features == 64**2
    assert create_pool("crosscov", 384, reduce_channels=[8, 6]).out_features == 48


@pytest.mark.parametrize("name", ["svpn", "crosscov"])
@pytest.mark.parametrize("scale", [1e-18, 1e-13, 1e15, 1e18])
@pytest.mark.parametrize("positions", [9, 60])
def test_gradients_at_the_ends_of_the_range(name, scale, positions):
    X = torch.randn(2, 12, positions, dtype=torch.float64)
    pool = create_pool(name, 12, reduce_channels=None)
    gradients = {}
    for dtype in (torch.float32, torch.float64):
        inputs = (X.to(dtype) * scale).requires_grad_()
        wide = copy.deepcopy(pool).to(dtype)
        # Of a size that neither the vectors nor the gradients leave the range with.
        loss = (wide.represent(inputs) / scale).sum()
        gradients[dtype] = torch.autograd.grad(loss, [inputs, wide.normalization.weight])
    for narrow, exact in zip(*gradients.values(), strict=True):
        assert relative_error(narrow, exact) < 1e-4
