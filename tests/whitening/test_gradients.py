"""Gradients against finite differences where they are exact, against their formula where they are not."""

import pytest
import torch
from support.whitening import correlated

from covpool_plugins.linalg import MPA, MTP
from covpool_plugins.linalg.eigenbasis import spectral_function
from covpool_plugins.whitening import PCANorm2d, ZCANorm2d
from covpool_plugins.whitening.leading import Leading
from covpool_plugins.whitening.matrices import Decomposition

ZCA = [{"energy": 0.8}, {"method": "power_iteration"}, {"method": "newton_schulz"}, {"method": MPA(gradient="exact")}]
ZCA += [{"method": MTP(gradient="exact")}, {"method": MPA(gradient="exact"), "groups": 2}, {}, {"groups": 2}]
PCA = [{"n_components": 2}, {"energy": 0.7}, {}, {"method": "power_iteration"}]


def _with_parameters(layer):
    def call(x, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    return call


def _leaves(channels=4, batch=2, side=2):
    x = correlated(batch, channels, side).requires_grad_()
    return x, *(torch.randn(channels, dtype=torch.float64, requires_grad=True) for _ in range(2))


@pytest.mark.parametrize(
    "make, options, batch", [(ZCANorm2d, options, 2) for options in ZCA] + [(PCANorm2d, options, 4) for options in PCA]
)
def test_exact_gradients(make, options, batch):
    layer = make(4, eps=1e-2, dtype=torch.float64, **options)
    assert torch.autograd.gradcheck(_with_parameters(layer), _leaves(batch=batch))


@pytest.mark.parametrize("options", [{}, {"momentum": None, "groups": 2}])
def test_second_derivatives(options):
    layer = ZCANorm2d(4, eps=0.1, dtype=torch.float64, **options)
    assert torch.autograd.gradgradcheck(_with_parameters(layer), _leaves())


@pytest.mark.parametrize("make", [ZCANorm2d, PCANorm2d])
def test_gradients_in_evaluation(make):
    layer = make(4, groups=2, momentum=1.0, dtype=torch.float64)
    layer(correlated(channels=4))
    layer.eval()
    assert torch.autograd.gradcheck(_with_parameters(layer), _leaves())
    assert torch.autograd.gradgradcheck(_with_parameters(layer), _leaves())


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("side", [3, 6])
def test_every_layout_has_the_gradient_of_the_plain_formula(side, batch):
    x = correlated(batch, 6, side).requires_grad_()
    layer = ZCANorm2d(6, 2, eps=1e-3, dtype=torch.float64)
    G = torch.randn_like(x)
    X = x.transpose(0, 1).flatten(1).unflatten(0, (2, 3))
    centred = X - X.mean(-1, keepdim=True)
    covariance = centred @ centred.mT / X.shape[-1]
    values, U = torch.linalg.eigh(covariance)
    W = (U * (values + 1e-3).rsqrt().unsqueeze(-2)) @ U.mT
    plain = (W @ centred).flatten(0, 1).view(6, batch, side, side).transpose(0, 1)
    expected = torch.autograd.grad(plain, x, G)[0]
    last = {"memory_format": torch.channels_last}
    for features in (x, x.contiguous(**last)):
        for gradient in (G, G.contiguous(**last), torch.stack([G, G], -1)[..., 0]):
            assert torch.allclose(torch.autograd.grad(layer(features), x, gradient)[0], expected, atol=1e-10)


@pytest.mark.parametrize(
    "channels, groups, batch, side",
    [(32, 8, 2, 6), (32, 2, 3, 4), (16, 1, 2, 6), (32, 2, 1, 6), (32, 2, 33, 12)],
    ids=["narrow groups", "wide groups", "one group", "one image", "many samples"],
)
@pytest.mark.parametrize("order", [1, 2])
def test_channels_last_has_the_derivatives_of_the_other_layout(channels, groups, batch, side, order):
    layer = ZCANorm2d(channels, groups, eps=1e-2, dtype=torch.float64)
    x, *parameters = _leaves(channels, batch, side)
    G, H = torch.randn_like(x), torch.randn_like(x)

    def derivatives(of_features, of_gradient):
        features, gradient = x.contiguous(memory_format=of_features), G.contiguous(memory_format=of_gradient)
        y = _with_parameters(layer)(features, *parameters)
        first = torch.autograd.grad(y, (x, *parameters), gradient, create_graph=order == 2)
        return first if order == 1 else torch.autograd.grad((first[0] * H).sum(), (x, parameters[0]))

    first, last = torch.contiguous_format, torch.channels_last
    expected = derivatives(first, first)
    for layouts in ((last, last), (last, first), (first, last)):
        for derivative, right in zip(derivatives(*layouts), expected, strict=True):
            assert torch.allclose(derivative, right, atol=1e-10)


@pytest.mark.parametrize("iterations", [1, 19])
@pytest.mark.parametrize("projector", [False, True])
@pytest.mark.parametrize("kept", [None, 2])
def test_svdpi_has_the_truncated_series(kept, projector, iterations):
    """Off the diagonal of the eigenbasis the exact gradient times 1 - x^(iterations + 1)."""
    values = torch.tensor([0.0, 0.5, 1.9, 2.0], dtype=torch.float64)
    U = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))[0]
    A = ((U * values) @ U.T).requires_grad_()
    G = torch.randn(4, 4, dtype=torch.float64)
    G = G + G.T

    def gradient(**options):
        function = Leading(projector, components=kept, eps=0.1, **options)
        return U.T @ torch.autograd.grad(spectral_function(A, function), A, G)[0] @ U

    x = torch.minimum(values[:, None], values) + 0.1
    x = x / (torch.maximum(values[:, None], values) + 0.1)
    share = torch.where(torch.eye(4, dtype=torch.bool), 1.0, 1 - x ** (iterations + 1))
    assert torch.allclose(gradient(iterations=iterations), gradient() * share, atol=1e-10)


