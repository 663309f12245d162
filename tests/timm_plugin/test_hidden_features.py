"""Layers between the pool and the classifier, as AlexNet and VGG of CVPR 2018 have them."""

import pytest
import torch

import covpool_plugins
from covpool_plugins.errors import OptionError


@pytest.fixture
def model():
    hidden = dict(hidden_features=(24, 12), reduce_channels=8, drop_rate=0.5)
    return covpool_plugins.create_model("test_resnet", "svdpade", num_classes=5, **hidden)


def test_shapes(model):
    images = torch.randn(2, 3, 64, 64)
    assert model(images).shape == (2, 5)
    assert model.forward_head(model.forward_features(images), pre_logits=True).shape == (2, 12)
    assert model.head_hidden_size == 12
    model(images).sum().backward()
    assert all(parameter.grad is not None for parameter in model.head.parameters())
    assert [tuple(layer.weight.shape) for layer in model.head.hidden if hasattr(layer, "weight")] == [
        (24, 36),
        (12, 24),
    ]
    assert [layer.p for layer in model.head.hidden if isinstance(layer, torch.nn.Dropout)] == [0.5]


def test_they_are_part_of_the_pool(model):
    """A new classifier leaves them, another pool of another length needs others."""
    before = model.head.hidden[0].weight
    model.reset_classifier(7)
    assert model.head.hidden[0].weight is before
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 7)
    model.reset_classifier(7, "gap")
    assert model.head.hidden[0].in_features == model.num_features  # average pooling takes no reduction by default
    model.reset_classifier(0, "")
    assert model(torch.randn(2, 3, 64, 64)).ndim == 4


@pytest.mark.parametrize("widths", [(0,), (-3,), (2.5,), ("wide",)])
def test_bad_widths(widths):
    with pytest.raises(OptionError, match="hidden_features"):
        covpool_plugins.create_model("test_resnet", "gap", hidden_features=widths)
