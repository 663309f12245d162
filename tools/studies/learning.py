"""How fast heads learn by timm's defaults, and what closes the gap between second-order heads and average pooling.

    PYTHONPATH=tools python -m studies.learning --json out/learning.json

A root of C channels has the size of C numbers, but its vector has C(C + 1) / 2. A new classifier, whose weights are
1/sqrt(length of the vector) in size, then gives logits and gradients of the backbone sqrt(C/2) times smaller than those
of average pooling, and takes long to grow. A faster classifier makes up for it; larger first weights do in part.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from covpool_plugins import create_model
from covpool_plugins.command_line import Parser, markdown_table, positive_integer, run_tool

from .photographs import Split, source
from .training import DivergedError, accuracy, cosine, fit, train_all

NETWORK: dict[str, Any] = dict(channels=(8, 16, 32, 64), stem_width=8, output_stride=8, in_chans=1)
WEIGHT_DECAY = {"sgd": 5e-4, "adamw": 0.05}


@dataclass(frozen=True)
class Variant:
    """What is done for the classifier.

    Args:
        large: first weights of 1 / sqrt(channels) in size, instead of torch's 1 / sqrt(length of the vector).
        factor: its learning rate over that of the rest.
        warmup: epochs of linear warm-up.
        decays: whether its weights decay.
    """

    large: bool = False
    factor: float = 1.0
    warmup: int = 0
    decays: bool = True


VARIANTS = {
    "as it is": Variant(),
    "larger first weights": Variant(large=True),
    "3 epochs of warm-up": Variant(warmup=3),
    "no weight decay": Variant(decays=False),
    "10 times as fast": Variant(factor=10),
    "10 times as fast, larger first weights": Variant(large=True, factor=10),
}
RATES = (("sgd", 0.01), ("sgd", 0.05), ("adamw", 1e-3))
HEADS = ("gap", "isqrt", "svdpade")


@dataclass(frozen=True)
class LearningRun:
    """One training: the loss of its last epoch and the accuracy on other pictures in percent, none if it diverged."""

    head: str
    variant: str
    optimizer: str
    rate: float
    seed: int
    loss: float | None = None
    accuracy: float | None = None


@cache
def pictures(split: Split, seed: int) -> tuple[Tensor, Tensor]:
    """Crops of nine photographs, 32 pixels a side."""
    return source("photographs").draw(split, 16 if split == "train" else 40, 32, 0.25, seed)


def train(epochs: int, optimizer_name: str, rate: float, head: str, variant_name: str, seed: int) -> LearningRun:
    """Train one small ResNet from scratch; everything that is random follows from the seed."""
    variant, run = VARIANTS[variant_name], LearningRun(head, variant_name, optimizer_name, rate, seed)
    x, labels = pictures("train", seed)
    torch.manual_seed(seed)
    model = create_model("resnet10t", head, num_classes=int(labels.max()) + 1, **NETWORK)
    classifier: nn.Linear = model.get_classifier()  # type: ignore[operator]
    if variant.large:
        bound = NETWORK["channels"][-1] ** -0.5
        nn.init.uniform_(classifier.weight, -bound, bound)
    decay, own = WEIGHT_DECAY[optimizer_name], set(classifier.parameters())
    fast = {"lr": variant.factor * rate, "weight_decay": decay if variant.decays else 0.0}
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in model.parameters() if parameter not in own]},
        {"params": list(own), **fast},
    ]
    optimizer = create_optimizer_v2(groups, opt=optimizer_name, lr=rate, weight_decay=decay)
    generator = torch.Generator().manual_seed(seed)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for chosen in torch.randperm(len(x), generator=generator).split(16):
            yield x[chosen], labels[chosen]

    try:
        losses = [
            loss
            for loss, _ in fit(model, optimizer, epochs, batches, scheduler=cosine(optimizer, epochs, variant.warmup))
        ]
    except DivergedError:
        return run
    return replace(run, loss=losses[-1], accuracy=accuracy(model, [pictures("val", seed)]))


def table(runs: list[LearningRun]) -> str:
    """A row for each head and variant, a column for each optimizer and rate: loss, accuracy."""
    rows = []
    for head, variant in dict.fromkeys((run.head, run.variant) for run in runs):
        cells = []
        for key in RATES:
            of_cell = [r for r in runs if (r.head, r.variant, r.optimizer, r.rate) == (head, variant, *key)]
            losses = [run.loss for run in of_cell if run.loss is not None]
            percent = statistics.mean(run.accuracy for run in of_cell if run.accuracy is not None) if losses else 0.0
            spread = f" ± {statistics.stdev(losses):.2f}" if len(losses) > 1 else ""
            cells.append(f"{statistics.mean(losses):.2f}{spread}, {percent:.0f} %" if losses else "diverged")
        rows.append([f"`{head}`", variant, *cells])
    return markdown_table(["head", "classifier", *(f"{name}, {rate:g}" for name, rate in RATES)], rows)


def main() -> None:
    parser = Parser(__doc__ or "", "PYTHONPATH=tools python -m studies.learning --json out/learning.json")
    parser.add_argument(
        "--heads", nargs="+", choices=HEADS, default=HEADS, metavar="NAME", help=f"of {', '.join(HEADS)}"
    )
    parser.add_argument("--seeds", type=positive_integer, default=5, help="trainings of each (5)")
    parser.add_argument("--epochs", type=positive_integer, default=16, help="of each training (16)")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    options = parser.parse_args()
    torch.set_num_threads(1)
    jobs = [
        (options.epochs, *rate, head, variant, seed)
        for seed in range(options.seeds)
        for rate in RATES
        for head in options.heads
        for variant in (VARIANTS if head != "gap" else list(VARIANTS)[:1])
    ]
    runs = train_all(train, jobs, options.json, {"epochs": options.epochs})
    print(table(runs))


if __name__ == "__main__":
    run_tool(main)
