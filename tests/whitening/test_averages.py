"""Two averages that evaluation can use, and checkpoints from one to the other."""

import copy

import pytest
import torch
from support.whitening import correlated, inverse_root, samples, statistics

from covpool_plugins.errors import OptionError
from covpool_plugins.whitening import PCANorm2d, PCANorm3d, ZCANorm1d, ZCANorm2d, list_whitening_methods

AVERAGES = ["inverse_root", "covariance"]


def trained(make, steps=3, **options):
    layer = make(**{"num_features": 8, "groups": 2, "dtype": torch.float64, **options})
    torch.nn.init.normal_(layer.weight)
    for _ in range(steps):
        layer(correlated() * torch.linspace(1, 2, 8, dtype=torch.float64)[:, None, None])
    return layer.eval()


@pytest.mark.parametrize("momentum", [0.3, None])
@pytest.mark.parametrize("method", list_whitening_methods())
def test_zca_whitens_the_average_of_the_unbiased_covariances(method, momentum):
    layer = ZCANorm2d(8, 2, eps=1e-3, momentum=momentum, method=method, average="covariance", dtype=torch.float64)
    mean, average = torch.zeros(2, 4, 1, dtype=torch.float64), torch.eye(4, dtype=torch.float64).expand(2, 4, 4)
    for step in range(3):
        x = correlated(6)
        layer(x)
        weight = 1 / (step + 1) if momentum is None else momentum
        batch_mean, covariance = statistics(x, 2)
        mean = (1 - weight) * mean + weight * batch_mean
        average = (1 - weight) * average + weight * covariance * 150 / 149
    torch.testing.assert_close(layer.running_covariance, average)
    torch.testing.assert_close(layer.running_mean, mean.flatten())
    if method in ("exact", "svdpi"):
        torch.testing.assert_close(layer.running_subspace, inverse_root(average, 1e-3))
        x = correlated()
        whitened = samples(layer.eval()(x), 2)
        torch.testing.assert_close(whitened, inverse_root(average, 1e-3) @ (samples(x, 2) - mean))
    assert layer.eval().whitening_error(x).isfinite().all()


def test_pca_projects_by_the_average_of_the_covariances():
    layer = trained(PCANorm2d, n_components=2, average="covariance", momentum=1.0, affine=True)
    scale = (layer.running_var.view(2, 4) + layer.eps).rsqrt()
    torch.testing.assert_close(layer.running_covariance.diagonal(dim1=1, dim2=2).flatten(), layer.running_var)
    correlation = scale.unsqueeze(-1) * layer.running_covariance * scale.unsqueeze(-2)
    U = torch.linalg.eigh(correlation)[1][..., -2:]
    torch.testing.assert_close(layer.running_subspace, U @ U.mT)


def test_groups_of_one_evaluate_as_a_batch_norm():
    ours, theirs = ZCANorm2d(8, 8, eps=1e-5, average="covariance"), torch.nn.BatchNorm2d(8)
    for _ in range(3):
        x = correlated(dtype=torch.float32)
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), atol=1e-5, rtol=1e-5)


def test_small_batches_whiten_by_the_covariance_and_not_by_the_published_average():
    """64 samples of 64 channels: the documented deviations."""
    x, deviations = torch.randn(4000, 64), {}
    for average in AVERAGES:
        layer = ZCANorm1d(64, average=average, affine=False)
        for _ in range(60):
            layer(torch.randn(64, 64))
        deviations[average] = float(layer.eval()(x).std())
    assert abs(deviations["covariance"] - 1) < 0.05 and deviations["inverse_root"] > 2


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("make", [ZCANorm2d, PCANorm2d])
def test_training_is_the_same(make, average):
    torch.manual_seed(0)
    x = correlated()
    layer, published = (make(8, groups=2, average=a, dtype=torch.float64) for a in (average, "inverse_root"))
    assert torch.equal(layer(x), published(x))
    assert torch.equal(layer(2 * x), published(2 * x))


SAME = [(ZCANorm2d, {"method": "exact"}), (ZCANorm2d, {"method": "svdpi"}), (PCANorm2d, {}), (ZCANorm2d, {"groups": 8})]


