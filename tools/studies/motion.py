"""What temporal-attentive covariance pooling sees of a motion, and averaging over the frames does not.

The same small network is trained from the same weights on the same clips, with one head after the other.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import random_seed
from torch import Tensor, nn
from tqdm import tqdm

from covpool_plugins.checks import check_integer
from covpool_plugins.command_line import Parser, run_tool
from covpool_plugins.errors import OptionError
from covpool_plugins.files import write_atomically
from covpool_plugins.timm_plugin import create_model, list_heads

from .modes import check_outputs
from .moving_photos import MOTIONS, batches, photos_of, shipped_photos

HEADS = ("gap", "isqrt", "temporal")
TEST_SEED = 2**32
TEST_BATCH = 50


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


def train(recipe: MotionRecipe, head: str, seed: int, photos: tuple[list[Tensor], list[Tensor]]) -> MotionRun:
    """Train one head on clips of the first photographs, test it on clips of the others."""
    start = time.perf_counter()
    model = build(recipe, head, seed).train()
    optimizer = create_optimizer_v2(model, opt="adamw", lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    scheduler, _ = create_scheduler_v2(optimizer, "cosine", num_epochs=recipe.steps, warmup_epochs=recipe.steps // 10)
    clips = batches(photos[0], recipe.size, recipe.frames, recipe.batch_size, seed)
    loss = torch.zeros(())
    with tqdm(total=recipe.steps, desc=f"{head:>9} seed {seed}", unit="step", disable=None) as bar:
        for step in range(recipe.steps):
            scheduler.step(step)
            x, labels = next(clips)
            loss = nn.functional.cross_entropy(model(x), labels)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_grad)
            optimizer.step()
            bar.update()
            bar.set_postfix(loss=f"{loss.item():.2f}", refresh=False)
    accuracy, pairs = evaluate(recipe, model, photos[1])
    return MotionRun(head, seed, accuracy, pairs, loss.item(), time.perf_counter() - start)


@torch.inference_mode()
def evaluate(recipe: MotionRecipe, model: nn.Module, photos: Sequence[Tensor]) -> tuple[float, float]:
    """Percent of the test clips, the same for every model, whose motion is told, and whose pair of motions is."""
    model.eval()
    clips = batches(photos, recipe.size, recipe.frames, min(TEST_BATCH, recipe.test_clips), TEST_SEED)
    right: list[Tensor] = []
    while sum(map(len, right)) < recipe.test_clips:
        x, labels = next(clips)
        found = model(x).argmax(dim=1)
        right.append(torch.stack([found == labels, found // 2 == labels // 2], dim=1))
    accuracy, pairs = 100 * torch.cat(right)[: recipe.test_clips].float().mean(dim=0)
    return float(accuracy), float(pairs)


def table(runs: Sequence[MotionRun]) -> str:
    """Mean and spread over the seeds of every head, as a Markdown table."""
    lines = [
        "| head | accuracy | lowest to highest | accuracy by pairs | s per training |",
        "|---|---|---|---|---|",
    ]
    for head in dict.fromkeys(run.head for run in runs):
        of_head = [run for run in runs if run.head == head]
        found = [run.accuracy for run in of_head]
        pairs, seconds = (
            statistics.mean(getattr(run, name) for run in of_head) for name in ("pair_accuracy", "seconds")
        )
        spread = f" ± {statistics.stdev(found):.1f}" if len(found) > 1 else ""
        lines.append(
            f"| {head} | {statistics.mean(found):.1f}{spread} % | {min(found):.1f} to {max(found):.1f} % "
            f"| {pairs:.1f} % | {seconds:.0f} |"
        )
    return "\n".join(lines)


def compare(
    recipe: MotionRecipe, heads: Sequence[str], seeds: int, out: Path | None = None, images: Path | None = None
) -> list[MotionRun]:
    """Train every head with every seed, print a line for each training and the table, write the numbers to ``out``.

    Args:
        recipe: what the trainings have in common.
        heads: names of heads.
        seeds: how many; they are 0, 1, ...
        out: JSON file.
        images: folder of photographs; scikit-image's by default.

    Raises:
        OptionError: for a recipe with a number that is none, or a folder with too few pictures.
    """
    photos = photos_of(images, recipe.size) if images else shipped_photos(recipe.size)
    runs: list[MotionRun] = []
    for seed in range(seeds):
        for head in heads:
            runs.append(train(recipe, head, seed, photos))
            print(f"{head}, seed {seed}: {runs[-1].accuracy:.1f} % in {runs[-1].seconds:.0f} s", flush=True)
            if out is not None:
                _save(out, recipe, runs)
    print(
        f"\nof {len(MOTIONS)} motions, by chance {100 / len(MOTIONS):.1f} %, without the order of frames 50 % at most\n"
    )
    print(table(runs))
    return runs


def _save(path: Path, recipe: MotionRecipe, runs: Sequence[MotionRun]) -> None:
    facts = dict(recipe=asdict(recipe), torch=torch.__version__, threads=torch.get_num_threads(), cores=os.cpu_count())
    numbers: dict[str, Any] = facts | {"runs": [asdict(run) for run in runs]}
    write_atomically(path, lambda file: file.write(json.dumps(numbers, indent=1).encode()))


def main() -> None:
    parser = Parser(__doc__ or "", "python -m studies.motion --out out/motion.json")
    parser.add_argument("--heads", nargs="+", choices=list_heads(), default=list(HEADS), metavar="HEAD")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each head (3)")
    parser.add_argument("--images", type=Path, metavar="DIR", help="photographs instead of scikit-image's")
    parser.add_argument("--out", type=Path, default=Path("out/motion.json"), help="JSON file (out/motion.json)")
    for name in ("steps", "size", "frames"):
        value = getattr(MotionRecipe, name)
        parser.add_argument(f"--{name}", type=int, default=value, help=f"({value})")
    args = parser.parse_args()
    for name in ("seeds", "steps", "size", "frames"):
        check_integer(f"--{name}", getattr(args, name))
    check_outputs(args.out)
    if args.images is not None and not args.images.is_dir():
        raise OptionError(f"--images {args.images}: no such folder")
    recipe = MotionRecipe(steps=args.steps, size=args.size, frames=args.frames)
    compare(recipe, args.heads, args.seeds, args.out, args.images)


if __name__ == "__main__":
    run_tool(main)
