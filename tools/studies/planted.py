"""Pictures with a texture planted in them, and a small network that tells which: where maps have to point is known.

    python -m studies.planted

prints, for each explanation method, how often the maximum of the map lies in the patch, how much of the positive energy
does, the deletion area beside that of random orders, and how often the map prefers its own class's patch in pictures of
two textures. The photographs ship inside scikit-image's wheel; training and test pictures come from disjoint halves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from covpool_plugins.command_line import Parser, run_tool
from covpool_plugins.explain import ModelView, deletion_insertion, explain
from covpool_plugins.explain.pointing import energy_inside, points_at
from covpool_plugins.timm_plugin import SecondOrderHead

from .textures import CLASSES, Split, photograph, random_crop

BACKGROUNDS = ("astronaut", "chelsea", "coffee", "coins", "rocket")
SIZE, PATCH = 64, 30
# A crop this many times the side of the patch is made smaller, so that a patch shows more than one brick.
SHRINKING: dict[Split, tuple[float, float]] = {"train": (2.0, 4.0), "val": (3.0, 3.0)}
LARGEST_CROP = 176
WIDTHS, STRIDES, KERNELS = (16, 16, 32, 48, 48), (2, 1, 2, 1, 1), (3, 3, 3, 3, 1)
# Gradients averaged over the positions are next to nothing right in front of the reduction of a covariance, where
# Grad-CAM points at the patch less often than not. One layer earlier, as a user would try, two ReLUs lie behind it.
METHODS: dict[str, dict[str, Any]] = {
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


@cache
def _grey_half(name: str, split: Split) -> np.ndarray:
    photo = np.asarray(Image.fromarray(photograph(name)).convert("L"))
    middle = photo.shape[1] // 2
    return photo[:, :middle] if split == "train" else photo[:, middle:]


def plant(
    textures: Sequence[int], split: Split, generator: np.random.Generator, size: int = SIZE, patch: int = PATCH
) -> Scene:
    """A crop of a photograph with a patch of each texture at a random place; patches do not overlap.

    Args:
        textures: classes, at most two.
        split: half of the photographs.
        generator: of all random numbers.
        size: side of the picture.
        patch: side of the patches; of two, at most half of the picture's side.
    """
    background = BACKGROUNDS[generator.integers(len(BACKGROUNDS))]
    picture = random_crop(_grey_half(background, split), size, generator)
    while True:
        places = generator.integers(0, size - patch + 1, (len(textures), 2))
        if len(textures) < 2 or np.abs(places[0] - places[1]).max() >= patch:
            break
    regions = {}
    for label, (top, left) in zip(textures, places.tolist(), strict=True):
        reach = min(round(generator.uniform(*SHRINKING[split]) * patch), LARGEST_CROP)
        crop = random_crop(_grey_half(CLASSES[label], split), reach, generator)
        picture.paste(crop.resize((patch, patch), Image.Resampling.BICUBIC), (left, top))
        regions[label] = np.zeros((size, size), bool)
        regions[label][top : top + patch, left : left + patch] = True
    return Scene(picture, regions)


def held_out_scenes(count: int, textures: int, seed: int) -> list[Scene]:
    """Pictures of one or two textures from the halves that are not trained on, all classes alike."""
    generator = np.random.default_rng([seed, textures])
    labels = range(len(CLASSES))
    chosen = [[(i + step) % len(labels) for step in range(textures)] for i in range(count)]
    return [plant(list(generator.permutation(labels_of).tolist()), "val", generator) for labels_of in chosen]


class TextureNet(nn.Module):
    """Five convolutions and a second-order head; input (B, 3, 64, 64), a last map of 48 channels at 16 x 16 positions.

    Args:
        head: name of the pool.
        head_options: of the pool.
    """

    def __init__(self, head: str = "svdpade", **head_options: Any) -> None:
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
        self.head = SecondOrderHead(WIDTHS[-1], len(CLASSES), head, pool_options=head_options)

    def get_classifier(self) -> nn.Module:
        """The layer of the class scores."""
        return self.head.fc

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(x))


def train_network(
    seed: int = 0,
    *,
    pictures: int = 1440,
    epochs: int = 14,
    batch_size: int = 24,
    learning_rate: float = 5e-3,
    weight_decay: float = 0.3,
) -> TextureNet:
    """A network that says for each texture whether it is in the picture.

    A quarter of the pictures shows none and a quarter two, so that a background speaks for no class. Patches have
    different sizes, up to the whole picture.

    Args:
        seed: of weights, pictures and their order; global random numbers stay as they are.
        pictures: to train on.
        epochs, batch_size, learning_rate, weight_decay: of AdamW with one cycle of the learning rate.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        net = TextureNet(reduce_channels=16)
        x, y = _training_set(pictures, np.random.default_rng(seed))
        optimizer = torch.optim.AdamW(net.parameters(), learning_rate, weight_decay=weight_decay)
        steps = epochs * (pictures // batch_size)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
        for _ in tqdm(range(epochs), desc=f"train, seed {seed}", unit="epoch", disable=None, leave=False):
            for batch in torch.randperm(pictures)[: pictures // batch_size * batch_size].split(batch_size):
                loss = nn.functional.binary_cross_entropy_with_logits(net(_turned(x[batch])), y[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return net.eval()


def _training_set(count: int, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Inputs (N, 3, H, W), and which textures they show (N, classes)."""
    pixels, labels = [], torch.zeros(count, len(CLASSES))
    for i in range(count):
        textures = generator.permutation(len(CLASSES))[: (0, 1, 1, 2)[i % 4]].tolist()
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
    """The figures of one method.

    Args:
        view: of a trained network.
        method: its name.
        single, double: pictures of one and of two textures.
        options: of the method.
    """
    hits, energies, areas, preferred = [], [], [], []
    for scene in single:
        x = view.preprocessing(scene.picture)
        for target, region in scene.regions.items():
            found = explain(view, x, method, target, **options).map
            hits.append(points_at(found, region))
            energies.append(energy_inside(found, region) or 0.0)
            both = deletion_insertion(view, x, found, target)
            areas.append((both.deletion, both.random_deletion))
    for scene in double:
        x = view.preprocessing(scene.picture)
        for target in scene.regions:
            found = explain(view, x, method, target, **options).map
            shares = {label: energy_inside(found, region) or 0.0 for label, region in scene.regions.items()}
            preferred.append(all(shares[target] > share for label, share in shares.items() if label != target))
    deletion, chance = np.mean(areas, axis=0).tolist()
    return Evidence(method, float(np.mean(hits)), float(np.mean(energies)), deletion, chance, float(np.mean(preferred)))


def accuracy(view: ModelView, scenes: Sequence[Scene]) -> float:
    """Share of the pictures of one texture whose highest score is that texture's."""
    x = torch.cat([view.preprocessing(scene.picture) for scene in scenes])
    targets = torch.tensor([next(iter(scene.regions)) for scene in scenes])
    return (view.logits(x).argmax(1).cpu() == targets).float().mean().item()


def table(evidence: Sequence[Sequence[Evidence]]) -> str:
    """Means over the seeds, as a Markdown table; ``evidence`` has a list of all methods per seed."""
    names = list(Evidence.__dataclass_fields__)[1:]
    lines = [f"| method | {' | '.join(name.replace('_', ' ') for name in names)} |", "|---" * (len(names) + 1) + "|"]
    for rows in zip(*evidence, strict=True):
        means = [float(np.mean([getattr(row, name) for row in rows])) for name in names]
        lines.append(f"| {rows[0].method} | {' | '.join(f'{mean:.2f}' for mean in means)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = Parser(
        "Where explanations point in pictures with a planted texture: means over several trained networks.",
        "python -m studies.planted --seeds 3",
        prog="planted",
    )
    parser.add_argument("--seeds", type=int, default=3, help="how many networks are trained (3)")
    parser.add_argument("--pictures", type=int, default=60, help="test pictures of each kind for each network (60)")
    options = parser.parse_args(arguments)
    for name in ("seeds", "pictures"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be positive, got {getattr(options, name)}")
    evidence, accuracies = [], []
    for seed in range(options.seeds):
        view = ModelView.of(train_network(seed))
        single, double = (held_out_scenes(options.pictures, textures, seed) for textures in (1, 2))
        accuracies.append(accuracy(view, single))
        evidence.append(
            [
                measure(view, method, single, double, given)
                for method, given in tqdm(METHODS.items(), desc="explain", unit="method", disable=None, leave=False)
            ]
        )
    print(table(evidence))
    listed = ", ".join(f"{100 * value:.0f} %" for value in accuracies)
    print(f"\n{options.pictures} test pictures of each kind for each of {options.seeds} networks; accuracy {listed}.")


if __name__ == "__main__":
    run_tool(main)
