"""A network of the shape that the plugins build, small enough to check by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from covpool_plugins.pooling import Pool, create_pool

SIDE = 32


class Head(nn.Module):
    def __init__(self, pool: Pool, num_classes: int) -> None:
        super().__init__()
        self.global_pool = pool
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(pool.out_features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.dropout(self.global_pool(x)))


class Block(nn.Module):
    """A residual block with both of the in-place operations that a probe must not meet."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        x = self.norm(self.conv(x))
        x += shortcut
        return self.act(x)


class SmallNet(nn.Module):
    """Input (B, 3, 32, 32), a last map of 12 channels at 8 x 8 positions."""

    pretrained_cfg: ClassVar = dict(
        input_size=(3, SIDE, SIDE), mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3), crop_pct=1.0, interpolation="bilinear"
    )

    def __init__(self, pool: Pool, num_classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 4, stride=4), nn.BatchNorm2d(12), nn.ReLU(inplace=True))
        self.stage1 = nn.Sequential(Block(12), Block(12))
        self.stage2 = nn.Sequential(Block(12), Block(12))
        self.head = Head(pool, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.stage2(self.stage1(self.stem(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.forward_features(x))


@pytest.fixture
def small_net() -> Callable[..., SmallNet]:
    def build(pool: str | Pool = "svdpade", seed: int = 0, **options: Any) -> SmallNet:
        torch.manual_seed(seed)
        made = create_pool(pool, 12, **options) if isinstance(pool, str) else pool
        return SmallNet(made).eval()

    return build


@pytest.fixture
def image() -> Tensor:
    """A normalised input with some structure."""
    torch.manual_seed(1)
    coarse = torch.randn(1, 3, 8, 8)
    return nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bilinear") + 0.3 * torch.randn(1, 3, SIDE, SIDE)
