"""What the layers compute, against the formulas in float64."""

import pytest
import torch
from support.whitening import correlated, inverse_root, samples, statistics

from covpool_plugins.errors import OptionError, ShapeError, UnknownNameError
from covpool_plugins.linalg import MPA, Exact, NewtonSchulz
from covpool_plugins.whitening import PCANorm1d, PCANorm2d, ZCANorm1d, ZCANorm2d, ZCANorm3d, list_whitening_methods
from covpool_plugins.whitening.matrices import Decomposition, PowerIteration


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
@pytest.mark.parametrize("method", ["exact", "svdpi"])
def test_output_is_white(method, groups):
    layer = ZCANorm2d(8, groups, eps=1e-8, method=method)
    mean, covariance = statistics(layer(correlated(dtype=torch.float32)), groups)
    assert mean.abs().max() < 1e-5
    assert (covariance - torch.eye(8 // groups)).abs().max() < 1e-5


# Distance from the identity on eigenvalues between 1 and 4; the honest approximation of each method.
ERRORS = {"exact": 1e-5, "svdpi": 1e-5, "power_iteration": 0.1, "newton_schulz": 0.3, "mpa": 1e-3, "mtp": 0.1}


@pytest.mark.parametrize("method", list_whitening_methods())
def test_every_method_whitens(method):
    x = correlated(32)
    layer = ZCANorm2d(8, 2, method=method, eps=1e-8, affine=False)
    error = layer.whitening_error(x)
    assert error.shape == (2,) and (error < ERRORS[method]).all()
    _, covariance = statistics(layer(x), 2)
    expected = torch.linalg.matrix_norm(covariance - torch.eye(4)) / 2
    assert torch.allclose(error, expected, atol=1e-12)


def test_whitening_error_of_features_and_of_running_statistics():
    x = correlated()
    layer = ZCANorm2d(8, eps=1e-10, momentum=1.0, dtype=torch.float64)
    assert layer.whitening_error(x).item() < 1e-8
    before = layer.running_subspace.clone()
    fresh = layer.eval().whitening_error(x)  # the running matrix is the identity
    _, covariance = statistics(x)
    assert torch.allclose(fresh, torch.linalg.matrix_norm(covariance - torch.eye(8)) / 8**0.5)
    assert torch.equal(layer.running_subspace, before)
    layer.train()(x)
    assert layer.eval().whitening_error(x).item() < 1e-8


@pytest.mark.parametrize("shape, make", [((30, 8), ZCANorm1d), ((6, 8, 7), ZCANorm1d), ((4, 8, 2, 3, 4), ZCANorm3d)])
def test_other_dimensions(shape, make):
    x = torch.randn(shape, dtype=torch.float64)
    y = make(8, 2, dtype=torch.float64)(x)
    same = ZCANorm2d(8, 2, dtype=torch.float64)(x.flatten(2).unsqueeze(-1) if x.ndim > 2 else x[..., None, None])
    assert y.shape == x.shape and torch.allclose(y.flatten(), same.flatten())


@pytest.mark.parametrize("side", [3, 7])
@pytest.mark.parametrize("training", [True, False])
def test_memory_format_changes_nothing_and_is_kept(training, side):
    x = correlated(side=side)
    layer = ZCANorm2d(8, 2, dtype=torch.float64)
    layer(x)
    layer.train(training)
    y, last = layer(x), layer(x.contiguous(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last) and y.is_contiguous()
    assert torch.allclose(y, last)
    strided = torch.stack([x, x], dim=-1)[..., 0]
    assert torch.allclose(layer(strided), y)


def test_evaluation_uses_running_statistics():
    layer = ZCANorm2d(8, 2, momentum=0.3, eps=1e-3, dtype=torch.float64)
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    mean, subspace = torch.zeros(2, 4, 1, dtype=torch.float64), torch.eye(4, dtype=torch.float64).expand(2, 4, 4)
    for _ in range(3):
        x = correlated()
        layer(x)
        batch_mean, covariance = statistics(x, 2)
        mean = 0.7 * mean + 0.3 * batch_mean
        subspace = 0.7 * subspace + 0.3 * inverse_root(covariance, 1e-3)
    assert torch.allclose(layer.running_mean, mean.flatten())
    assert torch.allclose(layer.running_subspace, subspace)
    assert layer.num_batches_tracked == 3
    x = correlated()
    expected = (subspace @ (samples(x, 2) - mean)).flatten(0, 1)
    expected = layer.weight[:, None] * expected + layer.bias[:, None]
    assert torch.allclose(samples(layer.eval()(x)).squeeze(0), expected)
    assert layer.num_batches_tracked == 3


@pytest.mark.parametrize("make", [ZCANorm2d, PCANorm2d])
def test_no_momentum_averages_all_batches(make):
    layer = make(8, momentum=None, eps=1e-3, dtype=torch.float64)
    single = make(8, momentum=1.0, eps=1e-3, dtype=torch.float64)
    sums = {}
    for _ in range(3):
        x = correlated()
        layer(x)
        single(x)
        for name, buffer in single.named_buffers():
            sums[name] = sums.get(name, 0) + buffer
    for name, buffer in layer.named_buffers():
        assert torch.allclose(buffer, sums[name] / 3 if buffer.is_floating_point() else sums[name] * 0 + 3), name


def test_without_running_statistics_evaluation_uses_the_batch():
    layer = ZCANorm2d(8, track_running_stats=False, dtype=torch.float64)
    assert layer.running_mean is layer.running_subspace is layer.num_batches_tracked is None
    x = correlated()
    assert torch.equal(layer(x), layer.eval()(x))
    plain = ZCANorm2d(8, affine=False, dtype=torch.float64)
    assert not list(plain.parameters()) and torch.allclose(plain(x), layer(x))


@pytest.mark.parametrize("energy, kept", [(0.34, 1), (0.36, 2), (0.62, 3), (0.91, 5), (0.99, 6), (1.0, 6)])
def test_energy_keeps_the_leading_eigenvectors(energy, kept):
    values = torch.tensor([0.5, 1.0, 2.0, 3.0, 3.25, 5.25], dtype=torch.float64)  # 15 together, the largest 0.35
    basis = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0]
    X = torch.randn(6, 200, dtype=torch.float64)
    X = X - X.mean(1, keepdim=True)
    X = (basis * values.sqrt()) @ inverse_root(X @ X.T / 200, 0.0) @ X
    layer = ZCANorm1d(6, energy=energy, eps=1e-9, affine=False, dtype=torch.float64)
    _, covariance = statistics(layer(X.T))
    expected = torch.tensor([0.0] * (6 - kept) + [1.0] * kept, dtype=torch.float64)
    assert torch.allclose(torch.linalg.eigvalsh(covariance[0]), expected, atol=1e-6)
    assert torch.allclose(layer(X.T).T, inverse_root(X @ X.T / 200, 1e-9, kept) @ X)


def test_pca_projects_standardised_features():
    x = correlated() * torch.linspace(1, 9, 8)[:, None, None]
    layer = PCANorm2d(8, n_components=2, groups=2, eps=1e-3, momentum=1.0, affine=False, dtype=torch.float64)
    mean, covariance = statistics(x, 2)
    variance = covariance.diagonal(dim1=1, dim2=2).unsqueeze(-1)
    standard = (samples(x, 2) - mean) / (variance + 1e-3).sqrt()
    U = torch.linalg.eigh(standard @ standard.mT)[1][..., -2:]
    projector = U @ U.mT
    assert torch.allclose(samples(layer(x), 2), projector @ standard)
    assert torch.allclose(layer.running_subspace, projector)
    assert torch.allclose(layer.running_var, variance.flatten() * 150 / 149)
    expected = projector @ ((samples(x, 2) - mean) / (variance * 150 / 149 + 1e-3).sqrt())
    assert torch.allclose(samples(layer.eval()(x), 2), expected)


def test_pca_with_all_components_and_groups_of_one_are_a_batch_norm():
    ours, theirs = PCANorm2d(8, eps=1e-5), torch.nn.BatchNorm2d(8)
    x = correlated(dtype=torch.float32)
    assert torch.allclose(ZCANorm2d(8, 8, eps=1e-5)(x), torch.nn.BatchNorm2d(8)(x), atol=1e-5)
    for _ in range(2):
        assert torch.allclose(ours(x), theirs(x), atol=1e-5)
    assert torch.allclose(ours.eval()(x), theirs.eval()(x), atol=1e-5)
    assert torch.allclose(ours.running_var, theirs.running_var)


@pytest.mark.parametrize("make", [ZCANorm2d, PCANorm2d])
def test_a_batch_norms_checkpoint_evaluates_as_the_batch_norm(make):
    theirs, x = torch.nn.BatchNorm2d(8, eps=1e-4), correlated(dtype=torch.float32)
    torch.nn.init.normal_(theirs.weight)
    theirs(x)
    ours = make(8, 2)
    state = theirs.state_dict()
    ours.load_state_dict(state)
    assert "running_var" in state
    assert torch.allclose(ours.eval()(x), theirs.eval()(x), atol=1e-5)
    again = make(8, 2)
    again.load_state_dict(ours.state_dict())
    assert torch.equal(again.eval()(x), ours(x))


def test_method_objects():
    x = correlated()
    for method in (Decomposition(), MPA(degree=16), NewtonSchulz(iterations=20)):
        assert torch.allclose(ZCANorm2d(8, method=method)(x), ZCANorm2d(8)(x), atol=1e-5), method
    assert PCANorm2d(8, 3, method=PowerIteration(iterations=500))(x).sub(PCANorm2d(8, 3)(x)).abs().max() < 1e-3


def test_reset_gives_a_new_layer():
    for make in (ZCANorm2d, PCANorm2d):
        layer = make(8, 2)
        layer(correlated(dtype=torch.float32))
        layer.reset_parameters()
        for (name, new), (_, old) in zip(make(8, 2).state_dict().items(), layer.state_dict().items(), strict=True):
            assert torch.equal(new, old), name


BAD = [
    (dict(num_features=0), OptionError, "num_features must be a positive integer, got 0"),
    (dict(groups=3), OptionError, "groups must divide num_features 8, got 3"),
    (dict(groups=0), OptionError, "groups must be a positive integer, got 0"),
    (dict(eps=0), OptionError, "eps must be a number in (0, inf), got 0"),
    (dict(energy=0), OptionError, "energy must be a number in (0, 1], got 0"),
    (dict(momentum=2), OptionError, "momentum must be a number in [0, 1], got 2"),
    (dict(sync=1), OptionError, "sync must be True or False, got 1"),
    (dict(method="zca"), UnknownNameError, "unknown whitening method 'zca'; available: "),
    (dict(method=Exact()), OptionError, "is no whitening method; available: exact, svdpi, "),
    (
        dict(method="mpa", energy=0.9),
        OptionError,
        "energy below one needs eigenvectors, which method 'mpa' does not have",
    ),
]


@pytest.mark.parametrize("options, error, message", BAD, ids=lambda value: str(value)[:30])
def test_bad_options_are_one_line(options, error, message):
    with pytest.raises(error) as raised:
        ZCANorm2d(**{"num_features": 8, **options})
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_bad_components():
    with pytest.raises(OptionError, match="n_components must be at most 4, got 5"):
        PCANorm2d(8, 5, groups=2)
    with pytest.raises(OptionError, match="PCA needs eigenvectors, which method 'newton_schulz' does not have"):
        PCANorm1d(8, 5, method="newton_schulz")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(4, 8, 2), (4, 7, 2, 2), (4, 8, 2, 2, 2)])
def test_bad_shapes_are_one_line(shape, training):
    with pytest.raises(ShapeError, match=r"ZCANorm2d takes 4 dimensions with 8 channels, got shape \(4,"):
        ZCANorm2d(8).train(training)(torch.zeros(shape))
