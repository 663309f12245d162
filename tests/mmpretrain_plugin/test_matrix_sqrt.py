"""The layer MatrixSqrt is linalg's sqrtm, named in a config."""

import pytest
import torch
from mmengine.registry import MODELS as ROOT_MODELS
from mmpretrain.registry import MODELS

from covpool_plugins.errors import OptionError, ShapeError, UnknownNameError
from covpool_plugins.linalg import SVDPade, sqrtm
from covpool_plugins.mmpretrain_plugin.matrix_sqrt import MatrixSqrt


def covariances():
    X = torch.randn(2, 3, 4, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return X @ X.mT / 9


@pytest.mark.parametrize("method", ["svdpade", "isqrt", "minimax"])
def test_values_and_gradients_are_those_of_the_function(method):
    layer = MODELS.build(dict(type="MatrixSqrt", method=method))
    A, B = covariances().requires_grad_(), covariances().requires_grad_()
    weights = torch.randn(A.shape, generator=torch.Generator().manual_seed(1), dtype=A.dtype)
    root, expected = layer(A), sqrtm(B, method)
    (root * weights).sum().backward()
    (expected * weights).sum().backward()
    assert torch.equal(root, expected) and torch.equal(A.grad, B.grad)
    assert A.grad.abs().sum() > 0


def test_the_default_is_a_root():
    layer, A = MatrixSqrt(), covariances()
    assert layer.method == SVDPade()
    torch.testing.assert_close(layer(A) @ layer(A), A)
    assert layer.state_dict() == {}


def test_options_are_those_of_the_method():
    layer = ROOT_MODELS.build(dict(type="MatrixSqrt", method="isqrt", iterations=2))
    A = covariances()
    assert torch.equal(layer(A), sqrtm(A, "isqrt", iterations=2))
    assert not torch.equal(layer(A), sqrtm(A, "isqrt"))
    assert "iterations=2" in repr(layer)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: MatrixSqrt("svdpad"), UnknownNameError, "'svdpad'; available: svdpade"),
        (lambda: MatrixSqrt("isqrt", iteration=2), OptionError, "no option 'iteration'"),
        (lambda: MatrixSqrt()(torch.zeros(2, 3, 4)), ShapeError, r"square matrices .* got shape \(2, 3, 4\)"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
