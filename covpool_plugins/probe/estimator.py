"""A second-order probe of frozen features, as a scikit-learn classifier."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..checks import check_choice, check_integer, check_known, check_number
from ..errors import MissingExtraError, ShapeError, UnknownNameError
from ..pooling import create_pool, list_pools, pool_options
from ..tables import Table
from .attention import AttentivePool
from .bags import Bags, bags_of, is_ragged

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, clone
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression, RidgeClassifierCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.utils import check_random_state
    from sklearn.utils.metaestimators import available_if
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data
except ImportError as error:
    raise MissingExtraError(
        f"scikit-learn cannot be imported ({error}); run: pip install 'covpool_plugins[probe]'", name="sklearn"
    ) from error

# Pools of one number for each channel: they take all channels.
FIRST_ORDER = ("gap", "attention")
REDUCTIONS = ("pca", "linear", None)


def logistic(strength: float = 1.0) -> Any:
    """A logistic classifier of standardised vectors; ``strength`` is its C, whose inverse weighs the penalty."""
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))


CLASSIFIERS: Table[Callable[[], Any]] = Table("classifier of a probe")
CLASSIFIERS.add("logistic", logistic)
CLASSIFIERS.add("ridge", lambda: make_pipeline(StandardScaler(), RidgeClassifierCV(np.logspace(-1, 5, 13))))


def list_probe_pools() -> list[str]:
    """Names of the pools that a probe takes.

    Examples:
        >>> {"gap", "svdpade", "attention"} <= set(list_probe_pools())
        True
    """
    return [*(name for name in list_pools() if name != "temporal"), "attention"]


def _has(method: str) -> Callable[[Any], bool]:
    def classifier_has(probe: Any) -> bool:
        classifier = getattr(probe, "classifier_", None)
        if classifier is None:
            named = isinstance(probe.classifier, str) and probe.classifier in CLASSIFIERS
            classifier = CLASSIFIERS[probe.classifier]() if named else probe.classifier
        return hasattr(classifier, method)

    return classifier_has


class SecondOrderProbe(ClassifierMixin, BaseEstimator):
    """Reduce the channels of frozen features, pool them, classify the vectors.

    ``fit``, ``predict``, ``predict_proba``, ``decision_function``, ``score`` and ``vectors`` take N samples as

    * maps (N, C, H, W), tokens (N, M, C) or vectors (N, C), which are bags of one position;
    * a list or an object array of N arrays (M_i, C), ragged bags such as the tiles of slides;
    * with ``mask`` (N, positions): true where a position counts.

    Args:
        pool: one of :func:`list_probe_pools`: any of ``create_pool``'s but ``temporal``, or ``attention``.
        classifier: ``logistic`` or ``ridge`` (its strength chosen by leave-one-out), both on standardised vectors, or
            any scikit-learn classifier.
        reduce: ``pca``, the principal directions of all training positions; ``linear``, a projection that starts
            there and is learned; or ``None``. ``gap`` and ``attention`` are not reduced.
        channels: after the reduction; fewer where the features have fewer.
        pool_options: of the pool, such as ``dict(centered=False)``.
        epochs, learning_rate, batch_size: of the training by AdamW of what is learned with a linear classifier on top
            (``linear``, ``attention``, pools with weights). The classifier is fitted on the vectors afterwards.
        random_state: of the weights and of the order of training.

    Attributes:
        classes_: (K,).
        n_features_in_: C.
        network_: reduction and pool.
        classifier_: fitted on the vectors.

    Raises:
        UnknownNameError: for a pool or a classifier that does not exist.
        OptionError: for an option outside its range.
        ShapeError: for features or a mask of another shape.

    Examples:
        >>> X, y = torch.randn(20, 49, 8), torch.arange(20) % 2
        >>> X[y == 1] @= torch.diag(torch.arange(1.0, 9.0))
        >>> SecondOrderProbe("svdpade", channels=4).fit(X, y).score(X, y)
        1.0
    """

    def __init__(
        self,
        pool: str = "svdpade",
        classifier: Any = "logistic",
        reduce: str | None = "pca",
        channels: int = 64,
        pool_options: Mapping[str, Any] | None = None,
        epochs: int = 30,
        learning_rate: float = 1e-3,
        batch_size: int = 64,
        random_state: Any = 0,
    ) -> None:
        self.pool = pool
        self.classifier = classifier
        self.reduce = reduce
        self.channels = channels
        self.pool_options = pool_options
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.random_state = random_state

    def fit(self, X: Any, y: Any, mask: Any = None) -> SecondOrderProbe:
        """Learn from features and their classes (N,).

        Raises:
            ValueError: for fewer than two classes.
        """
        self._check_options()
        if y is None:
            raise ValueError("a classifier requires y to be passed, but the target y is None")
        bags, y = self._bags(X, mask, y)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"a classifier needs two classes or more, got 1 class: {self.classes_[0]!r}")
        generator = check_random_state(self.random_state)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(generator.randint(2**31)))
            self.network_ = self._network(bags)
            if any(parameter.requires_grad for parameter in self.network_.parameters()):
                self._train(bags, torch.from_numpy(labels))
        self.network_.eval().requires_grad_(False)
        chosen = self.classifier
        self.classifier_ = CLASSIFIERS[chosen]() if isinstance(chosen, str) else clone(chosen)
        self.classifier_.fit(self._vectors(bags), y)
        return self

    def vectors(self, X: Any, mask: Any = None) -> np.ndarray:
        """What the classifier gets, (N, D) in float32."""
        check_is_fitted(self)
        return self._vectors(self._bags(X, mask)[0])

    def predict(self, X: Any, mask: Any = None) -> np.ndarray:
        """Classes (N,)."""
        vectors = self.vectors(X, mask)
        return self.classifier_.predict(vectors)

    @available_if(_has("predict_proba"))
    def predict_proba(self, X: Any, mask: Any = None) -> np.ndarray:
        """Probabilities (N, K), in the order of ``classes_``."""
        vectors = self.vectors(X, mask)
        return self.classifier_.predict_proba(vectors)

    @available_if(_has("decision_function"))
    def decision_function(self, X: Any, mask: Any = None) -> np.ndarray:
        """Scores (N, K), or (N,) for two classes."""
        vectors = self.vectors(X, mask)
        return self.classifier_.decision_function(vectors)

    def score(self, X: Any, y: Any, mask: Any = None, sample_weight: Any = None) -> float:
        """Accuracy from 0 to 1."""
        return float(np.average(self.predict(X, mask) == column_or_1d(y), weights=sample_weight))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags

    def _check_options(self) -> None:
        if self.pool not in list_probe_pools():
            raise UnknownNameError("pool of a probe", self.pool, list_probe_pools())
        check_choice("reduce", self.reduce, REDUCTIONS)
        check_integer("channels", self.channels)
        check_integer("epochs", self.epochs)
        check_integer("batch_size", self.batch_size, 2)
        check_number("learning_rate", self.learning_rate, "(0, inf)")
        if isinstance(self.classifier, str):
            CLASSIFIERS[self.classifier]

    def _bags(self, X: Any, mask: Any, y: Any = None) -> tuple[Bags, Any]:
        """Checked features, and the labels while fitting."""
        fitting = y is not None
        if not is_ragged(X) and getattr(X, "ndim", 2) <= 2:  # scikit-learn's own checks, with the names of data frames
            X = validate_data(self, X, reset=fitting)
        bags = bags_of(X, mask)
        if fitting:
            y = column_or_1d(y, warn=True)
            if len(y) != len(bags.values):
                raise ShapeError(f"there are {len(bags.values)} samples of features and {len(y)} labels")
            self.n_features_in_ = bags.values.shape[2]
        elif bags.values.shape[2] != self.n_features_in_:
            found = f"X has {bags.values.shape[2]} features, but {type(self).__name__}"
            raise ShapeError(f"{found} is expecting {self.n_features_in_} features as input")
        return bags, y

    def _network(self, bags: Bags) -> PooledBags:
        channels = self.n_features_in_
        options = dict(self.pool_options or {})
        reduction: nn.Module = nn.Identity()
        if self.reduce and self.pool not in FIRST_ORDER:
            directions = principal_directions(bags.positions(), self.channels)
            reduction = nn.Linear(channels, len(directions), bias=False)
            reduction.weight = nn.Parameter(directions, requires_grad=self.reduce == "linear")
            channels = len(directions)
        if self.pool == "attention":
            check_known("pool 'attention'", options, ("heads",))
            return PooledBags(reduction, AttentivePool(channels, **options))
        if "reduce_channels" in pool_options(self.pool, of_parts=False):
            options.setdefault("reduce_channels", None)
        return PooledBags(reduction, create_pool(self.pool, channels, input_fmt="NLC", **options))

    def _train(self, bags: Bags, labels: Tensor) -> None:
        """Train what has weights, with normalised vectors and a linear classifier on top."""
        width = self.network_.pool.out_features
        model = nn.Sequential(nn.BatchNorm1d(width, affine=False), nn.Linear(width, len(self.classes_)))
        parameters = [p for p in [*self.network_.parameters(), *model.parameters()] if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=self.learning_rate)
        size = min(self.batch_size, len(labels))
        steps = self.epochs * (len(labels) // size)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.learning_rate, total_steps=steps)
        self.network_.train()
        for _ in range(self.epochs):
            for rows in torch.randperm(len(labels))[: len(labels) // size * size].split(size):
                loss = nn.functional.cross_entropy(model(self.network_(*bags.part(rows))), labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()

    @torch.no_grad()
    def _vectors(self, bags: Bags) -> np.ndarray:
        rows = torch.arange(len(bags.values)).split(max(self.batch_size, 1))
        return torch.cat([self.network_(*bags.part(chosen)) for chosen in rows]).numpy()


class PooledBags(nn.Module):
    """Reduction and pool: bags (N, M, C) to vectors."""

    def __init__(self, reduction: nn.Module, pool: Any) -> None:
        super().__init__()
        self.reduction = reduction
        self.pool = pool

    def forward(self, values: Tensor, mask: Tensor | None = None) -> Tensor:
        reduced = self.reduction(values)
        return self.pool(reduced) if mask is None else self.pool(reduced, mask)


def principal_directions(positions: np.ndarray, channels: int) -> Tensor:
    """The directions of the largest variance of positions (n, C), (channels, C), as many as there are.

    They project without taking the mean away: second moments about zero keep their meaning.
    """
    count = min(channels, *positions.shape)
    components = PCA(count, svd_solver="covariance_eigh").fit(positions).components_
    return torch.from_numpy(components.astype(np.float32))
