"""The layer MatrixSqrt is linalg's sqrtm, named in a config."""

import pytest
import torch
from mmengine.registry import MODELS as ROOT_MODELS
from mmpretrain.registry import MODELS

from covpool_plugins.errors import OptionError, UnknownNameError
from covpool_plugins.linalg import Exact, sqrtm
from covpool_plugins.mmpretrain_plugin import MatrixSqrt


@pytest.mark.parametrize("registry", [ROOT_MODELS, MODELS], ids=["MMEngine", "MMPretrain"])
@pytest.mark.parametrize("options", [dict(method="svdpade"), dict(method="isqrt", iterations=2)], ids=str)
def test_values_and_gradients_are_those_of_the_function(options, registry):
    X = torch.randn(2, 3, 4, 9, dtype=torch.float64)
    A, B = ((X @ X.mT / 9).requires_grad_() for _ in range(2))
    root, expected = registry.build(dict(type="MatrixSqrt", **options))(A), sqrtm(B, **options)
    weights = torch.randn_like(root)
    (root * weights).sum().backward()
    (expected * weights).sum().backward()
    assert torch.equal(root, expected) and torch.equal(A.grad, B.grad)
    assert A.grad.abs().sum() > 0
    assert MatrixSqrt().method == Exact() and MatrixSqrt().state_dict() == {}


def test_bad_options():
    with pytest.raises(UnknownNameError, match="'svdpad'; available: svdpade"):
        MatrixSqrt("svdpad")
    with pytest.raises(OptionError, match="no option 'iteration'"):
        MatrixSqrt("isqrt", iteration=2)
