"""Layer decay in two groups: the classifier's own learning rate, and a frozen backbone."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.models import group_parameters
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2

from covpool_plugins.timm_plugin.layer_groups import head_and_rest

RATE, FACTOR, WEIGHT_DECAY = 3e-3, 20, 1e-4


@pytest.fixture
def model(monkeypatch):
    network = timm.create_model("resnet18", num_classes=3)
    monkeypatch.setattr(network, "group_matcher", lambda coarse=False: head_and_rest("fc"))
    return network


def optimizer_of(network, **options):
    return create_optimizer_v2(network, opt="momentum", lr=FACTOR * RATE, weight_decay=WEIGHT_DECAY, **options)


def settings(network, optimizer, key):
    """Name of each parameter that is optimised -> a setting of its group."""
    names = {id(p): n for n, p in network.named_parameters()}
    return {names[id(p)]: group[key] for group in optimizer.param_groups for p in group["params"]}


def test_only_the_classifier_itself_is_the_last_group():
    """Neither what starts with the same letters, nor the same name deeper inside, nor a dot that is any letter."""
    names = ["head.fc.weight", "head.fc.bias", "head.fc_norm.weight", "headxfc.weight", "blocks.0.head.fc.weight"]
    module = torch.nn.Module()
    module.named_parameters = lambda: [(name, None) for name in names]  # type: ignore[method-assign]
    assert group_parameters(module, head_and_rest("head.fc")) == {0: names[2:], 1: names[:2]}


def test_learning_rate_of_every_parameter(model):
    optimizer = optimizer_of(model, layer_decay=1 / FACTOR)
    create_scheduler_v2(optimizer, sched="step", num_epochs=10, decay_epochs=10)  # it applies the scales
    rates, scales = settings(model, optimizer, "lr"), settings(model, optimizer, "lr_scale")
    assert set(rates) == {name for name, _ in model.named_parameters()}
    for name, rate in rates.items():
        of_classifier = name.startswith("fc.")
        assert scales[name] == (1 if of_classifier else 1 / FACTOR)
        assert rate == pytest.approx(FACTOR * RATE if of_classifier else RATE, rel=1e-12)


def test_weight_decay_is_that_of_timm_without_groups(model):
    grouped = settings(model, optimizer_of(model, layer_decay=1 / FACTOR), "weight_decay")
    plain = settings(model, optimizer_of(model), "weight_decay")
    assert grouped == plain
    assert {grouped["bn1.weight"], grouped["bn1.bias"], grouped["fc.bias"]} == {0.0}
    assert {grouped["conv1.weight"], grouped["fc.weight"]} == {WEIGHT_DECAY}


@pytest.mark.parametrize("threshold, frozen", [(0.01, True), (1e-4, False)])
def test_frozen_backbone(model, threshold, frozen):
    before = {name: value.clone() for name, value in model.named_parameters()}
    optimizer = optimizer_of(model, layer_decay=1e-3, layer_decay_no_opt_scale=threshold)
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    assert (trained == {"fc.weight", "fc.bias"}) is frozen
    assert set(settings(model, optimizer, "lr")) == trained
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    optimizer.step()
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert {"fc.weight", "fc.bias"} <= moved <= trained and ("conv1.weight" in moved) is not frozen


def test_without_a_classifier_nothing_is_scaled(model, caplog):
    model.reset_classifier(0)
    optimizer = optimizer_of(model, layer_decay=1 / FACTOR)
    assert set(settings(model, optimizer, "lr_scale").values()) == {1}
    assert "no effect" in caplog.text
