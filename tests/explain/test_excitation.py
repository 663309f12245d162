"""Excitation backpropagation: the shares by their definition, and nothing lost on the way."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from support.explanations import heads
from torch import Tensor, nn

import covpool_plugins
from covpool_plugins.errors import NotApplicableError
from covpool_plugins.explain import ModelView, explain
from covpool_plugins.explain.excitation import ExcitationRules

PLAIN, CONTRASTIVE = "excitation_backprop", "contrastive_excitation_backprop"


def with_statistics(net: nn.Module, shift: float = 0.1) -> nn.Module:
    """Batch norms of both signs that scale and shift, as after training."""
    generator = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(-0.4, 1.2, generator=generator)
            module.bias.data.normal_(0, shift, generator=generator)
            module.running_mean.normal_(0, shift, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
    return net.eval()


def shares(function: Callable[[Tensor], Tensor], active: Tensor, excitation: Tensor) -> Tensor:
    """p_j = Σ_i a_j w_ij⁺ / (Σ_k w_ik⁺ a_k) p_i with the whole matrix of an affine function, from its Jacobian."""
    weight = torch.autograd.functional.jacobian(function, active).reshape(excitation.numel(), active.numel())
    parts = weight.clamp(min=0) * active.flatten()
    sums = parts.sum(dim=1, keepdim=True)
    return torch.where(sums > 0, parts / sums, 0).T @ excitation.flatten()


def by_definition(net: nn.Module, image: Tensor, target: int) -> list[Tensor]:
    """Excitations (1, C, H, W) behind stage2 and behind stage1 of the small network."""
    inputs = [net.stage1(net.stem(image))]
    for block in net.stage2:
        inputs.append(block(inputs[-1]))
    last = inputs[-1].detach().requires_grad_(True)
    (grad,) = torch.autograd.grad(net.head(last)[0, target], last)
    excitations = [(last.detach() * grad).clamp(min=0)]
    excitations[0] /= excitations[0].sum()
    excitation = excitations[0]
    for block, active in zip(reversed(net.stage2), reversed(inputs[:-1]), strict=True):
        branch = block.norm(block.conv(active)).clamp(min=0)
        total = branch + active
        to_branch = torch.where(total > 0, branch / total, 0) * excitation
        through = shares(lambda a, block=block: block.norm(block.conv(a)), active, to_branch).view_as(active)
        excitation = through + torch.where(total > 0, active / total, 0) * excitation
    return [*excitations, excitation]


@pytest.mark.parametrize("name", ["svdpade", "isqrt", "gap"])
def test_two_blocks_by_definition(name: str, small_net, image: Tensor) -> None:
    net = with_statistics(small_net(name)).requires_grad_(False).double()
    at_last, at_first = by_definition(net, image.double(), target=2)
    for layer, expected in (("stage2", at_last), ("stage1", at_first)):
        explanation = explain(net, image, PLAIN, target=2, grad="training", layer=layer)
        assert explanation.layer == layer and not explanation.signed
        np.testing.assert_allclose(explanation.map, expected.sum(dim=1)[0].numpy(), rtol=1e-6, atol=1e-12)


@heads(fast=["svdpade", "cbp", "gap"])
def test_mass_is_one_whatever_the_head(name: str, small_net, image: Tensor) -> None:
    """The features are signed behind the head's input, so it starts there."""
    view = ModelView.of(with_statistics(small_net(name)))
    for layer in ("stem", "stage1", "stage1.0", "stage2.0", "stage2"):
        explanation = explain(view, image, PLAIN, target=1, layer=layer)
        assert explanation.map.min() >= 0 and explanation.map.sum() == pytest.approx(1, abs=1e-5), layer
        assert float(explanation.extras["mass"]) == pytest.approx(explanation.map.sum())
    assert explain(view, image, PLAIN).layer == "stage2"  # all maps of the small network have one size
    with pytest.raises(NotApplicableError, match=r"batch norm of signed values .* behind a ReLU"):
        explain(view, image, PLAIN, layer="stage1.0.conv")


