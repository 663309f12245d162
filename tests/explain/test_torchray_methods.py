"""Deconvolution, guided backpropagation, linear approximation, RISE and extremal perturbations."""

from __future__ import annotations

import copy
import importlib
import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import covpool_plugins
from covpool_plugins.errors import NotApplicableError, OptionError, UnknownNameError
from covpool_plugins.explain import ModelView, explain, list_methods
from covpool_plugins.explain.deconvolution import Rectifiers
from covpool_plugins.explain.perturbation import log_odds
from covpool_plugins.pooling import create_pool, list_pools

RECTIFIED = ["deconvnet", "guided_backprop"]
QUICK = {
    "deconvnet": {},
    "guided_backprop": {},
    "linear_approx": {},
    "excitation_backprop": {},
    "contrastive_excitation_backprop": {},
    "rise": {"masks": 8},
    "extremal_perturbation": {"iterations": 3},
}


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
    found = explain(net, x, method, target=2)
    expected = signal.abs().amax(dim=1)[0].detach().numpy()
    assert found.map.shape == (8, 8) and not found.signed and found.layer is None
    np.testing.assert_allclose(found.map, expected, rtol=1e-4, atol=1e-5 * expected.max())


@pytest.mark.parametrize("name", [name for name in list_pools() if name != "temporal"])  # which calls relu by itself
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
    found = explain(net, image, method, target=2, grad="training").map
    assert expected.max() > 0
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * expected.max())
    assert np.abs(found - explain(net, image, "gradient", target=2, grad="training").map).max() > 0.01 * found.max()


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
    for kind, act in ACTIVATIONS.items():
        with Rectifiers(F.relu) as rectifiers:
            found = act(9 * x)
        assert torch.equal(found, act(9 * x)) and rectifiers.on_maps == 1, kind
    with Rectifiers(F.relu):
        found = ReadsItsInputAgain()(x)
    assert torch.equal(found, ReadsItsInputAgain()(x))


@pytest.mark.parametrize(
    ("backbone", "count"), [("resnet18", 17), ("resnet18_cifar", 17), ("vgg11", 8), ("seresnet18", 17)]
)
def test_every_relu_of_a_backbone_is_met(backbone: str, count: int) -> None:
    """Those on maps: squeeze-and-excitation has its own on vectors."""
    net = covpool_plugins.create_model(backbone, "svdpade", num_classes=3).eval()
    with Rectifiers(F.relu) as rectifiers, torch.enable_grad():
        net.forward_features(torch.randn(1, 3, 64, 64))
    assert rectifiers.on_maps == count


@pytest.mark.parametrize("backbone", ["test_vit", "test_efficientnet"])
@pytest.mark.parametrize("method", [*RECTIFIED, "excitation_backprop", "contrastive_excitation_backprop"])
def test_networks_without_relu_are_refused(method: str, backbone: str) -> None:
    """The ReLU of the reduction is none of the backbone's."""
    view = ModelView.of(covpool_plugins.create_model(backbone, "svdpade", num_classes=3).eval())
    with pytest.raises(NotApplicableError, match=rf"^{method} ") as caught:
        explain(view, torch.randn(1, 3, 160, 160), method)
    assert "\n" not in str(caught.value)


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
        found = explain(net, image, "linear_approx", target=2, grad="training", layer=layer)
        assert found.signed and found.layer == layer and np.abs(expected).max() > 0
        np.testing.assert_allclose(found.map, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    assert explain(net, image, "linear_approx").layer == "stage2"
    with pytest.raises(UnknownNameError, match="unknown layer 'stage3'"):
        explain(net, image, "linear_approx", layer="stage3")


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
    found = explain(PixelNet(), two_patches(), method, target=1, **options).map
    left, right = found[10:20, 2:12].mean(), found[10:20, 20:30].mean()
    assert found.shape == (32, 32) and left > found.mean() and left - right > 0.3 * np.ptp(found)
    if method == "extremal_perturbation":
        assert found.min() >= 0 and left > 0.9 and right < 0.7


def test_extremal_perturbations_cover_the_area() -> None:
    view = ModelView.of(PixelNet())
    covered = [
        explain(view, two_patches(), "extremal_perturbation", target=1, iterations=100, areas=[area]).map.mean()
        for area in (0.1, 0.6)
    ]
    both = explain(view, two_patches(), "extremal_perturbation", target=1, iterations=100, areas=[0.1, 0.6]).map.mean()
    assert covered[1] > covered[0] + 0.05
    assert both == pytest.approx(np.mean(covered), rel=1e-4)


def test_rise_is_the_mean_probability_over_masks() -> None:
    """On an input of ones the network sees the masks themselves."""
    net, seen = PixelNet(), []
    net.fc.weight.data.normal_(std=0.05)
    view = ModelView.of(net)
    view.model.register_forward_pre_hook(lambda _, args: seen.append(args[0][:, :1].clone()))
    explain(view, torch.ones(1, 3, 32, 32), "rise", target=2, masks=20, batch_size=8)
    masks = torch.cat([batch for batch in seen[-3:]])
    assert [len(batch) for batch in seen[-3:]] == [8, 8, 4] and 0.3 < masks.mean() < 0.7
    probabilities = net(masks.expand(-1, 3, -1, -1)).softmax(dim=1)[:, 2].view(-1, 1, 1, 1)
    expected = ((probabilities * masks).sum(dim=0) / masks.sum(dim=0))[0]
    found = explain(view, torch.ones(1, 3, 32, 32), "rise", target=2, masks=20, batch_size=8).map
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-4)


