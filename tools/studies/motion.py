"""The ``motion`` comparison: what temporal-attentive covariance pooling sees that an average over frames does not.

The same small network is trained from the same weights on the same clips of a moving camera, with head after head.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from timm.optim import create_optimizer_v2
from timm.utils import random_seed
from torch import Tensor, nn

from covpool_plugins.command_line import markdown_table
from covpool_plugins.timm_plugin import create_model, list_heads

from .figures import mean_and_spread
from .modes import COMPARISONS, Mode, add_names, add_training_arguments, environment, existing_folder
from .moving_photos import MOTIONS, MovingPhotos, batches, folder_photos, shipped_photos
from .training import cosine, fit, predict, train_all

HEADS = ("gap", "isqrt", "temporal")
TEST_SEED = 2**32
TEST_BATCH = 50
SETTINGS = ("steps", "size", "frames")


@dataclass(frozen=True)
class MotionRecipe:
    """What all heads of the comparison have in common.

    The network is the first two stages of ResNet-10-T, with 6x6 positions at 48 pixels: the convolution over time sees
    one position at a time, which a motion has to cross in a few frames.
    """

    backbone: str = "resnet10t"
    channels: int = 32
    stages: int = 2
    reduce_channels: int = 32
    size: int = 48
    frames: int = 8
    batch_size: int = 16
    steps: int = 400
    learning_rate: float = 5e-3
    weight_decay: float = 1e-2
    clip_grad: float = 5.0
    test_clips: int = 400


@dataclass(frozen=True)
class MotionRun:
    """One training; accuracies in percent, that of pairs for right and left taken as one and so on."""

    head: str
    seed: int
    accuracy: float
    pair_accuracy: float
    loss: float
    seconds: float


def build(recipe: MotionRecipe, head: str, seed: int) -> nn.Module:
    """The recipe's network for clips; the backbone starts from the same weights whatever the head."""
    random_seed(seed)
    return create_model(
        recipe.backbone,
        head,
        frames=recipe.frames,
        num_classes=len(MOTIONS),
        head_kwargs={} if head == "gap" else {"reduce_channels": recipe.reduce_channels},
        channels=(recipe.channels,) * 4,
        layers=[int(stage < recipe.stages) for stage in range(4)],
        stem_width=8,
    )


def train(photos: MovingPhotos, recipe: MotionRecipe, head: str, seed: int) -> MotionRun:
    """Train one head on clips of the training photographs, test it on clips of the others."""
    start = time.perf_counter()
    model = build(recipe, head, seed)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    clips = batches(photos["train"], recipe.size, recipe.frames, recipe.batch_size, seed)
    # Clips have no end: an epoch is one step, and the learning rate changes with each.
    steps = fit(
        model,
        optimizer,
        recipe.steps,
        lambda: islice(clips, 1),
        scheduler=cosine(optimizer, recipe.steps, recipe.steps // 10),
        clip_grad=recipe.clip_grad,
    )
    *_, (loss, _) = steps
    accuracy, pairs = evaluate(recipe, model, photos["val"])
    return MotionRun(head, seed, accuracy, pairs, loss, time.perf_counter() - start)


def evaluate(recipe: MotionRecipe, model: nn.Module, photos: Sequence[Tensor]) -> tuple[float, float]:
    """Percent of the test clips, the same for every model, whose motion is told, and whose pair of motions is."""
    batch = min(TEST_BATCH, recipe.test_clips)
    clips = batches(photos, recipe.size, recipe.frames, batch, TEST_SEED)
    predicted, labels = (
        values[: recipe.test_clips] for values in predict(model, islice(clips, -(-recipe.test_clips // batch)))
    )
    motion, pair = predicted == labels, predicted // 2 == labels // 2
    return 100 * motion.double().mean().item(), 100 * pair.double().mean().item()


def table(runs: Sequence[MotionRun]) -> str:
    """Mean and spread over the seeds of every head, as a Markdown table."""
    rows = []
    for head in dict.fromkeys(run.head for run in runs):
        of_head = [run for run in runs if run.head == head]
        accuracies = [run.accuracy for run in of_head]
        rows.append(
            [
                head,
                f"{mean_and_spread(accuracies)} %",
                f"{min(accuracies):.1f} to {max(accuracies):.1f} %",
                f"{statistics.mean(run.pair_accuracy for run in of_head):.1f} %",
                f"{statistics.mean(run.seconds for run in of_head):.0f}",
            ]
        )
    return markdown_table(["head", "accuracy", "lowest to highest", "accuracy by pairs", "s per training"], rows)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_names(parser, "--heads", list_heads(), HEADS)
    parser.add_argument("--images", type=existing_folder, metavar="DIR", help="photographs instead of scikit-image's")
    add_training_arguments(parser, MotionRecipe, SETTINGS, seeds=3)


def run(options: argparse.Namespace) -> None:
    recipe = MotionRecipe(**{name: getattr(options, name) for name in SETTINGS})
    photos = folder_photos(options.images, recipe.size) if options.images else shipped_photos(recipe.size)
    facts: dict[str, Any] = {**environment(), "recipe": asdict(recipe)}
    jobs = [(photos, recipe, head, seed) for seed in range(options.seeds) for head in options.heads]
    runs = train_all(train, jobs, options.json, facts)
    print(f"{len(MOTIONS)} motions, by chance {100 / len(MOTIONS):.1f} %, without the order of frames 50 % at most\n")
    print(table(runs))


EXAMPLE = "python tools/compare.py motion --json out/motion.json"
COMPARISONS.add("motion", Mode(__doc__ or "", EXAMPLE, add_arguments, run))