# By backbone the default layer, and layers that no path goes round.
LAYERS = {
    "resnet18": "layer3: act1 maxpool layer2.0 layer3 layer4",
    "resnet18_cifar": "layer3: act1 layer2 layer3 layer4",
    "resnet50": "layer3: act1 layer1 layer2 layer3 layer4.0 layer4",
    "resnet50d": "layer3: act1 layer2 layer3 layer4",
    "seresnet18": "layer3: act1 layer2 layer3 layer4",
    "regnety_002": "s3: stem s1 s2 s3 s4",
    "vgg11": "features.19: features.2 features.9 features.15 features",
    "vgg13_bn": "features.33: features.6 features.20 features.33 features",
    "alexnet": "layer2: layer1 layer2.pool layer3 layer4 layer5",
    "inception_v3": "Mixed_6e: Pool2 Mixed_5d Mixed_6a Mixed_6e Mixed_7a Mixed_7c",
    # Its batch norms are folded into convolutions that lie behind average pooling and concatenations.
    "densenet121": "features.transition3.norm: features.norm5 features.transition3.norm features.transition2.norm "
    "features.pool0",
}


@pytest.mark.fast_for("resnet18")
@pytest.mark.parametrize("backbone", LAYERS)
def test_mass_is_one_at_every_layer(backbone: str) -> None:
    # With few inputs, as in grouped convolutions, none may excite a neuron: then it is active by its shift alone.
    net = covpool_plugins.create_model(backbone, "svdpade", num_classes=4)
    net = with_statistics(net, shift=0.0 if backbone in ("regnety_002", "densenet121") else 0.1)
    if backbone == "densenet121":  # with a negative factor, pooled activations excite nothing
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.data.abs_()
    view, side = ModelView.of(net), 128 if backbone in ("inception_v3", "densenet121") else 64
    x, (default, _, layers) = torch.randn(1, 3, side, side), LAYERS[backbone].partition(": ")
    for layer in layers.split():
        explanation = explain(view, x, PLAIN, target=1, layer=layer)
        atol = 1e-4 if backbone == "densenet121" else 1e-5
        assert explanation.map.min() >= 0 and explanation.map.sum() == pytest.approx(1, abs=atol), layer
    assert explain(view, x, PLAIN, target=1).layer == default
    contrast = explain(view, x, CONTRASTIVE, target=1)
    assert contrast.signed and contrast.layer == default
    assert abs(contrast.map.sum()) < 1e-5 and np.abs(contrast.map).sum() > 1e-3


def test_one_batch_norm_behind_a_concatenation() -> None:
    """By the definition, with the whole linear function from the activations on."""
    torch.manual_seed(0)
    first, second, norm = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Conv2d(3, 2, 1), nn.BatchNorm2d(6)
    with_statistics(norm)
    average = nn.AvgPool2d(2)

    def affine(active: Tensor) -> Tensor:
        return norm(torch.cat([first(active), average(second(active))], dim=1))

    active = torch.rand(1, 3, 6, 6).requires_grad_(True)
    excitation = affine(active).detach().clamp(min=0)
    with ExcitationRules():
        output = affine(active)
    torch.testing.assert_close(output, affine(active))
    (ratios,) = torch.autograd.grad(output, active, (excitation > 0).float())
    expected = shares(affine, active.detach(), excitation).view_as(active)
    torch.testing.assert_close(active * ratios, expected, rtol=1e-4, atol=1e-6)


def in_place_sum(x: Tensor, y: Tensor) -> Tensor:
    x = x * 1.0
    x.add_(y)
    return x


def share(x: float, y: float) -> float:
    return x / (x + y) if y > 0 else 1


def everything(x: float, y: float) -> float:
    return 1


