"""What a test over all explanation methods, or over all heads, needs to know of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from covpool_plugins.pooling import list_pools

# Options with which a method that takes many passes is fast.
CHEAP: dict[str, dict[str, Any]] = {
    "rise": {"masks": 20},
    "extremal_perturbation": {"iterations": 5},
    "maximal_image": {"iterations": 3},
    "inverse_image": {"iterations": 3},
    "smooth_grad": {"samples": 3},
    "integrated_gradients": {"points": 3},
}
# The pool that a method has a meaning for, where that is not every square root of a covariance.
POOL_OF = {"democratic_weights": "democratic"}
# Methods that average pooling has no answer to.
SECOND_ORDER = {"democratic_weights", "eigen", "energy", "channel_pairs"}
# One pool of each kind of code; the others are tested among the slow.
FAMILIES = ("svdpade", "isqrt", "logcov", "seb", "bcnn", "cbp", "democratic", "crosscov", "moment", "temporal", "gap")
# A ResNet of 30,000 weights as the tools name it.
NARROW = ["--model-kwargs", "channels=(8,8,8,16)", "reduce_channels=8"]


def heads(names: Iterable[str] = (), fast: Iterable[str] = FAMILIES) -> Callable[[Any], Any]:
    """A test over heads, by default over all of them, of which one of each family is fast."""

    def decorate(test: Any) -> Any:
        return pytest.mark.fast_for(*fast)(pytest.mark.parametrize("name", list(names) or list_pools())(test))

    return decorate


def decaying_features(channels: int, positions: int, decades: float = 1) -> Tensor:
    """Features (1, C, M) in float64 with a mean, whose channels' scales fall by so many powers of ten."""
    torch.manual_seed(0)
    scales = torch.logspace(0, -decades, channels, dtype=torch.float64).unsqueeze(-1)
    return scales * torch.randn(1, channels, positions, dtype=torch.float64) + 2.0


class ToLayout(nn.Module):
    """Maps in another layout, with a token in front for ``NLC``."""

    def __init__(self, input_fmt: str) -> None:
        super().__init__()
        self.input_fmt = input_fmt

    def forward(self, x: Tensor) -> Tensor:
        if self.input_fmt == "NHWC":
            return x.permute(0, 2, 3, 1) * 1.0
        tokens = x.flatten(2).mT
        return torch.cat([torch.ones_like(tokens[:, :1]), tokens], dim=1)


MMPRETRAIN = """
model = dict(
    type='ImageClassifier',
    backbone=dict({backbone}),
    neck=dict({neck}),
    head=dict(type='{head}', num_classes=3, in_channels={width}))
data_preprocessor = dict(num_classes=3, mean=[124, 116, 104], std=[58, 57, 56], to_rgb={to_rgb})
test_dataloader = dict(dataset=dict(type='CustomDataset', pipeline=[
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale={scale}, edge='short'),
    dict(type='CenterCrop', crop_size={side}),
    dict(type='PackInputs')]))
"""
CIFAR = "type='ResNet_CIFAR', depth=18, stem_channels=8, base_channels=8, out_indices=(3,)"
AVERAGE = {"neck": "type='GlobalAveragePooling'", "width": 64}


def covariance_neck(in_channels: int = 64, **options: Any) -> str:
    """The neck of a config; ``svdpade`` and 36 entries by default."""
    listed = {"in_channels": in_channels, "reduce_channels": 8} | options
    return ", ".join(
        ["type='covpool_plugins.CovariancePooling'", *(f"{key}={value!r}" for key, value in listed.items())]
    )


def mmpretrain_config(folder: Path, **parts: Any) -> Path:
    """A config file of a small classifier; ``parts`` are fields of the text above."""
    defaults = {"backbone": CIFAR, "neck": covariance_neck(), "head": "LinearClsHead", "width": 36}
    path = folder / "config.py"
    path.write_text(MMPRETRAIN.format(**defaults | {"to_rgb": True, "scale": 48, "side": 32} | parts))
    return path


def random_states() -> list[Any]:
    """Of torch, NumPy and Python."""
    return [torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()]
