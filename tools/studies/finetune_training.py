"""Fine-tuning of a pretrained network with a head on a folder of classes: one training.

A row is a head with options, such as ``svdpade(centered=False)``; ``gap`` is the plain network. ``backbone`` and
``last_stride`` may be among the options. A head starts from
random weights or, as Kumar et al. ("Fine-tuning can distort pretrained features and underperform out-of-distribution",
ICLR 2022) found better, as a probe that was fitted to the features of the frozen network.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from timm.layers import freeze_batch_norm_2d, unfreeze_batch_norm_2d
from timm.optim import create_optimizer_v2
from timm.utils import random_seed
from torch import Tensor, nn

from covpool_plugins.probe import model_with_probe, packaged_weights
from covpool_plugins.timm_plugin import create_model, save_for_hub

from .front import whole_network
from .labelled import LabelledFiles, folds, labelled_files, read_squares
from .modes import environment
from .rows import head_and_options
from .training import DivergedError, cosine, fit

BASELINE = "gap"
OF_THE_MODEL = ("last_stride", "fuse_class_token", "drop_rate")  # not options of the pool
SIDE = 1.4  # of a picture as it is read, in sides of what the network gets
STARTS = ("random", "probe")  # of a head
STRENGTH = 1.0  # C of the probe's logistic classifier


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
    start: str = "random"
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
        frozen: accuracy on the pictures before the training, in percent; none for a head that starts at random.
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
    frozen: float | None = None

    @property
    def job(self) -> tuple[str, int, int, float, float]:
        """What was asked for."""
        return self.row, self.fold, self.seed, self.learning_rate, self.classifier_rate


@cache
def weights_of(backbone: str, packages: Path | None) -> dict[str, Any]:
    return packaged_weights(whole_network(backbone), packages)


class Parts(NamedTuple):
    """What a row asks for: the network, the head with options of its pool, what else ``create_model`` takes."""

    backbone: str
    head: str
    options: dict[str, Any]
    of_model: dict[str, Any]


def parts_of(recipe: FinetuneRecipe, row: str) -> Parts:
    """The parts of a row, with the weights of its network."""
    head, options = head_and_options(row)
    of_model = {name: options.pop(name) for name in OF_THE_MODEL if name in options}
    backbone = options.pop("backbone", recipe.backbone)
    if head != BASELINE:
        options.setdefault("reduce_channels", recipe.channels)
    of_model |= {"pretrained": True, "pretrained_cfg_overlay": weights_of(backbone, recipe.packages)}
    return Parts(backbone, head, options, of_model)


def build(recipe: FinetuneRecipe, row: str, classes: int, seed: int) -> nn.Module:
    """The pretrained network with a fresh head, on the CPU."""
    random_seed(seed)
    backbone, head, options, of_model = parts_of(recipe, row)
    return create_model(backbone, head, num_classes=classes, head_kwargs=options, **of_model)


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


@cache
@torch.inference_mode()
def features_of(recipe: FinetuneRecipe, row: str) -> np.ndarray:
    """Maps (N, C, H, W) of the middle of all pictures, by the frozen network of a row."""
    data = pictures_of(recipe)
    network: Any = build(recipe, row, 0, 0).eval().to(data.pixels.device)
    crops = normalized(network, five_crops(data.pixels, recipe.size)[-1])
    return torch.cat([network.forward_features(x) for x in crops.split(32)]).cpu().numpy()


def build_from_probe(recipe: FinetuneRecipe, row: str, training: np.ndarray, seed: int) -> nn.Module:
    """The pretrained network, its head a probe that was fitted to the features of the training pictures, on the CPU."""
    from covpool_plugins.probe.estimator import SecondOrderProbe, logistic

    backbone, head, options, of_model = parts_of(recipe, row)
    stride = of_model.get("last_stride")
    maps = features_of(recipe, f"{BASELINE}(backbone={backbone!r}, last_stride={stride})")
    channels = options.pop("reduce_channels", recipe.channels)
    probe = SecondOrderProbe(
        head, logistic(STRENGTH), channels=channels, pool_options=options or None, random_state=seed
    )
    probe.fit(maps[training], pictures_of(recipe).files.labels[training])
    return model_with_probe(probe, backbone, **of_model)


def normalized(model: Any, x: Tensor) -> Tensor:
    """Pictures (..., 3, H, W) from 0 to 1 as the network takes them."""
    mean, std = (torch.tensor(model.pretrained_cfg[key], device=x.device)[:, None, None] for key in ("mean", "std"))
    return (x - mean) / std


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
    recipe: FinetuneRecipe,
    row: str,
    fold: int,
    seed: int,
    learning_rate: float,
    classifier_rate: float,
    folder: Path | None = None,
) -> FinetuneRun:
    """Fine-tune one network and test it; it is saved where a folder is named."""
    start = time.perf_counter()
    data = pictures_of(recipe)
    device = data.pixels.device
    probed = recipe.start == "probe"
    if probed:
        model: Any = build_from_probe(recipe, row, data.folds[fold][0], seed)
    else:
        model = build(recipe, row, len(data.files.classes), seed)
    model.to(device).requires_grad_(True)
    training, testing = (torch.from_numpy(indices).to(device) for indices in data.folds[fold])
    tested = normalized(model, five_crops(data.pixels[testing], recipe.size)), data.labels[testing]
    frozen = _test(model, *tested)[1] if probed else None
    if probed:  # the statistics are those that the probe has seen
        model = freeze_batch_norm_2d(model)
    classifier = list(model.get_classifier().parameters())
    known = {id(parameter) for parameter in classifier}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in known]
    groups: list[dict[str, Any]] = [{"params": rest}, {"params": classifier, "lr": classifier_rate}]
    optimizer = create_optimizer_v2(groups, opt="adamw", lr=learning_rate, weight_decay=recipe.weight_decay)
    generator = np.random.default_rng([seed, fold])

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        order = training[torch.from_numpy(generator.permutation(len(training))).to(device)]
        for chosen in order[: max(len(order) // recipe.batch_size, 1) * recipe.batch_size].split(recipe.batch_size):
            yield normalized(model, random_crops(data.pixels[chosen], recipe.size, generator)), data.labels[chosen]

    def done(**results: Any) -> FinetuneRun:
        parameters = sum(parameter.numel() for parameter in model.parameters())
        settings = (row, fold, seed, learning_rate, classifier_rate, parameters, model.get_classifier().in_features)
        name = environment(device)["device"]
        return FinetuneRun(*settings, seconds=time.perf_counter() - start, device=name, frozen=frozen, **results)

    epochs = fit(
        model,
        optimizer,
        recipe.epochs,
        batches,
        scheduler=cosine(optimizer, recipe.epochs, min(1, recipe.epochs - 1)),
        clip_grad=recipe.clip_grad,
    )
    try:
        losses = [loss for loss, _ in epochs]
    except DivergedError:
        return done()
    model = unfreeze_batch_norm_2d(model) if probed else model
    if folder is not None:
        save_for_hub(model, folder)
    crops, pictures = _test(model, *tested)
    return done(crops=crops, pictures=pictures, loss=losses[-1])


@torch.inference_mode()
def _test(model: nn.Module, crops: Tensor, labels: Tensor) -> tuple[float, float]:
    """Accuracies in percent on crops (5, N, 3, size, size) and on pictures."""
    model.eval()
    scores = torch.stack([torch.cat([model(x) for x in of_place.split(32)]).log_softmax(1) for of_place in crops])
    of_crops, of_pictures = scores.argmax(2) == labels, scores.mean(0).argmax(1) == labels
    return 100 * of_crops.double().mean().item(), 100 * of_pictures.double().mean().item()
