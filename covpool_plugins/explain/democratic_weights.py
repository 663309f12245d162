"""The weights of the positions in democratic pooling."""

from __future__ import annotations

import torch

from ..errors import NotApplicableError
from ..pooling import CovariancePool, DemocraticWeighting
from .explanation import Explanation
from .methods import EXPLANATIONS, ExplanationMethod
from .model_view import ForwardPass, ModelView


def democratic_weights(view: ModelView, passed: ForwardPass, target: int) -> Explanation:
    """How much each position counts in democratic pooling: the weights α of Σ α_i x_i x_iᵀ / M, (H, W).

    They do not depend on the class. Bursty positions, which repeat what others show, have small ones. For γ = 1, sum
    pooling, all are one.

    Raises:
        NotApplicableError: for a pool that does not weight the positions.

    Source: Lin, Maji & Koniusz, "Second-order Democratic Aggregation", ECCV 2018.
    """
    pool = view.known_pool()
    if not isinstance(pool, CovariancePool) or not isinstance(pool.weighting, DemocraticWeighting):
        raise NotApplicableError(
            f"democratic_weights: not applicable to pool {pool.pool_type!r}: it gives every position the same weight"
        )
    features, grid = view.features(passed)
    with torch.no_grad():
        alpha = pool.weighting.weights(features.double())
    return Explanation(alpha[0].reshape(grid), signed=False)


EXPLANATIONS.add("democratic_weights", ExplanationMethod(democratic_weights))