@pytest.mark.parametrize(
    ("function", "left"),
    [
        (lambda x, y: x + y, share),
        (in_place_sum, share),
        (torch.add, share),
        (lambda x, y: x * y.mean(dim=(2, 3), keepdim=True).sigmoid(), everything),
        (lambda x, y: nn.functional.relu6(5 * x), everything),
        (lambda x, y: torch.cat([x, y.clamp(min=0)], dim=1)[:, :1], everything),
    ],
    ids=["sum", "sum in place", "torch.add", "gate", "relu6", "concatenation"],
)
def test_shares_of_two_maps(function: Callable, left: Callable) -> None:
    x = torch.tensor([2.0, 0.5, 1.0]).view(1, 1, 1, 3).requires_grad_(True)
    y = torch.tensor([1.0, -0.2, 3.0]).view(1, 1, 1, 3)
    with ExcitationRules():
        output = function(x, y.requires_grad_(True))
    torch.testing.assert_close(output, function(x, y))
    (ratios,) = torch.autograd.grad(output, x, 1 / output.detach())
    expected = [left(a, b) for a, b in zip(x.flatten().tolist(), y.flatten().tolist(), strict=True)]
    torch.testing.assert_close((x * ratios).flatten(), torch.tensor(expected, dtype=torch.float32))


def test_what_is_active_by_its_bias_alone_ends_its_excitation() -> None:
    """The second neuron has no excitatory input, the first has one besides its bias."""
    conv = nn.Conv2d(2, 2, 1)
    conv.weight.data = torch.tensor([[0.5, -1.0], [-0.1, -0.2]]).view(2, 2, 1, 1)
    conv.bias.data = torch.tensor([3.0, 4.0])
    active = torch.tensor([2.0, 1.0]).view(1, 2, 1, 1).requires_grad_(True)
    with ExcitationRules():
        output = conv(active).relu()
    (ratios,) = torch.autograd.grad(output, active, torch.tensor([0.25, 0.75]).view_as(output) / output.detach())
    torch.testing.assert_close((active * ratios).flatten(), torch.tensor([0.25, 0.0]))


def test_the_contrast_is_a_difference(small_net, image: Tensor) -> None:
    """The rules are linear in the excitation. Of two classes all others are the other; one class has no other."""
    net = with_statistics(small_net("svdpade"))
    view, options = ModelView.of(net), dict(layer="stage1")
    for versus in (0, 4):
        for_it, against = (explain(view, image, PLAIN, target, **options).map for target in (2, versus))
        contrast = explain(view, image, CONTRASTIVE, 2, versus=versus, **options).map
        np.testing.assert_allclose(contrast, for_it - against, rtol=0, atol=1e-7)
        assert np.abs(contrast).max() > 1e-5
    swapped = explain(view, image, CONTRASTIVE, versus, versus=2, **options).map
    np.testing.assert_allclose(swapped, -contrast, atol=1e-7)
    net.head.fc = nn.Linear(net.head.fc.in_features, 2)
    contrast, expected = (explain(net, image, CONTRASTIVE, 0, **options, **o).map for o in ({}, {"versus": 1}))
    np.testing.assert_allclose(contrast, expected, atol=1e-8)
    net.head.fc = nn.Linear(net.head.fc.in_features, 1)
    with pytest.raises(NotApplicableError, match="one class"):
        explain(net, image, CONTRASTIVE)


class Activation(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (nn.functional.gelu, "gelu"),
        (lambda x: nn.functional.leaky_relu(x, 0.1), "leaky_relu"),
        (lambda x: x + 1, "a sum with a constant"),
        (lambda x: x * x, "the product of two maps"),
        (lambda x: nn.functional.group_norm(x, 3), "group_norm"),
    ],
)
def test_functions_without_a_rule_are_named(function: Callable, name: str, small_net, image: Tensor) -> None:
    net = small_net()
    net.stage2[0].act = Activation(function)
    assert explain(net, image, PLAIN, layer="stage2").map.sum() == pytest.approx(1, abs=1e-5)
    with pytest.raises(NotApplicableError, match=f"^{PLAIN}: there is no rule for {name}.* behind the layer"):
        explain(net, image, PLAIN, layer="stage1")
    net.stage2[1].act = Activation(nn.functional.gelu)
    with pytest.raises(NotApplicableError, match="negative values"):
        explain(net, image, PLAIN, layer="stage1")
