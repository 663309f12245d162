"""Gradients, Grad-CAM, deconvolution, guided backpropagation, RISE and extremal perturbations by definition."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from support.explanations import CHEAP, heads
from torch import Tensor, nn
from torch.nn import functional as F

import covpool_plugins
from covpool_plugins.errors import NotApplicableError
from covpool_plugins.explain import ModelView, explain
from covpool_plugins.explain.backprop import Rectifiers
from covpool_plugins.explain.images import blur
from covpool_plugins.pooling import create_pool

RECTIFIED = ["deconvnet", "guided_backprop"]


def in_place(function: Callable[[Tensor], Any]) -> Callable[[Tensor], Tensor]:
    """The result is not used: the input has changed."""

    def call(x: Tensor) -> Tensor:
        function(x)
        return x

    return call


ACTIVATIONS = {
    "module": nn.ReLU(),
    "module in place": in_place(nn.ReLU(inplace=True)),
    "function": F.relu,
    "function in place": in_place(lambda x: F.relu(x, inplace=True)),
    "relu_": in_place(F.relu_),
    "torch": torch.relu,
    "torch in place": in_place(torch.relu_),
    "method": lambda x: x.relu(),
    "method in place": in_place(lambda x: x.relu_()),
    "relu6": nn.ReLU6(),
    "relu6 in place": in_place(nn.ReLU6(inplace=True)),
    "function relu6": F.relu6,
}


class TwoLayers(nn.Module):
    """Two convolutions, each with an activation, and the average of the map: small values, far below 6."""

    pretrained_cfg: ClassVar = dict(input_size=(3, 8, 8))

    def __init__(self, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.conv2 = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 4, 3, padding=1)
        self.fc = nn.Linear(4, 3)
        self.act = act

    def get_classifier(self) -> nn.Linear:
        return self.fc

    def forward(self, x: Tensor) -> Tensor:
        maps = self.act(self.conv2(self.act(self.conv1(x))))
        return self.fc(maps.mean(dim=(2, 3)))


@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize("method", RECTIFIED)
def test_two_layers_by_hand(method: str, kind: str) -> None:
    net, x = TwoLayers(ACTIVATIONS[kind]), torch.randn(1, 3, 8, 8)
    first = net.conv1(x)
    second = net.conv2(first.relu())
    guided = method == "guided_backprop"
    signal = (net.fc.weight[2].view(1, 4, 1, 1) / 64).clamp(min=0) * (second > 0 if guided else torch.ones_like(second))
    signal = F.conv_transpose2d(signal, net.conv2.weight, padding=1).clamp(min=0) * (first > 0 if guided else 1)
    signal = F.conv_transpose2d(signal, net.conv1.weight, padding=1)
    explanation = explain(net, x, method, target=2)
    expected = signal.abs().amax(dim=1)[0].detach().numpy()
    assert explanation.map.shape == (8, 8) and not explanation.signed and explanation.layer is None
    np.testing.assert_allclose(explanation.map, expected, rtol=1e-4, atol=1e-5 * expected.max())


@heads(fast=["svdpade", "isice", "temporal", "gap"])  # the second and third call relu themselves
@pytest.mark.parametrize("method", RECTIFIED)
def test_the_gradient_of_the_head_is_its_own(method: str, name: str, small_net, image: Tensor) -> None:
    """The same by hooks on the ReLU modules, which leave everything else to autograd."""
    net = small_net(name)
    reference = copy.deepcopy(net)

    def keep_positive(module: nn.Module, grads: Any, signals: Any) -> Any:
        return ((grads[0] if method == "guided_backprop" else signals[0]).clamp(min=0),)

    for module in reference.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
            module.register_full_backward_hook(keep_positive)
    x = image.clone().requires_grad_(True)
    (signal,) = torch.autograd.grad(reference(x)[0, 2], x)
    expected = signal.abs().amax(dim=1)[0].numpy()
    map = explain(net, image, method, target=2, grad="training").map
    assert expected.max() > 0
    np.testing.assert_allclose(map, expected, rtol=1e-3, atol=1e-4 * expected.max())
    assert np.abs(map - explain(net, image, "gradient", target=2, grad="training").map).max() > 0.01 * map.max()


class ReadsItsInputAgain(nn.Module):
    """An in-place ReLU at the start of a branch also rectifies the shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = 2 * x
        return self.act(x) + x


