"""Gradient, Grad-CAM and linear approximation give what their definitions say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.explanations import heads
from torch import Tensor

from covpool_plugins.errors import NotApplicableError
from covpool_plugins.explain import ModelView, explain
from covpool_plugins.pooling import create_pool


@heads()
def test_grad_cam_and_gradient_by_definition(name: str, small_net, image: Tensor) -> None:
    net, x = small_net(name), image.clone().requires_grad_(True)
    maps = net.forward_features(x)
    grads = torch.autograd.grad(net.head(maps)[0, 2], (maps, x))
    grad_cam = torch.relu((grads[0].mean(dim=(2, 3), keepdim=True) * maps).sum(dim=1))[0].detach()
    for method, expected in (("grad_cam", grad_cam), ("gradient", grads[1].abs().amax(dim=1)[0])):
        explanation = explain(net, image, method, target=2, grad="training")
        assert explanation.layer == ("stage2" if method == "grad_cam" else None) and not explanation.signed
        assert expected.max() > 0
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


@pytest.mark.parametrize("name", ["svdpade", "isqrt", "bcnn", "gap"])
def test_linear_approximation_is_activation_times_gradient(name: str, small_net, image: Tensor) -> None:
    """Also right in front of a centred covariance, where Grad-CAM is not defined."""
    net = small_net(name, **({} if name == "gap" else {"reduce_channels": None}))
    first = net.stage1(net.stem(image)).detach().requires_grad_(True)
    last = net.stage2(first * 1.0)
    grads = torch.autograd.grad(net.head(last * 1.0)[0, 2], (first, last))
    for layer, maps, grad in zip(("stage1", "stage2"), (first, last), grads, strict=True):
        expected = (maps * grad).sum(dim=1)[0].detach().numpy()
        explanation = explain(net, image, "linear_approx", target=2, grad="training", layer=layer)
        assert explanation.signed and explanation.layer == layer and np.abs(expected).max() > 0
        np.testing.assert_allclose(explanation.map, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    assert explain(net, image, "linear_approx").layer == "stage2"
