"""The trainings of the demo: a small ResNet with a head, on pictures in folders, with timm's loaders."""

from __future__ import annotations

import resource
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.data import create_dataset, create_loader, resolve_model_data_config
from timm.optim import create_optimizer_v2
from timm.utils import random_seed
from torch import nn

from covpool_plugins.timm_plugin import create_model

from .photographs import TEXTURES, Split
from .training import accuracy, cosine, fit


@dataclass(frozen=True)
class DemoRecipe:
    """What all heads of the demo have in common."""

    data: Path
    backbone: str = "resnet10t"
    backbone_kwargs: dict[str, Any] = field(default_factory=lambda: {"channels": (24, 48, 64, 96), "last_stride": 1})
    size: int = 96
    batch_size: int = 24
    epochs: int = 6
    learning_rate: float = 0.02
    weight_decay: float = 1e-3
    clip_grad: float = 5.0
    seed: int = 0


@dataclass(frozen=True)
class DemoRun:
    """One training: validation accuracies in percent and losses by epoch; memory is what it added to the process."""

    head: str
    accuracies: list[float]
    losses: list[float]
    step_ms: float
    memory_mb: float
    checkpoint: Path


def build(recipe: DemoRecipe, head: str, head_kwargs: dict[str, Any]) -> nn.Module:
    """The recipe's network with a head; the backbone starts from the same weights whatever the head."""
    random_seed(recipe.seed)
    return create_model(
        recipe.backbone, head, num_classes=len(TEXTURES), head_kwargs=head_kwargs, **recipe.backbone_kwargs
    )


def train(recipe: DemoRecipe, head: str, head_kwargs: dict[str, Any], checkpoint: Path) -> DemoRun:
    """Train one head and save its weights; run it in a process of its own for its memory figure to mean something."""
    model = build(recipe, head, head_kwargs)
    before = _peak_memory_mb()
    optimizer = create_optimizer_v2(
        model, opt="sgd", lr=recipe.learning_rate, momentum=0.9, weight_decay=recipe.weight_decay
    )
    training, validation = _loader(model, recipe, "train"), _loader(model, recipe, "val")
    epochs = fit(
        model,
        optimizer,
        recipe.epochs,
        lambda: training,
        scheduler=cosine(optimizer, recipe.epochs, warmup=1),
        clip_grad=recipe.clip_grad,
        title=f"{head:>9}",
    )
    accuracies, losses, steps = [], [], []
    for loss, milliseconds in epochs:
        accuracies.append(accuracy(model, validation))
        losses.append(loss)
        steps += milliseconds
    torch.save(model.state_dict(), checkpoint)
    return DemoRun(head, accuracies, losses, statistics.median(steps), _peak_memory_mb() - before, checkpoint)


def _loader(model: nn.Module, recipe: DemoRecipe, split: Split) -> Any:
    training = split == "train"
    config = resolve_model_data_config(model, {"img_size": recipe.size, "crop_pct": 1.0})
    augmentation: dict[str, Any] = dict(no_aug=False, scale=(0.7, 1.0), vflip=0.5, color_jitter=None)
    return create_loader(
        create_dataset("", root=str(recipe.data), split=split, is_training=training),
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
        **(augmentation if training else {}),
    )


def _peak_memory_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