@pytest.mark.parametrize("method", ["rise", "extremal_perturbation"])
def test_one_class_is_kept_of_the_output(method: str, monkeypatch) -> None:
    torchray = pytest.importorskip(f"torchray.attribution.{method}")
    original, outputs = getattr(torchray, method), []

    def watched(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        model.register_forward_hook(lambda *hooked: outputs.append(hooked[2].shape))
        return original(model, *args, **kwargs)

    monkeypatch.setattr(torchray, method, watched)
    explain(PixelNet(500), two_patches(), method, target=1, **QUICK[method])
    assert outputs and max(shape[1] for shape in outputs) <= 2  # of 500


def test_log_odds() -> None:
    logits = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(log_odds(logits, 2).sigmoid(), logits.softmax(dim=1)[:, 2])
    assert (log_odds(logits[:, :1], 0).sigmoid() == 1).all()


def test_seeds() -> None:
    """The same map for the same seed, and the caller's random numbers go on as if nothing had been drawn."""
    view, x = ModelView.of(PixelNet()), two_patches()
    torch.manual_seed(7)
    before = torch.get_rng_state()
    maps = [explain(view, x, "rise", target=1, masks=16, seed=seed).map for seed in (0, 0, 1)]
    extremal = [explain(view, x, "extremal_perturbation", target=1, iterations=5).map for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), before)
    other_batches = explain(view, x, "rise", target=1, masks=16, batch_size=5).map
    np.testing.assert_allclose(other_batches, maps[0], rtol=1e-5)
    np.testing.assert_array_equal(maps[0], maps[1])
    np.testing.assert_array_equal(extremal[0], extremal[1])
    assert np.abs(maps[0] - maps[2]).max() > 0


@pytest.mark.parametrize("size", [(65, 50), (33, 96), (40, 9)])
@pytest.mark.parametrize("method", ["rise", "extremal_perturbation"])
def test_inputs_of_any_size(method: str, size: tuple[int, int]) -> None:
    found = explain(TwoLayers(F.relu), torch.randn(1, 3, *size), method, target=0, **QUICK[method])
    assert found.map.shape == size and np.isfinite(found.map).all()


@pytest.mark.parametrize(
    ("method", "option", "value"),
    [
        ("rise", "masks", 0),
        ("rise", "masks", 1.5),
        ("rise", "seed", -1),
        ("rise", "batch_size", 0),
        ("rise", "batch_size", 65),
        ("extremal_perturbation", "iterations", 0),
        ("extremal_perturbation", "areas", ()),
        ("extremal_perturbation", "areas", 0.1),
        ("extremal_perturbation", "areas", (0.1, 1.0)),
        ("extremal_perturbation", "areas", ("a tenth",)),
        ("contrastive_excitation_backprop", "versus", 5),
        ("contrastive_excitation_backprop", "versus", -1),
        ("contrastive_excitation_backprop", "versus", 1),
        ("contrastive_excitation_backprop", "versus", "cat"),
    ],
)
def test_options_out_of_range_are_named(method: str, option: str, value: Any, small_net, image: Tensor) -> None:
    with pytest.raises(OptionError, match=rf"^({method}: )?{option} .*got "):
        explain(small_net(), image, method, target=1, **{option: value})


@pytest.mark.parametrize("method", QUICK)
def test_no_warnings_and_no_need_for_gradients_outside(method: str, small_net, image: Tensor) -> None:
    net = small_net()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        found = explain(net, image, method, target=1, **QUICK[method])
    assert np.isfinite(found.map).all() and np.abs(found.map).max() > 0


def state(model: nn.Module) -> list[Any]:
    """What a method could leave behind."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    modules = [
        (id(m), m.training, getattr(m, "inplace", None), *(len(getattr(m, hook)) for hook in hooks))
        for m in model.modules()
    ]
    parameters = [(id(p), p.requires_grad, p.grad is None, p._version) for p in model.parameters()]
    extremal = importlib.import_module("torchray.attribution.extremal_perturbation")
    functions = [torch.relu, torch.relu_, F.relu, F.conv2d, torch.conv2d, extremal.Perturbation]
    return [modules, parameters, functions, torch.get_rng_state().tolist()]


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("broken in the middle")


@pytest.mark.parametrize("broken", [False, True], ids=["whole", "broken"])
@pytest.mark.parametrize("method", [*QUICK, "gradient", "grad_cam"])
def test_nothing_is_left_behind(method: str, broken: bool, small_net, image: Tensor, monkeypatch) -> None:
    view = ModelView.of(small_net("svdpade"))
    before, options = state(view.model), {"target": 1, **QUICK.get(method, {})}
    if not broken:
        explain(view, image, method, **options)
    else:
        view.forward_pass(image)
        head = view.model.head
        fc, head.dropout = head.dropout, Broken()
        with pytest.raises(RuntimeError, match="broken in the middle") as caught:
            explain(view, image, method, **options)
        head.dropout = fc
        assert caught.traceback  # which holds the frames of TorchRay, and what is in them
    assert state(view.model) == before


def test_the_table_holds_all() -> None:
    assert QUICK.keys() <= set(list_methods())


@pytest.mark.parametrize("method", QUICK)
def test_another_class_has_another_map(method: str, small_net, image: Tensor) -> None:
    view = ModelView.of(small_net(create_pool("svdpade", 12, centered=False)))
    options = {"iterations": 40} if method == "extremal_perturbation" else QUICK[method]
    first, second = (explain(view, image, method, target=target, **options).map for target in (0, 3))
    assert np.abs(first - second).max() > 1e-3 * np.abs(first).max()