@pytest.mark.parametrize("source, target", [AVERAGES, AVERAGES[::-1]])
@pytest.mark.parametrize("make, options", SAME, ids=str)
def test_a_checkpoint_evaluates_as_it_did_with_the_other_average(make, options, source, target):
    layer, other = trained(make, average=source, **options), trained(make, average=target, steps=1, **options)
    state, x = layer.state_dict(), correlated()
    keys = set(state)
    other.load_state_dict(state)
    assert set(state) == keys
    torch.testing.assert_close(other(x), layer(x))
    if target == "covariance" and make is ZCANorm2d:  # and goes on from the covariance that the matrix whitens
        torch.testing.assert_close(inverse_root(other.running_covariance, other.eps), layer.running_subspace)
    other.train()(x)
    assert all(buffer.isfinite().all() for buffer in other.buffers())


@pytest.mark.parametrize("make, options", [(ZCANorm2d, {"method": "mpa"}), (ZCANorm2d, {"energy": 0.9})], ids=str)
def test_averaged_covariances_of_every_method_load_into_the_published_average(make, options):
    layer, other = trained(make, average="covariance", **options), trained(make, **options)
    other.load_state_dict(layer.state_dict())
    x = correlated()
    torch.testing.assert_close(other(x), layer(x))


@pytest.mark.parametrize(
    "make, options, words",
    [
        (ZCANorm2d, {"energy": 0.9}, "matrices of energy=0.9"),
        (ZCANorm2d, {"method": "newton_schulz"}, "matrices of .*NewtonSchulz"),
        (PCANorm2d, {"n_components": 2}, "projectors"),
    ],
    ids=str,
)
def test_a_checkpoint_without_a_covariance_is_refused(make, options, words):
    layer, other = trained(make, **options), trained(make, average="covariance", **options)
    with pytest.raises(
        OptionError,
        match=rf"^0\.running_subspace: average=.* cannot go on from a checkpoint of averaged {words}.*inverse_root",
    ) as info:
        torch.nn.Sequential(other).load_state_dict(torch.nn.Sequential(layer).state_dict())
    assert "\n" not in str(info.value)


def test_singular_matrices_are_refused():
    state = trained(ZCANorm2d).state_dict()
    state["running_subspace"][0] = 0
    with pytest.raises(OptionError, match="averaged singular matrices"):
        trained(ZCANorm2d, average="covariance").load_state_dict(state)


@pytest.mark.parametrize("options", [{}, {"method": "mpa"}, {"energy": 0.5}, {"groups": 8}], ids=str)
@pytest.mark.parametrize("make", [ZCANorm2d, PCANorm2d])
def test_a_batch_norms_checkpoint_evaluates_as_the_batch_norm(make, options):
    if make is PCANorm2d and "method" in options:
        options = {"n_components": 2}
    theirs, x = torch.nn.BatchNorm2d(8, eps=1e-4), correlated(dtype=torch.float32)
    theirs(x)
    ours = make(8, average="covariance", **options)
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), atol=1e-5, rtol=1e-5)
    expected = torch.diag_embed(theirs.running_var.view(ours.groups, -1))
    torch.testing.assert_close(ours.running_covariance, expected)


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("make", [ZCANorm2d, PCANorm2d])
def test_resuming_in_the_middle_is_going_on(make, average):
    options = {"average": average, "momentum": None, **({"n_components": 3} if make is PCANorm2d else {})}
    layer = trained(make, **options).train()
    resumed = make(8, groups=2, dtype=torch.float64, **options)
    resumed.load_state_dict(copy.deepcopy(layer.state_dict()))
    for _ in range(2):
        x = correlated()
        assert torch.equal(resumed(x), layer(x))
    for name, buffer in layer.named_buffers():
        assert torch.equal(buffer, resumed.get_buffer(name)), name


def test_options_of_the_average():
    with pytest.raises(OptionError, match="average must be one of inverse_root, covariance, got 'mean'"):
        ZCANorm2d(8, average="mean")
    layer = PCANorm3d(8, 3, average="covariance")
    assert "average='covariance'" in repr(layer) and "n_components=3" in repr(layer)
    layer(torch.randn(4, 8, 2, 2, 2))
    layer.reset_running_stats()
    for name, buffer in PCANorm3d(8, 3, average="covariance").named_buffers():
        assert torch.equal(buffer, layer.get_buffer(name)), name
    untracked = ZCANorm2d(8, average="covariance", track_running_stats=False)
    assert untracked.running_covariance is None and untracked(torch.randn(4, 8, 3, 3)).isfinite().all()