def test_values_stay_those_of_the_network() -> None:
    x = torch.randn(2, 4, 6, 6, requires_grad=True)
    for guided in (True, False):
        for kind, act in ACTIVATIONS.items():
            with Rectifiers(guided) as rectifiers:
                values = act(9 * x)
            assert torch.equal(values, act(9 * x)) and rectifiers.on_maps == 1, kind
        with Rectifiers(guided):
            values = ReadsItsInputAgain()(x)
        assert torch.equal(values, ReadsItsInputAgain()(x))


@pytest.mark.fast_for("resnet18")
@pytest.mark.parametrize(
    ("backbone", "count"), [("resnet18", 17), ("resnet18_cifar", 17), ("vgg11", 8), ("seresnet18", 17)]
)
def test_every_relu_of_a_backbone_is_met(backbone: str, count: int) -> None:
    """Those on maps: squeeze-and-excitation has its own on vectors."""
    net = covpool_plugins.create_model(backbone, "svdpade", num_classes=3).eval()
    with Rectifiers(guided=True) as rectifiers, torch.enable_grad():
        net.forward_features(torch.randn(1, 3, 64, 64))
    assert rectifiers.on_maps == count


@pytest.mark.parametrize("backbone", ["test_vit", "test_efficientnet"])
def test_networks_without_relu_are_refused(backbone: str) -> None:
    """The ReLU of the reduction is none of the backbone's."""
    view = ModelView.of(covpool_plugins.create_model(backbone, "svdpade", num_classes=3).eval())
    for method in (*RECTIFIED, "excitation_backprop", "contrastive_excitation_backprop"):
        with pytest.raises(NotApplicableError, match=rf"^{method}: ") as caught:
            explain(view, torch.randn(1, 3, 160, 160), method)
        assert "\n" not in str(caught.value)


class PixelNet(nn.Module):
    """Class 1 looks for a chequered patch on the left, and only there."""

    pretrained_cfg: ClassVar = dict(input_size=(3, 32, 32))
    chequered: ClassVar[Tensor] = (torch.arange(10).view(-1, 1) + torch.arange(10)).remainder(2) * 2.0 - 1

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.fc = nn.Linear(3 * 32 * 32, num_classes)
        nn.init.zeros_(self.fc.bias)
        weight = torch.zeros(num_classes, 3, 32, 32)
        weight[1, :, 10:20, 2:12] = self.chequered / 30
        self.fc.weight.data = weight.flatten(1)
        self.sizes: list[torch.Size] = []

    def get_classifier(self) -> nn.Linear:
        return self.fc

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1))


def two_patches() -> Tensor:
    """The patch on the left, and its mirror image on the right."""
    x = torch.zeros(1, 3, 32, 32)
    x[..., 10:20, 2:12] = PixelNet.chequered
    return 2 * (x + x.flip(-1))


@pytest.mark.parametrize("method", ["rise", "extremal_perturbation"])
def test_what_lies_on_the_left_stays_on_the_left(method: str) -> None:
    options = {"rise": {"masks": 200}, "extremal_perturbation": {"iterations": 100}}[method]
    map = explain(PixelNet(), two_patches(), method, target=1, **options).map
    left, right = map[10:20, 2:12].mean(), map[10:20, 20:30].mean()
    assert map.shape == (32, 32) and left > map.mean() and left - right > 0.3 * np.ptp(map)
    if method == "extremal_perturbation":
        assert map.min() >= 0 and left > 0.9 and right < 0.7


def test_extremal_perturbations_cover_the_area() -> None:
    view, options = ModelView.of(PixelNet()), {"target": 1, "iterations": 60}
    *covered, both = (
        explain(view, two_patches(), "extremal_perturbation", areas=areas, **options).map.mean()
        for areas in ([0.1], [0.6], [0.1, 0.6])
    )
    assert covered[1] > covered[0] + 0.05
    assert both == pytest.approx(np.mean(covered), rel=1e-4)


def test_rise_is_the_mean_probability_over_masks() -> None:
    """On an input of ones the network sees the masks themselves, whatever the batches."""
    net, seen = PixelNet(), []
    net.fc.weight.data.normal_(std=0.05)
    view, x = ModelView.of(net), torch.ones(1, 3, 32, 32)
    view.model.register_forward_pre_hook(lambda _, args: seen.append(args[0][:, :1].clone()))
    map = explain(view, x, "rise", target=2, masks=20, batch_size=8).map
    masks = torch.cat(seen[-3:])
    assert [len(batch) for batch in seen[-3:]] == [8, 8, 4] and 0.3 < masks.mean() < 0.7
    probabilities = net(masks.expand(-1, 3, -1, -1)).softmax(dim=1)[:, 2].view(-1, 1, 1, 1)
    expected = ((probabilities * masks).sum(dim=0) / masks.sum(dim=0))[0]
    np.testing.assert_allclose(map, expected.detach().numpy(), rtol=1e-4)
    np.testing.assert_allclose(explain(view, x, "rise", 2, masks=20, batch_size=5).map, map, rtol=1e-5)


