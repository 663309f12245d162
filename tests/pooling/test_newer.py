"""The functions of newer heads against other ways to compute them; their gradients; features that break others."""

import math

import pytest
import torch
from support.matrices import features, relative_error

from covpool_plugins.linalg import Minimax, covariance, powm
from covpool_plugins.pooling import create_pool, list_pools
from covpool_plugins.pooling.scale_free import geometric_series

NEWER = ("gaussian", "bdc", "scalepow", "powtmlr", "cholesky", "precision", "isice", "maxexp")


def whole(name, channels=6, **options):
    return create_pool(name, channels, reduce_channels=None, **options).double()


def matrix(name, X, **options):
    pool = whole(name, X.shape[1], **options)
    return pool.matrix(pool(X.unsqueeze(-1)))


def test_every_one_is_a_pool():
    assert set(NEWER) <= set(list_pools())


@pytest.mark.parametrize("positions", [4, 20])
@pytest.mark.parametrize("theta", [0.3, 0.5, 1.0])
def test_powers(theta, positions):
    X = features(6, positions)
    expected = powm(covariance(X), theta) / theta
    options = {"theta": theta} | ({"method": "exact"} if theta == 0.5 else {})
    assert relative_error(matrix("scalepow", X, **options), expected) < 1e-9
    assert relative_error(matrix("powtmlr", X, **options), expected - torch.eye(6, dtype=torch.float64) / theta) < 1e-9


def test_roots_and_options_of_powers():
    X = features(6, 20)
    assert relative_error(matrix("scalepow", X), 2 * matrix("isqrt", X)) < 1e-12
    assert relative_error(matrix("scalepow", X, iterations=30), matrix("scalepow", X, method="exact")) < 1e-9
    assert whole("powtmlr", method=Minimax(steps=4)).method == Minimax(steps=4)
    exports = [whole("scalepow").is_exportable, whole("scalepow", theta=0.3).is_exportable]
    assert exports == [True, False] and not whole("powtmlr", method="mpa").is_exportable


def test_log_cholesky():
    X = features(6, 20)
    F = matrix("cholesky", X)
    L = F.tril(-1) + torch.diag_embed((F.diagonal(dim1=-2, dim2=-1) / 2).exp())
    assert relative_error(L @ L.mT, covariance(X) + 1e-6 * torch.eye(6)) < 1e-12
    assert relative_error(F, F.mT) == 0


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e6, 1e12])
@pytest.mark.parametrize("positions", [3, 20])
def test_log_cholesky_of_any_size(scale, positions):
    x = (scale * features(6, positions)).float().unsqueeze(-1).requires_grad_()
    out = create_pool("cholesky", 6, reduce_channels=None)(x)
    out.sum().backward()
    assert torch.isfinite(out).all() and torch.isfinite(x.grad).all()


def test_precision_is_the_inverse():
    X = features(6, 40)
    assert relative_error(matrix("precision", X, iterations=30), torch.linalg.inv(covariance(X))) < 1e-6
    few = matrix("precision", features(6, 4))
    bound = 1.5**14 / covariance(features(6, 4)).diagonal(dim1=-2, dim2=-1).sum(-1)
    assert (torch.linalg.eigvalsh(few)[:, -1] / bound).sub(1).abs().max() < 1e-3


