"""What the pools compute of the covariance, against closed forms in float64."""

import math

import pytest
import torch
from support.matrices import features, relative_error

from covpool_plugins.linalg import covariance
from covpool_plugins.pooling import create_pool, list_pools

SHAPES = [(12, 20), (12, 7)]  # of full rank, and with fewer positions than channels
SYMMETRIC = ["seb", "powcov", "logcov", "bcnn", "ibcnn", "svdpade"]


def _pool(name, channels=12, **options):
    return create_pool(name, channels, reduce_channels=None, **options).double()


def _spectral(X, function, centered=True):
    """f of the covariance in the eigenbasis, (B, C, C)."""
    values, U = torch.linalg.eigh(covariance(X, centered))
    values = torch.where(values > 1e-12 * values[..., -1:], values, 0.0)
    return (U * function(values).unsqueeze(-2)) @ U.mT


def _seb(values):
    branch = (values * torch.exp(-2 * values)).sum(-1, keepdim=True).sqrt()
    return values.sqrt() * (1 + branch)


CLOSED_FORMS = {
    "seb": (_seb, {}),
    "powcov": (lambda v: v**0.3, {"p": 0.3}),
    "logcov": (lambda v: (v + 1e-3).log() - math.log(1e-3), {}),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_closed_forms(name, shape):
    function, options = CLOSED_FORMS[name]
    X = features(*shape)
    row, column = torch.triu_indices(12, 12)
    expected = _spectral(X, function)[:, row, column]
    assert relative_error(_pool(name, **options).represent(X), expected) < 1e-6
    assert relative_error(_pool("powcov", p=0.5).represent(X), _pool("exact").represent(X)) < 1e-7


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name, root", [("bcnn", False), ("ibcnn", True)])
def test_bilinear_pools_end_in_a_signed_root_of_length_one(name, root, shape):
    X = features(*shape) - 0.3
    A = _spectral(X, torch.sqrt, centered=False) if root else X @ X.mT / X.shape[-1]
    out = _pool(name).represent(X)
    signed = (A.sign() * (A.abs() + 1e-8).sqrt()).flatten(1)
    assert relative_error(out, signed / signed.norm(dim=-1, keepdim=True)) < 1e-6
    assert torch.allclose(out.norm(dim=-1), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(4, 6), (4, 3)])
@pytest.mark.parametrize("name", SYMMETRIC)
def test_gradients(name, shape):
    pool = _pool(name, 4, **({"learn_p": True} if name == "powcov" else {}))
    # An entry that is zero has no slope: its signed root has a jump of its own there.
    X = (features(*shape, batch=1) + (0.1 if "bcnn" in name else 0.0)).requires_grad_()
    parameters = tuple(pool.parameters())
    assert torch.autograd.gradcheck(lambda X, *_: pool.represent(X).sin(), (X, *parameters), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", list_pools())
def test_zero_features_give_zeros_and_no_gradient(name):
    pool = create_pool(name, 12, **({} if name == "gap" else {"reduce_channels": None})).eval()
    X = features(12, 20).float()
    X[0] = 0
    X.requires_grad_()
    out = pool(X.unsqueeze(-1))
    out.square().sin().sum().backward()
    assert out[1].any() and X.grad[1].any()
    if not list(pool.parameters()):
        assert not X.grad[0].any()
        assert name in ("gaussian", "powtmlr", "cholesky") or not out[0].any()  # others hold a constant matrix


@pytest.mark.parametrize(
    "channels, positions, of_root, of_gradient", [(8, 20, 1e-4, 1e-4), (32, 49, 1e-4, 1e-4), (32, 16, 2e-2, None)]
)
def test_accuracy_of_denman_beavers_as_documented(channels, positions, of_root, of_gradient):
    results = []
    for name in ("denman_beavers", "exact"):
        X = features(channels, positions).float().requires_grad_()
        vectors = create_pool(name, channels, reduce_channels=None).represent(X)
        results.append((vectors, *torch.autograd.grad(vectors.sin().sum(), X)))
    (root, gradient), (exact_root, exact_gradient) = results
    assert relative_error(root, exact_root) < of_root
    if of_gradient is not None:
        assert relative_error(gradient, exact_gradient) < of_gradient
    else:
        assert gradient.norm() > 10 * exact_gradient.norm()


def test_a_learned_exponent_learns():
    pool = _pool("powcov", p=0.5, learn_p=True)
    row, column = torch.triu_indices(12, 12)
    target = _spectral(features(12, 20), lambda v: v**0.8)[:, row, column]
    optimizer = torch.optim.Adam(pool.parameters(), lr=0.1)
    for _ in range(150):
        loss = (pool.represent(features(12, 20)) - target).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert pool.normalization.p.item() == pytest.approx(0.8, abs=1e-3)
    again = _pool("powcov", learn_p=True)
    again.load_state_dict(pool.state_dict())
    assert again.normalization.p.item() == pool.normalization.p.item()


@pytest.mark.parametrize("shape", SHAPES)
def test_spectrum(shape):
    pool = _pool("svdpade")
    X = features(*shape)
    X[1] = 0
    spectrum = pool.spectrum(X.unsqueeze(-1))
    values = torch.linalg.eigvalsh(covariance(X[0])).flip(-1)[: min(shape)]
    assert spectrum.eigenvalues.shape == (2, min(shape))
    assert relative_error(spectrum.eigenvalues[0], values.clamp_min(0)) < 1e-12
    rank = min(12, shape[1] - 1)
    shares = values[:rank] / values.sum()
    assert spectrum.rank.tolist() == [rank, 0]
    assert spectrum.condition_number[0] == pytest.approx((values[0] / values[rank - 1]).item(), rel=1e-6)
    assert spectrum.effective_rank[0] == pytest.approx((-(shares * shares.log()).sum()).exp().item(), rel=1e-6)
    assert spectrum.condition_number[1] == torch.inf and not spectrum.eigenvalues.requires_grad