def test_extremal_perturbations_keep_one_class_of_the_output(monkeypatch) -> None:
    method = "extremal_perturbation"
    torchray = pytest.importorskip(f"torchray.attribution.{method}")
    original, outputs = getattr(torchray, method), []

    def watched(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        model.register_forward_hook(lambda *hooked: outputs.append(hooked[2].shape))
        return original(model, *args, **kwargs)

    monkeypatch.setattr(torchray, method, watched)
    explain(PixelNet(500), two_patches(), method, target=1, **CHEAP[method])
    assert outputs and max(shape[1] for shape in outputs) <= 2  # of 500


@pytest.mark.parametrize("size", [(65, 50), (40, 9)])
@pytest.mark.parametrize("method", ["rise", "extremal_perturbation"])
def test_inputs_of_any_size(method: str, size: tuple[int, int]) -> None:
    map = explain(TwoLayers(F.relu), torch.randn(1, 3, *size), method, target=0, **CHEAP[method])
    assert map.map.shape == size and np.isfinite(map.map).all()


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


@pytest.mark.parametrize("name", ["svdpade", "gap"])
def test_layer_cam_and_grad_cam_plus_plus_by_definition(name: str, small_net, image: Tensor) -> None:
    net = small_net(name)
    maps = net.stage1(net.stem(image)).detach().requires_grad_(True)
    (grad,) = torch.autograd.grad(net.head(net.stage2(maps * 1.0))[0, 2], maps)
    maps = maps.detach()
    alpha = grad**2 / (2 * grad**2 + maps.sum((2, 3), keepdim=True) * grad**3)
    weights = (alpha.nan_to_num(0) * grad.relu()).sum((2, 3), keepdim=True)
    expected = {"layer_cam": (grad.relu() * maps).sum(1)[0], "grad_cam_plus_plus": (weights * maps).sum(1).relu()[0]}
    for method, values in expected.items():
        explanation = explain(net, image, method, target=2, grad="training", layer="stage1")
        np.testing.assert_allclose(explanation.map, values, rtol=1e-3, atol=1e-4 * values.max())
        assert explain(net, image, method).layer == "stage2" and not explanation.signed


@pytest.mark.parametrize("baseline", ["mean", "black", "blur"])
def test_integrated_gradients_sum_to_the_difference_of_two_scores(baseline: str, small_net, image: Tensor) -> None:
    view = ModelView.of(small_net("gap"))
    black = -torch.tensor([0.5, 0.4, 0.3]) / torch.tensor([0.2, 0.25, 0.3])
    start = {
        "mean": torch.zeros_like(image),
        "black": black.view(3, 1, 1).expand_as(image),
        "blur": blur(image),
    }[baseline]
    explanation = explain(view, image, "integrated_gradients", 2, points=200, baseline=baseline)
    expected = (view.logits(image) - view.logits(start))[0, 2].item()
    assert explanation.completeness_target == pytest.approx(expected, rel=1e-5)
    assert explanation.completeness_gap < 0.01 and explanation.signed and explanation.map.shape == (32, 32)
    assert explanation.caption()[1].endswith(f"= {explanation.completeness_target:+.3g} of the score")  # not its bias


def test_smooth_grad_is_the_mean_over_noise(small_net, image: Tensor) -> None:
    net = small_net()
    plain = explain(net, image, "gradient", 1)
    still = explain(net, image, "smooth_grad", 1, samples=3, noise=0.0)
    np.testing.assert_allclose(still.map, plain.map, rtol=1e-4, atol=1e-5 * plain.map.max())
    noisy = [explain(net, image, "smooth_grad", 1, samples=20, seed=seed).map for seed in (0, 0, 1)]
    np.testing.assert_array_equal(noisy[0], noisy[1])
    assert np.abs(noisy[0] - noisy[2]).max() > 0 and np.abs(noisy[0] - plain.map).max() > 0
