"""Short trainings with timm's data, optimiser and scheduler utilities."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.data import create_dataset, create_loader, resolve_model_data_config
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter, accuracy, random_seed
from torch import nn
from tqdm import tqdm

from covpool_plugins.timm_plugin import create_model


@dataclass(frozen=True)
class Recipe:
    """What all heads of a comparison have in common."""

    data: Path
    backbone: str = "resnet10t"
    backbone_kwargs: dict[str, Any] = field(default_factory=lambda: {"channels": (24, 48, 64, 96), "last_stride": 1})
    num_classes: int = 3
    size: int = 96
    batch_size: int = 24
    epochs: int = 8
    learning_rate: float = 0.02
    weight_decay: float = 1e-3
    clip_grad: float = 5.0
    seed: int = 0


@dataclass(frozen=True)
class Run:
    """What came of one training; memory is what training added to the process, in MB."""

    head: str
    accuracies: list[float]
    losses: list[float]
    step_ms: float
    memory_mb: float
    checkpoint: Path

    @property
    def accuracy(self) -> float:
        """Validation accuracy in percent after the last epoch."""
        return self.accuracies[-1]


def build(recipe: Recipe, head: str, head_kwargs: dict[str, Any]) -> nn.Module:
    """The recipe's network with a head; the backbone starts from the same weights whatever the head."""
    random_seed(recipe.seed)
    return create_model(
        recipe.backbone, head, num_classes=recipe.num_classes, head_kwargs=head_kwargs, **recipe.backbone_kwargs
    )


def train(recipe: Recipe, head: str, head_kwargs: dict[str, Any], checkpoint: Path) -> Run:
    """Train one head and save its weights; run it in a process of its own for its memory figure to mean something."""
    model = build(recipe, head, head_kwargs)
    before = _peak_memory_mb()
    optimizer = create_optimizer_v2(
        model, opt="sgd", lr=recipe.learning_rate, momentum=0.9, weight_decay=recipe.weight_decay
    )
    scheduler, epochs = create_scheduler_v2(optimizer, sched="cosine", num_epochs=recipe.epochs, warmup_epochs=1)
    training, validation = (_loader(model, recipe, split) for split in ("train", "val"))
    accuracies, losses, steps = [], [], []
    with tqdm(total=epochs * len(training), desc=f"{head:>9}", unit="step", disable=None) as bar:
        for epoch in range(epochs):
            scheduler.step(epoch)
            loss, times = train_epoch(model, training, optimizer, recipe.clip_grad, bar)
            accuracies.append(evaluate(model, validation))
            losses.append(loss)
            steps += times
            bar.set_postfix(loss=f"{loss:.3f}", accuracy=f"{accuracies[-1]:.1f}%")
    torch.save(model.state_dict(), checkpoint)
    return Run(head, accuracies, losses, statistics.median(steps), _peak_memory_mb() - before, checkpoint)


def _loader(model: nn.Module, recipe: Recipe, split: str) -> Any:
    training = split == "train"
    dataset = create_dataset("", root=str(recipe.data), split=split, is_training=training)
    config = resolve_model_data_config(model, {"img_size": recipe.size, "crop_pct": 1.0})
    augmentation: dict[str, Any] = (
        dict(no_aug=False, scale=(0.7, 1.0), vflip=0.5, color_jitter=None) if training else {}
    )
    return create_loader(
        dataset,
        batch_size=recipe.batch_size,
        is_training=training,
        use_prefetcher=False,
        num_workers=0,
        persistent_workers=False,
        pin_memory=False,
        input_size=config["input_size"],
        mean=config["mean"],
        std=config["std"],
        interpolation="bicubic",
        crop_pct=config["crop_pct"],
        **augmentation,
    )


def train_epoch(
    model: nn.Module, loader: Iterable, optimizer: torch.optim.Optimizer, clip_grad: float, bar: tqdm
) -> tuple[float, list[float]]:
    """Mean loss, and the milliseconds each step took."""
    model.train()
    meter, times = AverageMeter(), []
    for x, target in loader:
        start = time.perf_counter()
        loss = nn.functional.cross_entropy(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip_grad)
        optimizer.step()
        times.append(1e3 * (time.perf_counter() - start))
        meter.update(loss.item(), len(x))
        bar.update()
    return meter.avg, times


def evaluate(model: nn.Module, loader: Iterable) -> float:
    """Accuracy in percent."""
    model.eval()
    meter = AverageMeter()
    with torch.inference_mode():
        for x, target in loader:
            meter.update(accuracy(model(x), target)[0].item(), len(x))
    return meter.avg


def _peak_memory_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
