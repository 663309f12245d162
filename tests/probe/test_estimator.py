"""SecondOrderProbe as scikit-learn's tools use it, and what it computes."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import check_estimator

from covpool_plugins.errors import OptionError, ShapeError, UnknownNameError
from covpool_plugins.linalg import covariance_sqrt
from covpool_plugins.probe import SecondOrderProbe, list_probe_pools

# scikit-learn's checks give vectors, which are bags of one position.
NO_COVARIANCE = {"check_classifiers_train": "one position has no covariance to classify by"}
EXPECTED_FAILURES = {"gap": {}, "svdpade": NO_COVARIANCE, "ibcnn": NO_COVARIANCE}


@pytest.fixture(scope="module")
def data():
    """Two classes with the same mean and other covariances: X (60, 20, 6), y."""
    generator = np.random.default_rng(0)
    X, y = generator.normal(size=(60, 20, 6)).astype(np.float32), np.array(["mild", "wild"] * 30)
    X[y == "wild"] *= np.linspace(0.5, 2, 6, dtype=np.float32)
    return X + 1, y


@pytest.mark.filterwarnings("ignore")
@pytest.mark.fast_for("gap", "svdpade")
@pytest.mark.parametrize("pool", EXPECTED_FAILURES)
def test_check_estimator(pool):
    results = check_estimator(
        SecondOrderProbe(pool), on_fail=None, on_skip=None, expected_failed_checks=EXPECTED_FAILURES[pool]
    )
    assert len(results) > 50
    assert [result["check_name"] for result in results if result["status"] == "failed"] == []
    assert {r["check_name"] for r in results if r["status"] == "xfail"} == set(EXPECTED_FAILURES[pool])


def test_vectors_are_the_roots_of_projected_covariances(data):
    X, y = data
    probe = SecondOrderProbe("svdpade", channels=3).fit(X, y)
    positions = X.reshape(-1, 6).astype(float)
    directions = np.linalg.eigh(np.cov(positions.T))[1][:, ::-1][:, :3].T
    signs = np.sign((probe.network_.reduction.weight.numpy() * directions).sum(1, keepdims=True))
    projected = torch.from_numpy(X.astype(float) @ (signs * directions).T)
    row, column = np.triu_indices(3)
    roots = covariance_sqrt(projected.mT).numpy()[:, row, column]
    np.testing.assert_allclose(probe.vectors(X), roots, rtol=1e-4, atol=1e-4)


def test_second_order_tells_apart_what_the_mean_does_not(data):
    X, y = data
    assert cross_val_score(SecondOrderProbe("svdpade", channels=6), X, y, cv=3).mean() > 0.95
    assert cross_val_score(SecondOrderProbe("gap"), X, y, cv=3).mean() < 0.75


@pytest.mark.parametrize("pool", list_probe_pools())
def test_every_pool_fits(pool, data):
    X, y = data
    probe = SecondOrderProbe(pool, channels=4, epochs=1).fit(X[:12], y[:12])
    vectors = probe.vectors(X[:12])
    assert np.isfinite(vectors).all() and len(vectors) == 12
    assert probe.network_.pool.out_features == vectors.shape[1]
    np.testing.assert_array_equal(probe.predict(X[:12]), clone(probe).fit(X[:12], y[:12]).predict(X[:12]))


def test_maps_are_tokens(data):
    X, y = data
    maps = X.reshape(60, 4, 5, 6).transpose(0, 3, 1, 2)
    probe = SecondOrderProbe("svdpade").fit(X, y)
    np.testing.assert_allclose(probe.vectors(maps), probe.vectors(X), atol=1e-5)
    np.testing.assert_allclose(probe.vectors(torch.from_numpy(maps)), probe.vectors(X), atol=1e-5)


@pytest.mark.parametrize("pool", ["gap", "svdpade", "ibcnn", "attention"])
def test_ragged_bags_are_masked_bags(pool, data):
    X, y = data
    lengths = np.random.default_rng(1).integers(8, 21, len(X))
    mask = np.arange(20) < lengths[:, None]
    ragged = [x[:length] for x, length in zip(X, lengths, strict=True)]
    filled = np.where(mask[..., None], X, 1e3).astype(np.float32)  # what is masked means nothing
    options = dict(pool=pool, channels=4, epochs=2)
    of_masks = SecondOrderProbe(**options).fit(filled, y, mask)
    of_lists = SecondOrderProbe(**options).fit(ragged, y)
    np.testing.assert_allclose(of_masks.vectors(filled, mask), of_lists.vectors(ragged), rtol=1e-3, atol=1e-4)
    alone = np.concatenate([of_lists.vectors(bag[None]) for bag in ragged])
    np.testing.assert_allclose(of_lists.vectors(ragged), alone, rtol=1e-3, atol=1e-4)
    objects = np.empty(len(ragged), object)
    objects[:] = ragged
    assert len(cross_val_score(SecondOrderProbe(**options), objects, y, cv=3)) == 3


def test_search_pipeline_and_pickle(data):
    X, y = data
    pipeline = make_pipeline(FunctionTransformer(lambda X: X - 1), SecondOrderProbe(channels=4))
    search = GridSearchCV(pipeline, {"secondorderprobe__pool": ["gap", "svdpade"]}, cv=3).fit(X, y)
    assert search.best_params_ == {"secondorderprobe__pool": "svdpade"}
    probe = SecondOrderProbe("isqrt", classifier=LogisticRegression(C=3.0), pool_options={"iterations": 7})
    search = GridSearchCV(probe, {"classifier__C": [0.1, 10.0], "channels": [2, 4]}, cv=3).fit(X, y)
    copy = pickle.loads(pickle.dumps(search.best_estimator_))
    np.testing.assert_array_equal(copy.predict_proba(X), search.predict_proba(X))


def test_probabilities_follow_the_classes(data):
    X, y = data
    probe = SecondOrderProbe().fit(X, y)
    np.testing.assert_array_equal(probe.classes_[probe.predict_proba(X).argmax(1)], probe.predict(X))
    ridge = SecondOrderProbe(classifier="ridge").fit(X, y)
    assert not hasattr(ridge, "predict_proba") and hasattr(ridge, "decision_function")
    assert ridge.score(X, y) == (ridge.predict(X) == y).mean()


@pytest.mark.slow
def test_a_learned_projection_beats_a_random_guess_of_the_principal_one():
    """The classes differ in channels of small variance, which the principal directions miss."""
    generator = np.random.default_rng(0)
    X, y = generator.normal(size=(120, 50, 8)).astype(np.float32), np.arange(120) % 2
    X[:, :, :4] *= 5
    X[y == 1, :, 4] *= 2
    options = dict(channels=3, random_state=0)
    assert cross_val_score(SecondOrderProbe(**options), X, y, cv=3).mean() < 0.7
    learned = SecondOrderProbe(reduce="linear", epochs=60, learning_rate=0.03, batch_size=16, **options)
    assert cross_val_score(learned, X, y, cv=3).mean() > 0.85


def test_the_state_of_random_numbers_is_left_alone(data):
    X, y = data
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    SecondOrderProbe("attention", epochs=1).fit(X, y)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(pool="svd"), UnknownNameError, "unknown pool of a probe 'svd'; available: .*svdpade"),
        (dict(pool="temporal"), UnknownNameError, "temporal"),
        (dict(classifier="svm"), UnknownNameError, "classifier of a probe 'svm'.*logistic"),
        (dict(reduce="lda"), OptionError, "reduce must be one of pca, linear, None, got 'lda'"),
        (dict(channels=0), OptionError, "channels must be a positive integer, got 0"),
        (dict(epochs=1.5), OptionError, "epochs"),
        (dict(batch_size=1), OptionError, "batch_size must be an integer >= 2, got 1"),
        (dict(learning_rate=-1), OptionError, "learning_rate"),
        (dict(pool_options=dict(size=3)), OptionError, "has no option 'size'"),
        (dict(pool="attention", pool_options=dict(size=3)), OptionError, "has no option 'size'.*heads"),
    ],
)
def test_bad_options_are_refused(options, error, message, data):
    with pytest.raises(error, match=message):
        SecondOrderProbe(**options).fit(*data)


@pytest.mark.parametrize(
    ("X", "mask", "message"),
    [
        (np.ones((2, 3, 4, 5, 6)), None, r"got shape \(2, 3, 4, 5, 6\)"),
        (np.ones((2, 0, 4)), None, "got shape|0 sample|minimum"),
        (np.ones((2, 3, 4)), np.ones((2, 4), bool), r"mask must be boolean of shape \(2, 3\)"),
        (np.ones((2, 3, 4)), np.ones((2, 3)), "mask must be boolean"),
        (np.ones((2, 3, 4)), np.array([[True] * 3, [False] * 3]), "row 1 of the mask has no position"),
        ([np.ones((2, 4)), np.ones((3, 5))], None, "same channels"),
        ([np.ones((2, 4)), np.ones((3, 4))], np.ones((2, 3), bool), "takes no mask"),
        (np.full((2, 3, 4), np.nan), None, "NaN"),
        (np.ones((3, 3, 4)), None, "3 samples of features and 2 labels"),
    ],
)
def test_bad_features_are_refused(X, mask, message):
    with pytest.raises(ValueError, match=message):
        SecondOrderProbe().fit(X, [0, 1], mask)


def test_other_channels_than_those_of_the_fit_are_refused(data):
    X, y = data
    with pytest.raises(ShapeError, match="X has 5 features, but SecondOrderProbe is expecting 6"):
        SecondOrderProbe().fit(X, y).predict(X[..., :5])
