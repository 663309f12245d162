"""The recipes for timm's train.py: options that it has, models that exist, and the published rates in every epoch."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import timm
import yaml
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from torch import nn

import covpool_plugins  # noqa: F401  registers the models

FOLDER = Path(__file__).parents[2] / "configs" / "timm"
OPTIONS = (Path(__file__).parent / "train_options.txt").read_text().split("\n")[1:-1]
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))  # each has a row in PUBLISHED


class Published(NamedTuple):
    """A row of the released scripts' recipes; the rate is divided by 10 after each of ``steps`` epochs."""

    classes: int
    size: int
    batch: int
    rate: float
    epochs: int
    steps: tuple[int, ...]
    weight_decay: float
    factor: int = 1
    clip: float | None = 5.0
    frozen: bool = False


PUBLISHED = {
    "imagenet_resnet50_svdpade": Published(1000, 224, 256, 0.0794, 60, (30, 45), 1e-4),
    "imagenet_resnet50_isqrt": Published(1000, 224, 160, 0.1, 65, (30, 45, 60), 1e-4, clip=None),
    "imagenet_alexnet_svdpade": Published(1000, 224, 128, 0.0794, 30, (10, 20), 5e-4),
    "inaturalist_resnet50_svdpade": Published(8142, 224, 256, 0.0794, 60, (30, 45), 1e-4),  # ours
    "cub_resnet50_seb": Published(200, 448, 10, 3e-3, 200, (50, 100), 1e-4, 20),
    "cars_resnet50_seb": Published(196, 448, 10, 3e-3, 200, (50, 100), 1e-4, 10),
    "aircraft_resnet50_seb": Published(100, 448, 8, 3e-3, 50, (21, 40), 1e-3, 5),
    "cub_resnet50_isqrt": Published(200, 448, 10, 1.2e-3, 100, (), 1e-4, 5, None),
    "cub_vgg16_bn_isqrt": Published(200, 448, 10, 3e-3, 40, (20,), 1e-4, 20, None),
    "cub_vgg16_bcnn_stage1": Published(200, 448, 40, 1e-3, 100, (), 5e-4, 1000, None, True),
    "cub_vgg16_bcnn_stage2": Published(200, 448, 10, 1e-3, 200, (), 5e-4, 1, None),
}


def recipe(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


@pytest.fixture(params=NAMES, scope="module")
def built(request) -> tuple[str, nn.Module]:
    """The name of a recipe and its model, without data."""
    options = recipe(request.param)
    arguments = {"num_classes": options["num_classes"], **options.get("model_kwargs", {})}
    return request.param, timm.create_model(options["model"], device="meta", **arguments)


@pytest.mark.parametrize("name", NAMES)
def test_options_are_those_of_train_py_with_the_published_values(name):
    """No number is one that YAML takes for text, as it does ``1e-4``; the header and the README name the recipe."""
    options, row = recipe(name), PUBLISHED[name]
    assert set(options) <= set(OPTIONS)
    for value in options.values():
        for item in value if isinstance(value, list) else value.values() if isinstance(value, dict) else [value]:
            assert not (isinstance(item, str) and re.match(r"[-+.\d]", item)), item
    assert options["device_modules"] == ["covpool_plugins"] and options["experiment"] == name
    assert options["num_classes"] == row.classes and options["input_size"] == [3, row.size, row.size]
    assert options["batch_size"] == row.batch and options["weight_decay"] == row.weight_decay
    assert options.get("clip_grad") == row.clip
    assert (options["opt"], options["momentum"]) == ("momentum", 0.9)  # timm's "sgd" is Nesterov's
    lines = (FOLDER / f"{name}.yaml").read_text().splitlines()
    header = " ".join(line for line in lines if line.startswith("#"))
    assert max(map(len, lines)) <= 120 and f"train.py -c configs/timm/{name}.yaml " in header
    assert f"| [{name}.yaml]({name}.yaml) |" in (FOLDER / "README.md").read_text()


def test_published_rates_in_every_epoch(built):
    name, model = built
    arguments, row = SimpleNamespace(**recipe(name)), PUBLISHED[name]
    classifier = model.get_classifier(name_only=True)
    assert model.get_classifier().out_features == row.classes
    optimizer = create_optimizer_v2(model, **optimizer_kwargs(arguments))
    scheduler, epochs = create_scheduler_v2(optimizer, **scheduler_kwargs(arguments))
    assert epochs == row.epochs
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    head = {f"{classifier}.weight", f"{classifier}.bias"}
    trained = head if row.frozen else set(names.values())
    for epoch in range(epochs):
        rates = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
        expected = row.rate / 10 ** sum(epoch >= step for step in row.steps)
        published = {name: row.factor * expected if name in head else expected for name in trained}
        assert rates == pytest.approx(published, rel=1e-9), epoch
        scheduler.step(epoch + 1)
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == trained
    decays = {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays[f"{classifier}.weight"] == row.weight_decay and decays[f"{classifier}.bias"] == 0
    # Layer decay stops the parameters of the backbone, not the running averages of batch norm.
    assert not row.frozen or not list(model.buffers())