def test_svdpi_is_bounded_where_eigenvalues_meet():
    """The derivative of the kept eigenvectors grows without bound when the cut separates two that meet."""
    A = torch.diag(torch.tensor([1.0, 2.0, 2.0 + 1e-9], dtype=torch.float64)).requires_grad_()
    G = torch.ones(3, 3, dtype=torch.float64)

    def size(method):
        P = method.apply(A, Leading(projector=True, components=1))
        return torch.autograd.grad(P, A, G)[0].abs().max()

    assert size(Decomposition()) > 1e8 and size(Decomposition(iterations=19)) < 20


def test_equal_eigenvalues_have_the_exact_gradient_and_none_across_the_cut():
    A = torch.eye(3, dtype=torch.float64).requires_grad_()
    G = torch.randn(3, 3, dtype=torch.float64)
    for iterations in (None, 19):
        W = spectral_function(A, Leading(eps=1.0, iterations=iterations))
        assert torch.allclose(torch.autograd.grad(W, A, G)[0], -0.5 * 2**-1.5 * (G + G.T) / 2)
    P = spectral_function(A, Leading(projector=True, components=1))
    assert torch.autograd.grad(P.square().sum(), A)[0].abs().max() == 0


@pytest.mark.parametrize("name", ["mpa", "mtp"])
def test_lyapunov_gradients_solve_their_equation(name):
    """W dW + dW W = -W² dA W² with the computed W."""
    layer = ZCANorm2d(6, method=name, eps=1e-2, dtype=torch.float64)
    covariance = torch.eye(6, dtype=torch.float64) + 0.3 * torch.ones(6, 6, dtype=torch.float64)
    A = covariance.unsqueeze(0).requires_grad_()
    W = layer._matrices(A, 1.0)[0]
    G = torch.randn(1, 6, 6, dtype=torch.float64)
    G = G + G.mT
    (grad,) = torch.autograd.grad(W, A, G)
    assert torch.allclose(W @ grad + grad @ W, -W @ W @ G @ W @ W, atol=1e-6)


@pytest.mark.parametrize("options", [{"method": "svdpi"}, {"energy": 0.7}, {"method": "mpa"}])
def test_approximate_gradients_are_not_differentiated(options):
    x = correlated(2, 4, 3).requires_grad_()
    (g,) = torch.autograd.grad(ZCANorm2d(4, **options)(x).pow(3).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"second derivative|further derivative"):
        g.square().sum().backward()


def test_frozen_parameters_and_inputs_get_no_gradient():
    layer = ZCANorm2d(8, dtype=torch.float64)
    x = correlated()
    layer(x).square().sum().backward()
    assert layer.weight.grad is not None
    layer.requires_grad_(False)
    assert not layer(x).requires_grad
    layer.eval()
    x.requires_grad_()
    layer(x).sum().backward()
    assert torch.allclose(x.grad.sum((0, 2, 3)), layer.running_subspace[0].sum(0) * 6 * 25)
