"""Fine-tuning of a pretrained network with a head on a folder of classes: one training.

A row is a head with options, such as ``svdpade(centered=False)``; ``gap`` is the plain network.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.optim import create_optimizer_v2
from timm.utils import random_seed
from torch import Tensor, nn

from covpool_plugins.probe import packaged_weights
from covpool_plugins.timm_plugin import create_model

from .labelled import LabelledFiles, folds, labelled_files, read_squares
from .modes import environment
from .rows import head_and_options
from .training import DivergedError, cosine, fit

BASELINE = "gap"
OF_THE_MODEL = ("last_stride", "fuse_class_token", "drop_rate")  # not options of the pool
SIDE = 1.4  # of a picture as it is read, in sides of what the network gets


@dataclass(frozen=True)
class FinetuneRecipe:
    """What all trainings have in common."""

    images: Path
    backbone: str = "tf_efficientnet_lite0"
    packages: Path | None = None
    groups: str = ""
    folds: int = 6
    size: int = 160
    channels: int = 64
    epochs: int = 12
    batch_size: int = 32
    weight_decay: float = 0.05
    clip_grad: float = 5.0
    device: str = "cpu"


@dataclass(frozen=True)
class FinetuneRun:
    """One training.

    Args:
        row: the head with its options.
        fold: the one tested on; 0 is only for choosing.
        seed: of everything that is random.
        learning_rate, classifier_rate: the highest, of the network and of the classifier.
        parameters: how many.
        width: of the vector that is classified.
        crops: accuracy on five crops of each test picture, in percent; none for a training that diverged.
        pictures: accuracy on the pictures, by the mean of the scores of their crops, in percent.
        loss: of the last epoch.
        seconds: of the whole training.
        device: what it ran on.
    """

    row: str
    fold: int
    seed: int
    learning_rate: float
    classifier_rate: float
    parameters: int
    width: int
    crops: float | None = None
    pictures: float | None = None
    loss: float | None = None
    seconds: float | None = None
    device: str = ""

    @property
    def job(self) -> tuple[str, int, int, float, float]:
        """What was asked for."""
        return self.row, self.fold, self.seed, self.learning_rate, self.classifier_rate


@cache
def weights_of(backbone: str, packages: Path | None) -> dict[str, Any]:
    return packaged_weights(backbone, packages)


def build(recipe: FinetuneRecipe, row: str, classes: int, seed: int) -> nn.Module:
    """The pretrained network with a head, on the CPU."""
    random_seed(seed)
    head, options = head_and_options(row)
    of_model = {name: options.pop(name) for name in OF_THE_MODEL if name in options}
    if head != BASELINE:
        options.setdefault("reduce_channels", recipe.channels)
    overlay = weights_of(recipe.backbone, recipe.packages)
    return create_model(
        recipe.backbone,
        head,
        pretrained=True,
        pretrained_cfg_overlay=overlay,
        num_classes=classes,
        head_kwargs=options,
        **of_model,
    )


class Pictures:
    """The pictures of a recipe on its device, with labels and folds."""

    def __init__(self, recipe: FinetuneRecipe) -> None:
        self.files: LabelledFiles = labelled_files(recipe.images, recipe.groups)
        self.folds = folds(self.files, recipe.folds)
        device = torch.device(recipe.device)
        self.pixels = read_squares(self.files.paths, round(recipe.size * SIDE)).to(device)
        self.labels = torch.from_numpy(self.files.labels).to(device)


@cache
def pictures_of(recipe: FinetuneRecipe) -> Pictures:
    """Read once in each process."""
    return Pictures(recipe)


def random_crops(pixels: Tensor, size: int, generator: np.random.Generator) -> Tensor:
    """Crops (B, 3, size, size) of pictures (B, 3, S, S) in uint8, as numbers from 0 to 1.

    The side is 60 to 100 % of the picture's, the place random; half of them are mirrored.
    """
    count = len(pixels)
    side = generator.uniform(0.6, 1.0, count)
    mirrored = np.where(generator.random(count) < 0.5, -1.0, 1.0)
    theta = np.zeros((count, 2, 3))
    theta[:, 0, 0], theta[:, 1, 1] = side * mirrored, side
    theta[:, :, 2] = generator.uniform(-1, 1, (count, 2)) * (1 - side)[:, None]
    grid = nn.functional.affine_grid(
        torch.from_numpy(theta).float().to(pixels.device), [count, 3, size, size], align_corners=False
    )
    return nn.functional.grid_sample(pixels.float() / 255, grid, padding_mode="reflection", align_corners=False)


def five_crops(pixels: Tensor, size: int) -> Tensor:
    """The crops of 80 % of the side at the corners and in the middle, (5, B, 3, size, size), from 0 to 1."""
    side = pixels.shape[-1]
    cut = round(0.8 * side)
    places = [(0, 0), (0, side - cut), (side - cut, 0), (side - cut, side - cut), ((side - cut) // 2,) * 2]
    crops = [pixels[:, :, top : top + cut, left : left + cut].float() / 255 for top, left in places]
    resize = nn.functional.interpolate
    return torch.stack(
        [resize(crop, (size, size), mode="bilinear", antialias=True, align_corners=False) for crop in crops]
    )


def train(
    recipe: FinetuneRecipe, row: str, fold: int, seed: int, learning_rate: float, classifier_rate: float
) -> FinetuneRun:
    """Fine-tune one network and test it."""
    start = time.perf_counter()
    data = pictures_of(recipe)
    device = data.pixels.device
    model: Any = build(recipe, row, len(data.files.classes), seed).to(device)
    classifier = list(model.get_classifier().parameters())
    known = {id(parameter) for parameter in classifier}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in known]
    groups: list[dict[str, Any]] = [{"params": rest}, {"params": classifier, "lr": classifier_rate}]
    optimizer = create_optimizer_v2(groups, opt="adamw", lr=learning_rate, weight_decay=recipe.weight_decay)
    mean, std = (torch.tensor(model.pretrained_cfg[key], device=device)[:, None, None] for key in ("mean", "std"))
    training, testing = (torch.from_numpy(indices).to(device) for indices in data.folds[fold])
    generator = np.random.default_rng([seed, fold])

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        order = training[torch.from_numpy(generator.permutation(len(training))).to(device)]
        for chosen in order[: max(len(order) // recipe.batch_size, 1) * recipe.batch_size].split(recipe.batch_size):
            crops = random_crops(data.pixels[chosen], recipe.size, generator)
            yield (crops - mean) / std, data.labels[chosen]

    def done(**results: Any) -> FinetuneRun:
        parameters = sum(parameter.numel() for parameter in model.parameters())
        settings = (row, fold, seed, learning_rate, classifier_rate, parameters, model.get_classifier().in_features)
        name = environment(device)["device"]
        return FinetuneRun(*settings, seconds=time.perf_counter() - start, device=name, **results)

    schedule = cosine(optimizer, recipe.epochs, 1)
    try:
        losses = [
            loss
            for loss, _ in fit(model, optimizer, recipe.epochs, batches, scheduler=schedule, clip_grad=recipe.clip_grad)
        ]
    except DivergedError:
        return done()
    crops, pictures = _test(model, (five_crops(data.pixels[testing], recipe.size) - mean) / std, data.labels[testing])
    return done(crops=crops, pictures=pictures, loss=losses[-1])


@torch.inference_mode()
def _test(model: nn.Module, crops: Tensor, labels: Tensor) -> tuple[float, float]:
    """Accuracies in percent on crops (5, N, 3, size, size) and on pictures."""
    model.eval()
    scores = torch.stack([torch.cat([model(x) for x in of_place.split(32)]).log_softmax(1) for of_place in crops])
    of_crops, of_pictures = scores.argmax(2) == labels, scores.mean(0).argmax(1) == labels
    return 100 * of_crops.double().mean().item(), 100 * of_pictures.double().mean().item()
