"""WhiteningErrorHook in runs of MMEngine's runner."""

import json

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import HOOKS
from support.small_runs import BATCHES, EPOCHS, Losses, a_runner, different, load, tiny, warnings_of
from torch import nn

from covpool_plugins.errors import OptionError
from covpool_plugins.mmpretrain_plugin.whitening_error_hook import WhiteningErrorHook
from covpool_plugins.whitening import PCANorm2d, ZCANorm2d

LAYERS = {"first", "block.0"}


class Whitened(BaseModel):
    """Two whitening layers, the second of two groups."""

    def __init__(self, used=True):
        super().__init__()
        self.convolution, self.first = nn.Conv2d(3, 4, 3), ZCANorm2d(4)
        self.block = nn.Sequential(PCANorm2d(4, n_components=1, groups=2))
        self.head = nn.Linear(4, 2)
        self.used = used

    def forward(self, images, labels, mode="tensor"):
        maps = self.convolution(images)
        if self.used:
            maps = self.block(self.first(maps).relu())
        logits = self.head(maps.relu().mean((2, 3)))
        if mode == "loss":
            return dict(loss=nn.functional.cross_entropy(logits, labels))
        return [dict(logits=row) for row in logits]


def whitened(**options):
    torch.manual_seed(0)
    return Whitened(**options)


def scalars(runner):
    """Logged values by the name of the layer."""
    history = runner.message_hub.log_scalars
    keys = [key for key in history if key.startswith("train/whitening/")]
    return {key.removeprefix("train/whitening/").removesuffix("/error"): list(history[key].data[0]) for key in keys}


class Covariances(Hook):
    """The distance of the covariances of the outputs from the identity, of the layers without weights."""

    def __init__(self):
        self.errors = {name: [] for name in LAYERS}

    def before_run(self, runner):
        for name in LAYERS:
            layer = runner.model.get_submodule(name)
            layer.weight = layer.bias = None
            layer.register_forward_hook(lambda layer, inputs, output, name=name: self.keep(name, layer, output))

    def keep(self, name, layer, output):
        if layer.training:
            X = output.detach().transpose(0, 1).reshape(layer.groups, 4 // layer.groups, -1).double()
            eye = torch.eye(X.shape[1]).double()
            covariances = [x @ x.T / X.shape[-1] for x in X - X.mean(-1, keepdim=True)]
            distances = [float((one - eye).norm() / eye.norm()) for one in covariances]
            self.errors[name].append(sum(distances) / len(distances))


def test_errors_are_those_of_the_iteration(tmp_path):
    expected = Covariances()
    runner = a_runner(tmp_path, dict(type="WhiteningErrorHook", interval=1), expected, model=whitened())
    runner.train()
    found = scalars(runner)
    assert set(found) == LAYERS
    for name, values in found.items():
        assert len(values) == EPOCHS * BATCHES
        assert values == pytest.approx(expected.errors[name], rel=1e-3, abs=1e-5)
    assert max(found["first"]) < 0.01 < min(found["block.0"])  # PCA keeps half of the dimensions


def test_errors_reach_the_log_files(tmp_path):
    a_runner(tmp_path, dict(type="WhiteningErrorHook", interval=1), model=whitened()).train()
    (log,) = tmp_path.glob("*/vis_data/scalars.json")
    trained = [line for line in map(json.loads, log.read_text().splitlines()) if "loss" in line]
    assert len(trained) == EPOCHS * BATCHES
    assert all(line["whitening/first/error"] >= 0 for line in trained)


@pytest.mark.parametrize("options, times", [(dict(interval=2), 3), (dict(interval=2, by_epoch=True), 1)])
def test_errors_are_as_frequent_as_asked(options, times, tmp_path):
    runner = a_runner(tmp_path, dict(type="WhiteningErrorHook", **options), model=whitened())
    runner.train()
    assert {name: len(values) for name, values in scalars(runner).items()} == dict.fromkeys(LAYERS, times)
    (hook,) = [hook for hook in runner.hooks if isinstance(hook, WhiteningErrorHook)]
    assert (hook._handles, hook._measured) == ({}, {})


def test_errors_do_not_disturb_training(tmp_path):
    runs = {}
    for name, hooks in {"with": [dict(type="WhiteningErrorHook", interval=1)], "without": []}.items():
        losses = Losses()
        a_runner(tmp_path / name, losses, *hooks, model=whitened()).train()
        runs[name] = losses.values, load(tmp_path / name / f"epoch_{EPOCHS}.pth")["state_dict"]
    assert runs["with"][0] == runs["without"][0]
    assert different(runs["with"][1], runs["without"][1]) == []


def test_layers_that_are_not_called_are_said(tmp_path):
    runner = a_runner(tmp_path, dict(type="WhiteningErrorHook", interval=6), model=whitened(used=False))
    messages = warnings_of(runner)
    runner.train()
    assert sum("layers not seen in the model (compiled or unused?): first, block.0" in m for m in messages) == 1


@pytest.mark.parametrize("options", [dict(interval=0), dict(by_epoch=1)])
def test_bad_options(options):
    with pytest.raises(OptionError, match=f"WhiteningErrorHook: {next(iter(options))} must be"):
        HOOKS.build(dict(type="WhiteningErrorHook", **options))


def test_a_model_without_whitening(tmp_path):
    with pytest.raises(OptionError, match="WhiteningErrorHook: the model has no layer"):
        a_runner(tmp_path, dict(type="WhiteningErrorHook"), model=tiny()).train()
