"""The ``planted`` comparison: where explanations point in pictures with a texture planted in them.

A small network tells which texture it is, so it is known where a map has to point. The table has, for each explanation
method, how often the maximum of the map lies in the patch, how much of the positive energy does, the deletion area
beside that of random orders, and how often the map prefers its own class's patch in pictures of two textures. Training
and test pictures come from disjoint halves of scikit-image's photographs.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from covpool_plugins.command_line import markdown_table
from covpool_plugins.explain import ModelView, deletion_insertion, explain
from covpool_plugins.explain.pointing import energy_inside, points_at
from covpool_plugins.timm_plugin import SecondOrderHead

from .modes import COMPARISONS, Mode, add_numbers, add_training_arguments, environment
from .photographs import TEXTURES, Split, random_crop, shipped_halves
from .training import accuracy, fit, train_all

BACKGROUNDS = ("astronaut", "chelsea", "coffee", "coins", "rocket")
SIZE, PATCH = 64, 30
BATCH, LEARNING_RATE, WEIGHT_DECAY = 24, 5e-3, 0.3
# A crop this many times the side of the patch is made smaller, so that a patch shows more than one brick.
SHRINKING: dict[Split, tuple[float, float]] = {"train": (2.0, 4.0), "val": (3.0, 3.0)}
LARGEST_CROP = 176
WIDTHS, STRIDES, KERNELS = (16, 16, 32, 48, 48), (2, 1, 2, 1, 1), (3, 3, 3, 3, 1)
# Gradients averaged over the positions are next to nothing right in front of the reduction of a covariance, where
# Grad-CAM points at the patch less often than not. One layer earlier, as a user would try, two ReLUs lie behind it.
EXPLAINED_BY: dict[str, dict[str, Any]] = {
    "contribution": {},
    "linear_approx": {},
    "grad_cam": {"layer": "stages.3"},
    "rise": {"masks": 200},
    "excitation_backprop": {},
}


@dataclass(frozen=True)
class Scene:
    """A picture, and by class the patch (H, W), bool, that shows its texture."""

    picture: Image.Image
    regions: Mapping[int, np.ndarray]


def plant(textures: Sequence[int], split: Split, generator: np.random.Generator, patch: int = PATCH) -> Scene:
    """A crop of a photograph with a patch of each texture at a random place; patches do not overlap.

    Args:
        textures: classes, at most two.
        split: half of the photographs.
        generator: of all random numbers.
        patch: side of the patches; of two, at most half of the picture's side.
    """
    background = BACKGROUNDS[generator.integers(len(BACKGROUNDS))]
    picture = random_crop(shipped_halves(background)[split], SIZE, generator)
    while True:
        places = generator.integers(0, SIZE - patch + 1, (len(textures), 2))
        if len(textures) < 2 or np.abs(places[0] - places[1]).max() >= patch:
            break
    regions = {}
    for label, (top, left) in zip(textures, places.tolist(), strict=True):
        reach = min(round(generator.uniform(*SHRINKING[split]) * patch), LARGEST_CROP)
        crop = random_crop(shipped_halves(TEXTURES[label])[split], reach, generator)
        picture.paste(crop.resize((patch, patch), Image.Resampling.BICUBIC), (left, top))
        regions[label] = np.zeros((SIZE, SIZE), bool)
        regions[label][top : top + patch, left : left + patch] = True
    return Scene(picture, regions)


def held_out_scenes(count: int, textures: int, seed: int) -> list[Scene]:
    """Pictures of one or two textures from the halves that are not trained on, all classes alike."""
    generator = np.random.default_rng([seed, textures])
    labels = range(len(TEXTURES))
    chosen = [[(i + step) % len(labels) for step in range(textures)] for i in range(count)]
    return [plant(list(generator.permutation(labels_of).tolist()), "val", generator) for labels_of in chosen]


class TextureNet(nn.Module):
    """Five convolutions and an svdpade head; input (B, 3, 64, 64), a last map of 48 channels at 16 x 16 positions."""

    def __init__(self, reduce_channels: int = 16) -> None:
        super().__init__()
        self.pretrained_cfg = dict(
            input_size=(3, SIZE, SIZE), mean=(0.5,) * 3, std=(0.25,) * 3, crop_pct=1.0, interpolation="bicubic"
        )
        layers = [
            nn.Sequential(
                nn.Conv2d(inner, outer, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outer), nn.ReLU()
            )
            for inner, outer, stride, kernel in zip((3, *WIDTHS), WIDTHS, STRIDES, KERNELS, strict=False)
        ]
        self.stages = nn.Sequential(*layers)
        self.head = SecondOrderHead(
            WIDTHS[-1], len(TEXTURES), "svdpade", pool_options={"reduce_channels": reduce_channels}
        )

    def get_classifier(self) -> nn.Module:
        """The layer of the class scores."""
        return self.head.fc

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(x))


def train_network(seed: int = 0, *, pictures: int = 1440, epochs: int = 14) -> TextureNet:
    """A network that says for each texture whether it is in the picture; global random numbers stay as they are.

    A quarter of the pictures shows none and a quarter two, so that a background speaks for no class. Patches have
    different sizes, up to the whole picture. The optimizer is AdamW with one cycle of the learning rate.
    """
    steps = pictures // BATCH
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        net = TextureNet()
        x, y = _training_set(pictures, np.random.default_rng(seed))

        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            for batch in torch.randperm(pictures)[: steps * BATCH].split(BATCH):
                yield _turned(x[batch]), y[batch]

        optimizer = torch.optim.AdamW(net.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=epochs * steps)
        optimizer.register_step_post_hook(lambda *_: cycle.step())
        loss = nn.functional.binary_cross_entropy_with_logits
        for _ in fit(net, optimizer, epochs, batches, loss=loss, title=f"train, seed {seed}"):
            pass
    return net.eval()


def _training_set(count: int, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Inputs (N, 3, H, W), and which textures they show (N, classes)."""
    pixels, labels = [], torch.zeros(count, len(TEXTURES))
    for i in range(count):
        textures = generator.permutation(len(TEXTURES))[: (0, 1, 1, 2)[i % 4]].tolist()
        largest = SIZE // 2 if len(textures) == 2 else SIZE
        scene = plant(textures, "train", generator, patch=int(generator.integers(PATCH * 3 // 4, largest + 1)))
        labels[i, textures] = 1
        pixels.append(np.asarray(scene.picture))
    x = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 255
    return (x - 0.5) / 0.25, labels


def _turned(x: Tensor) -> Tensor:
    """Mirrored or turned by a right angle, at random."""
    x = x.flip(3) if torch.rand(()) < 0.5 else x
    return x.mT if torch.rand(()) < 0.5 else x


@dataclass(frozen=True)
class Evidence:
    """What a method's maps say of planted pictures.

    Args:
        method: its name.
        pointing: share of the maps of one texture whose maximum lies in the patch.
        energy: mean share of their positive energy inside the patch.
        deletion, random_deletion: means of the areas, see :class:`covpool_plugins.explain.metrics.DeletionInsertion`.
        preference: share of the maps of two textures with more energy in the target's patch than in the other one.
    """

    method: str
    pointing: float
    energy: float
    deletion: float
    random_deletion: float
    preference: float


def measure(
    view: ModelView, method: str, single: Sequence[Scene], double: Sequence[Scene], options: Mapping[str, Any]
) -> Evidence:
    """The figures of one method on pictures of one and of two textures."""
    hits, energies, areas, preferred = [], [], [], []
    for scene in single:
        x = view.preprocessing(scene.picture)
        for target, region in scene.regions.items():
            values = explain(view, x, method, target, **options).map
            hits.append(points_at(values, region))
            energies.append(energy_inside(values, region) or 0.0)
            result = deletion_insertion(view, x, values, target)
            areas.append((result.deletion, result.random_deletion))
    for scene in double:
        x = view.preprocessing(scene.picture)
        for target in scene.regions:
            values = explain(view, x, method, target, **options).map
            shares = {label: energy_inside(values, region) or 0.0 for label, region in scene.regions.items()}
            preferred.append(all(shares[target] > share for label, share in shares.items() if label != target))
    deletion, chance = np.mean(areas, axis=0).tolist()
    return Evidence(method, float(np.mean(hits)), float(np.mean(energies)), deletion, chance, float(np.mean(preferred)))


@dataclass(frozen=True)
class PlantedRun:
    """One network: its accuracy on pictures of one texture in percent, and the evidence of all methods."""

    seed: int
    accuracy: float
    evidence: list[Evidence]


def train_and_measure(pictures: int, seed: int) -> PlantedRun:
    """Train a network and explain it on so many test pictures of each kind."""
    network = train_network(seed)
    view = ModelView.of(network)
    single, double = (held_out_scenes(pictures, textures, seed) for textures in (1, 2))
    labelled = ((view.preprocessing(scene.picture), torch.tensor(list(scene.regions))) for scene in single)
    percent = accuracy(network, labelled)
    methods = tqdm(EXPLAINED_BY.items(), desc="explain", unit="method", disable=None, leave=False)
    return PlantedRun(seed, percent, [measure(view, method, single, double, options) for method, options in methods])


def table(runs: Sequence[PlantedRun]) -> str:
    """Means over the networks, as a Markdown table."""
    figures = [field.name for field in fields(Evidence)][1:]
    rows = []
    for evidence in zip(*(run.evidence for run in runs), strict=True):
        means = [float(np.mean([getattr(entry, figure) for entry in evidence])) for figure in figures]
        rows.append([evidence[0].method, *(f"{mean:.2f}" for mean in means)])
    return markdown_table(["method", *(figure.replace("_", " ") for figure in figures)], rows)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_numbers(parser, "--pictures", 60, "test pictures of each kind")
    add_training_arguments(parser, None, (), seeds=3)


def run(options: argparse.Namespace) -> None:
    jobs = [(options.pictures, seed) for seed in range(options.seeds)]
    runs = train_all(train_and_measure, jobs, options.json, environment())
    accuracies = ", ".join(f"{run.accuracy:.0f} %" for run in runs)
    print(table(runs))
    print(f"\n{options.pictures} test pictures of each kind for each of {len(runs)} networks; accuracy {accuracies}.")


EXAMPLE = "python tools/compare.py planted --seeds 3"
COMPARISONS.add("planted", Mode(__doc__ or "", EXAMPLE, add_arguments, run))
