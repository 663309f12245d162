"""TorchRay's methods give what the definitions say, and leave nothing behind."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from support.explanations import CHEAP, POOL_OF
from torch import Tensor, nn

from covpool_plugins.errors import UnknownNameError
from covpool_plugins.explain import METHODS, ModelView, explain
from covpool_plugins.explain.backprop import DegenerateLayerError
from covpool_plugins.pooling import create_pool, list_pools


@pytest.mark.parametrize("name", list_pools())
def test_grad_cam_equals_its_definition(name: str, small_net, image: Tensor) -> None:
    net = small_net(name)
    maps = net.forward_features(image).detach().requires_grad_(True)
    (grad,) = torch.autograd.grad(net.head(maps)[0, 2], maps)
    expected = torch.relu((grad.mean(dim=(2, 3), keepdim=True) * maps).sum(dim=1))[0].detach().numpy()
    found = explain(net, image, "grad_cam", target=2, grad="training")
    assert found.layer == "stage2" and not found.signed and expected.max() > 0
    np.testing.assert_allclose(found.map, expected, rtol=1e-3, atol=1e-4 * expected.max())


@pytest.mark.parametrize("name", list_pools())
def test_gradient_equals_autograd(name: str, small_net, image: Tensor) -> None:
    net, x = small_net(name), image.clone().requires_grad_(True)
    (grad,) = torch.autograd.grad(net(x)[0, 1], x)
    found = explain(net, image, "gradient", target=1, grad="training")
    expected = grad.abs().amax(dim=1)[0].numpy()
    assert found.map.shape == (32, 32)
    np.testing.assert_allclose(found.map, expected, rtol=1e-3, atol=1e-4 * expected.max())


@pytest.mark.parametrize("method", METHODS)
def test_the_model_and_the_view_stay_as_they_were(method: str, small_net, image: Tensor) -> None:
    net = small_net(POOL_OF.get(method, "svdpade")).train()
    net.stem.requires_grad_(False)
    net.head.fc.weight.grad = torch.ones_like(net.head.fc.weight)
    before, x = copy.deepcopy(net), image.clone()
    view = ModelView.of(net)
    first, second = (explain(view, image, method, **CHEAP.get(method, {})) for _ in range(2))
    np.testing.assert_array_equal(first.map, second.map)
    assert torch.equal(image, x) and not image.requires_grad and image.grad is None
    for (name, module), old in zip(net.named_modules(), before.modules(), strict=True):
        assert module.training == old.training and _hooks(module) == 0, name
    for (name, parameter), old in zip(net.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(parameter, old) and parameter.requires_grad == old.requires_grad, name
        assert (parameter.grad is not None) == (name == "head.fc.weight"), name
    assert (net.head.fc.weight.grad == 1).all()
    for name, buffer in net.named_buffers():
        assert torch.equal(buffer, before.get_buffer(name)), name
    assert net.head.global_pool.method == before.head.global_pool.method
    assert all(p.grad is None and not p.requires_grad for p in view.model.parameters())
    assert all(not m.training and _hooks(m) == 0 for m in view.model.modules())


def _hooks(module: nn.Module) -> int:
    return len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks)


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
    with pytest.raises(DegenerateLayerError, match=r"stage2.*rounding errors"):
        explain(net, image, "grad_cam", target=0, layer="stage2")
    found = explain(net, image, "grad_cam", target=0)
    assert found.layer == "stage2.0"
    uncentred = small_net(create_pool("svdpade", 12, reduce_channels=None, centered=False))
    assert explain(uncentred, image, "grad_cam", target=0).layer == "stage2"


def test_an_unknown_layer_is_named(small_net, image: Tensor) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown layer 'stage3'; available: stage"):
        explain(small_net(), image, "grad_cam", layer="stage3")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("input_fmt", ["NHWC", "NLC"])
def test_channels_last_and_tokens(method: str, input_fmt: str, small_net, image: Tensor) -> None:
    """The same network, whose last map comes in another layout, with a token in front for ``NLC``."""

    class ToLayout(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if input_fmt == "NHWC":
                return x.permute(0, 2, 3, 1) * 1.0
            tokens = x.flatten(2).mT
            return torch.cat([torch.ones_like(tokens[:, :1]), tokens], dim=1)

    pool = POOL_OF.get(method, "svdpade")
    plain = small_net(pool, reduce_channels=8, reduction="conv-bn-relu")
    layout = {"input_fmt": input_fmt, "num_prefix_tokens": 1 if input_fmt == "NLC" else 0}
    other = small_net(pool, reduce_channels=8, reduction="conv-bn-relu", **layout)
    other.load_state_dict(plain.state_dict())
    other.stage2.add_module("layout", ToLayout())
    expected, found = (explain(net, image, method, target=1, **CHEAP.get(method, {})) for net in (plain, other))
    assert found.map.shape == expected.map.shape
    np.testing.assert_allclose(found.map, expected.map, rtol=1e-3, atol=1e-4 * np.abs(expected.map).max())