def test_sparse_inverse():
    X = torch.randn(2, 6, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    A = covariance(X)
    A = A / A.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
    inverse = torch.linalg.inv(A)
    expected = inverse / inverse.diagonal(dim1=-2, dim2=-1).sum(-1).sqrt()[:, None, None]
    assert relative_error(matrix("isice", X, sparsity=0.0), expected) < 1e-5
    zeros = [(matrix("isice", X, sparsity=sparsity) == 0).sum().item() for sparsity in (0.0, 0.03, 0.3)]
    assert zeros[0] == 0 < zeros[1] < zeros[2] <= 2 * 30


@pytest.mark.parametrize("name", ["isice", "maxexp"])
@pytest.mark.parametrize("factor", [1e-12, 1e12])
def test_what_does_not_depend_on_the_size_of_the_features(name, factor):
    X = features(6, 9).float().unsqueeze(-1)
    pool = create_pool(name, 6, reduce_channels=None)
    assert relative_error(pool(factor * X), pool(X)) < 1e-4


@pytest.mark.parametrize("eta", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("positions", [4, 20])
def test_maxexp(eta, positions):
    X = features(6, positions)
    values, U = torch.linalg.eigh(covariance(X))
    powered = 1 - (1 - values / values.sum(-1, keepdim=True)) ** eta
    assert relative_error(matrix("maxexp", X, eta=eta), (U * powered.unsqueeze(-2)) @ U.mT) < 1e-12


@pytest.mark.parametrize("count", range(1, 9))
def test_geometric_series(count):
    B = covariance(features(4, 9)) / 10
    terms = [torch.linalg.matrix_power(torch.eye(4) - B, k) for k in range(count)]
    assert relative_error(geometric_series(B, count), sum(terms)) < 1e-13


@pytest.mark.parametrize("temperature", [0.0, -1.5])
def test_brownian_distance_covariance(temperature):
    X = features(6, 20) + 100
    pool = whole("bdc")
    with torch.no_grad():
        pool.normalization.temperature.fill_(temperature)
    D = math.exp(temperature / 2) * torch.cdist(X, X, compute_mode="donot_use_mm_for_euclid_dist") / 20**0.5
    J = torch.eye(6, dtype=torch.float64) - 1 / 6
    assert relative_error(pool.matrix(pool(X.unsqueeze(-1))).detach(), J @ D @ J) < 1e-9


def test_equal_channels_have_the_distance_zero():
    X = features(6, 20).float()
    X[:, 3] = X[:, 1]
    x = (X + 1e3).unsqueeze(-1).requires_grad_()
    pool = create_pool("bdc", 6, reduce_channels=None)
    pool(x).sin().sum().backward()
    assert torch.isfinite(x.grad).all() and x.grad.abs().max() < 1e3


@pytest.mark.parametrize("weight", [0.5, 1.0, 3.0])
def test_gaussian(weight):
    X = features(6, 20) + 0.5
    mean = weight * X.mean(-1, keepdim=True)
    corner = torch.ones(2, 1, 1, dtype=torch.float64)
    P = torch.cat([torch.cat([covariance(X) + mean @ mean.mT, mean], 2), torch.cat([mean.mT, corner], 2)], 1)
    root = matrix("gaussian", X, weight=weight)
    assert relative_error(root @ root, P) < 1e-9
    steps = matrix("gaussian", X, weight=weight, method="isqrt", iterations=30)
    assert relative_error(steps, root) < 1e-8


@pytest.mark.parametrize("shape", [(3, 5), (4, 3)])
@pytest.mark.parametrize("name", NEWER)
def test_gradients(name, shape):
    pool = whole(name, shape[0])
    x = (features(*shape, batch=1) + 0.1).unsqueeze(-1).requires_grad_()
    assert torch.autograd.gradcheck(pool, x)
    parameters = dict(pool.named_parameters())
    if parameters:
        (key,) = parameters
        call = lambda value: torch.func.functional_call(pool, {key: value}, (x.detach(),))  # noqa: E731
        assert torch.autograd.gradcheck(call, parameters[key])


@pytest.mark.filterwarnings("ignore:.* 1 position")
@pytest.mark.parametrize("positions", [1, 4, 20])
@pytest.mark.parametrize("name", [*NEWER, "dropcov", "moment", "crosscov"])
def test_bad_samples_are_finite_or_spoil_themselves(name, positions):
    """Zero, constant, one channel only, tiny, huge, and NaN."""
    X = features(8, positions, batch=8).float() + 0.1
    X[0] = 0
    X[1] = X[1, :, :1]
    X[2, 1:] = 0
    X[3] *= 1e-12
    X[4] *= 1e12
    X[5, 3, 0] = torch.nan
    good, x = [0, 1, 2, 3, 4, 6, 7], X.unsqueeze(-1).requires_grad_()
    torch.manual_seed(0)
    pool = create_pool(name, 8, reduce_channels=None)
    out = pool(x)
    out.sin().sum().backward()
    assert torch.isfinite(out[good]).all() and torch.isfinite(x.grad[good]).all()
    assert out[5].isnan().any()
    if name not in ("dropcov", "moment"):  # random; a layer norm of the mean of all
        assert torch.allclose(out[6:7], pool(x[6:7]), rtol=1e-4, atol=1e-5)
