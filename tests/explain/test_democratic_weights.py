"""The weights of democratic pooling, as they are and on the grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from covpool_plugins.errors import NotApplicableError
from covpool_plugins.explain import ModelView, explain


@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_weights_equalise_what_positions_contribute(gamma: float, small_net, image: Tensor) -> None:
    """α_i Σ_j K_ij α_j = (Σ_j K_ij)^γ, in the place of each position."""
    net = small_net("democratic", gamma=gamma, iterations=200).double()
    explanation = explain(net, image.double(), "democratic_weights", 0)
    with torch.no_grad():
        X = net.forward_features(image.double()).flatten(2)[0]
    K = (X.T @ X).square()
    alpha = torch.from_numpy(explanation.map).flatten()
    torch.testing.assert_close(alpha * (K @ alpha), K.sum(1) ** gamma, rtol=1e-6, atol=0)
    assert (
        explanation.map.shape == (8, 8)
        and not explanation.signed
        and explanation.map.std() > 0.01 * explanation.map.mean()
    )


def test_sum_pooling_has_weights_of_one(small_net, image: Tensor) -> None:
    np.testing.assert_allclose(explain(small_net("democratic", gamma=1.0), image, "democratic_weights", 0).map, 1, 1e-6)


def test_weights_do_not_depend_on_the_class(small_net, image: Tensor) -> None:
    view = ModelView.of(small_net("democratic"))
    maps = [explain(view, image, "democratic_weights", target).map for target in (0, 3)]
    np.testing.assert_array_equal(*maps)


@pytest.mark.parametrize("name", ["svdpade", "bcnn", "cbp", "gap"])
def test_other_pools_are_refused(name: str, small_net, image: Tensor) -> None:
    with pytest.raises(
        NotApplicableError, match=f"^democratic_weights: not applicable to pool '{name}': it gives every"
    ):
        explain(small_net(name), image, "democratic_weights", 0)
