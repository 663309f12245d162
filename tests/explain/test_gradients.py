"""Gradient, Grad-CAM and linear approximation give what their definitions say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.explanations import heads
from torch import Tensor

from covpool_plugins.errors import NotApplicableError, UnknownNameError
from covpool_plugins.explain import ModelView, explain
from covpool_plugins.pooling import create_pool


@heads()
def test_grad_cam_equals_its_definition(name: str, small_net, image: Tensor) -> None:
    net = small_net(name)
    maps = net.forward_features(image).detach().requires_grad_(True)
    (grad,) = torch.autograd.grad(net.head(maps)[0, 2], maps)
    expected = torch.relu((grad.mean(dim=(2, 3), keepdim=True) * maps).sum(dim=1))[0].detach().numpy()
    explanation = explain(net, image, "grad_cam", target=2, grad="training")
    assert explanation.layer == "stage2" and not explanation.signed and expected.max() > 0
    np.testing.assert_allclose(explanation.map, expected, rtol=1e-3, atol=1e-4 * expected.max())


@heads()
def test_gradient_equals_autograd(name: str, small_net, image: Tensor) -> None:
    net, x = small_net(name), image.clone().requires_grad_(True)
    (grad,) = torch.autograd.grad(net(x)[0, 1], x)
    explanation = explain(net, image, "gradient", target=1, grad="training")
    expected = grad.abs().amax(dim=1)[0].numpy()
    assert explanation.map.shape == (32, 32)
    np.testing.assert_allclose(explanation.map, expected, rtol=1e-3, atol=1e-4 * expected.max())


def test_stages_are_those_a_probe_survives(small_net, image: Tensor) -> None:
    net = small_net("svdpade")
    view = ModelView.of(net)
    assert list(view.stages)[-1] == "stage2"
    assert {"stem", "stage1", "stage1.0", "stage1.0.conv", "stage2.1"} <= view.stages.keys()
    assert not {"stem.1", "stage1.0.norm", "head", "head.global_pool"} & view.stages.keys()
    for layer in view.stages:
        assert np.isfinite(explain(view, image, "grad_cam", target=0, layer=layer).map).all()


def test_degenerate_grad_cam_is_not_shown(small_net, image: Tensor) -> None:
    """The last map goes straight into a centred covariance: its gradients sum to zero."""
    net = small_net("svdpade", reduce_channels=None)
    with pytest.raises(NotApplicableError, match=r"stage2.*rounding errors"):
        explain(net, image, "grad_cam", target=0, layer="stage2")
    explanation = explain(net, image, "grad_cam", target=0)
    assert explanation.layer == "stage2.0"
    uncentred = small_net(create_pool("svdpade", 12, reduce_channels=None, centered=False))
    assert explain(uncentred, image, "grad_cam", target=0).layer == "stage2"


def test_an_unknown_layer_is_named(small_net, image: Tensor) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown layer 'stage3'; available: stage"):
        explain(small_net(), image, "grad_cam", layer="stage3")


@pytest.mark.parametrize("name", ["svdpade", "isqrt", "bcnn", "gap"])
def test_linear_approximation_is_activation_times_gradient(name: str, small_net, image: Tensor) -> None:
    """Also right in front of a centred covariance, where Grad-CAM is not defined."""
    options = {} if name == "gap" else {"reduce_channels": None}
    net = small_net(name, **options)
    for layer in ("stage1", "stage2"):
        maps = net.stage1(net.stem(image))
        maps = (maps if layer == "stage1" else net.stage2(maps)).detach().requires_grad_(True)
        scores = net.head(net.stage2(maps * 1.0) if layer == "stage1" else maps)
        (grad,) = torch.autograd.grad(scores[0, 2], maps)
        expected = (maps * grad).sum(dim=1)[0].detach().numpy()
        explanation = explain(net, image, "linear_approx", target=2, grad="training", layer=layer)
        assert explanation.signed and explanation.layer == layer and np.abs(expected).max() > 0
        np.testing.assert_allclose(explanation.map, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    assert explain(net, image, "linear_approx").layer == "stage2"
    with pytest.raises(UnknownNameError, match="unknown layer 'stage3'"):
        explain(net, image, "linear_approx", layer="stage3")
