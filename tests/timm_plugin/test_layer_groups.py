"""Layer decay in two groups: the classifier's own learning rate, and a frozen backbone."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.models import group_parameters
from timm.optim import create_optimizer_v2

from covpool_plugins.timm_plugin.subclass import apart_from_rest

RATE, WEIGHT_DECAY = 6e-2, 1e-4


@pytest.fixture
def model(monkeypatch):
    network = timm.create_model("resnet10t", num_classes=3, channels=(4, 4, 4, 8), stem_width=4)
    monkeypatch.setattr(network, "group_matcher", lambda coarse=False: apart_from_rest(r"fc\."))
    return network


def settings(network, key, **options):
    """Name of each parameter that is optimised -> a setting of its group; and the optimizer."""
    optimizer = create_optimizer_v2(network, opt="momentum", lr=RATE, weight_decay=WEIGHT_DECAY, **options)
    names = {id(p): n for n, p in network.named_parameters()}
    return {names[id(p)]: group[key] for group in optimizer.param_groups for p in group["params"]}, optimizer


def test_only_the_classifier_itself_is_the_last_group():
    """Neither what starts with the same letters, nor the same name deeper inside, nor a dot that is any letter."""
    names = ["head.fc.weight", "head.fc.bias", "head.fc_norm.weight", "headxfc.weight", "blocks.0.head.fc.weight"]
    module = torch.nn.Module()
    module.named_parameters = lambda: [(name, None) for name in names]  # type: ignore[method-assign]
    assert group_parameters(module, apart_from_rest(r"head\.fc\.")) == {0: names[2:], 1: names[:2]}


def test_scales_and_weight_decay(model, caplog):
    scales, _ = settings(model, "lr_scale", layer_decay=1 / 20)
    assert scales == {name: 1 if name.startswith("fc.") else 1 / 20 for name, _ in model.named_parameters()}
    decays, _ = settings(model, "weight_decay", layer_decay=1 / 20)
    assert decays == settings(model, "weight_decay")[0]
    assert {decays["bn1.weight"], decays["bn1.bias"], decays["fc.bias"]} == {0.0}
    assert {decays["layer1.0.conv1.weight"], decays["fc.weight"]} == {WEIGHT_DECAY}
    model.reset_classifier(0)
    assert set(settings(model, "lr_scale", layer_decay=1 / 20)[0].values()) == {1}
    assert "no effect" in caplog.text


@pytest.mark.parametrize("threshold, frozen", [(0.01, True), (1e-4, False)])
def test_frozen_backbone(model, threshold, frozen):
    before = {name: value.clone() for name, value in model.named_parameters()}
    rates, optimizer = settings(model, "lr", layer_decay=1e-3, layer_decay_no_opt_scale=threshold)
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    assert (trained == {"fc.weight", "fc.bias"}) is frozen and set(rates) == trained
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    optimizer.step()
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert {"fc.weight", "fc.bias"} <= moved <= trained and (moved == {"fc.weight", "fc.bias"}) is frozen
