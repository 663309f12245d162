"""The section of the ``gpu`` mode on a training step of a whole network, by head."""

from __future__ import annotations

import gc
import statistics
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from covpool_plugins.pooling.reduction import DEFAULT_CHANNELS
from covpool_plugins.timm_plugin import create_model

from .baselines import BASELINES, ISQRT, MPA, SVD_PADE
from .gpu_report import Cells, Clock, Report, Setting, Stopwatch, attempt
from .pools import PublishedPool

AVERAGE = "gap"
CAP = 1.5  # seconds for the steps that count
LONGEST_STEP = 3.0  # of a step that takes longer there is one
MOST_STEPS, FEWEST_STEPS = 12, 3


@dataclass(frozen=True)
class HeadRow:
    """A head by name with its options, or a published form."""

    label: str
    head: str
    options: dict[str, Any] = field(default_factory=dict)
    last_stride: int | None = None


def _svdpade(route: str, compute: str, last_stride: int | None = None) -> HeadRow:
    options = {"route": route, "compute": compute}
    return HeadRow(f"svdpade, {route}, {compute}", "svdpade", options, last_stride)


HEADS = [
    HeadRow(AVERAGE, AVERAGE),
    _svdpade("eigh", "mixed"),
    _svdpade("products", "mixed"),
    _svdpade("eigh", "float32"),
    _svdpade("products", "float32"),
    _svdpade("auto", "mixed"),
    HeadRow("isqrt", "isqrt"),
    HeadRow("mpa", "mpa"),
    HeadRow("seb", "seb"),
    HeadRow("bcnn, 256 channels", "bcnn", {"reduce_channels": DEFAULT_CHANNELS}),
    HeadRow("cbp", "cbp"),
    HeadRow(ISQRT, ISQRT),
    HeadRow(MPA, MPA),
    HeadRow(f"{AVERAGE}, again", AVERAGE),
    HeadRow(AVERAGE, AVERAGE, last_stride=1),
    _svdpade("eigh", "mixed", 1),
    _svdpade("products", "mixed", 1),
    _svdpade("eigh", "float32", 1),
    _svdpade("products", "float32", 1),
    HeadRow("isqrt", "isqrt", last_stride=1),
    HeadRow(ISQRT, ISQRT, last_stride=1),
    HeadRow(SVD_PADE, SVD_PADE),
]
QUICK = (0, 2, 11, 16)


class PublishedNetwork(nn.Module):
    """A timm backbone, a published pool outside of autocast, a classifier."""

    def __init__(self, backbone: str, baseline: str, classes: int, last_stride: int | None) -> None:
        super().__init__()
        network: Any = create_model(backbone, AVERAGE, num_classes=0, global_pool="", last_stride=last_stride)
        self.backbone = network
        self.pool = PublishedPool(int(network.num_features), DEFAULT_CHANNELS, BASELINES[baseline])
        self.fc = nn.Linear(self.pool.out_features, classes)

    def forward(self, x: Tensor) -> Tensor:
        features = self.pool.reduction(self.backbone(x)).flatten(2)
        with torch.autocast(x.device.type, enabled=False):
            vectors = self.pool.baseline(features.float())
        return self.fc(vectors)


def training_steps(setting: Setting, report: Report, clock: Clock) -> None:
    """A step of ResNet-50 with SGD in bfloat16 autocast and channels_last: time, images a second, peak memory."""
    backbone, size, batch, classes = ("test_resnet", 32, 2, 10) if setting.quick else ("resnet50", 224, 128, 1000)
    report.notes.append(
        f"{backbone}, batch {batch} of {size} px, bfloat16 autocast, channels_last, SGD with momentum; last stride 1 "
        "gives 14 x 14 positions instead of 7 x 7 at 224"
    )
    benchmark, tf32 = torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.benchmark = torch.backends.cudnn.allow_tf32 = True
    base: dict[int | None, float] = {}
    try:
        x = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
        x = x.to(setting.device).contiguous(memory_format=torch.channels_last)
        labels = (torch.arange(batch) % classes).to(setting.device)
        heads = [HEADS[index] for index in QUICK] if setting.quick else HEADS
        for row in heads:
            item = {"head": row.label, "last stride": str(row.last_stride or 2)}
            attempt(report, clock, item, partial(_measure, row, backbone, classes, x, labels, base, setting))
    finally:
        torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = benchmark, tf32


def _network(row: HeadRow, backbone: str, classes: int) -> nn.Module:
    torch.manual_seed(0)
    if row.head in BASELINES:
        return PublishedNetwork(backbone, row.head, classes, row.last_stride)
    return create_model(
        backbone, row.head, num_classes=classes, last_stride=row.last_stride, head_kwargs=dict(row.options)
    )


def _measure(
    row: HeadRow,
    backbone: str,
    classes: int,
    x: Tensor,
    labels: Tensor,
    base: dict[int | None, float],
    setting: Setting,
) -> Cells:
    gc.collect()
    if setting.cuda:
        torch.cuda.empty_cache()
    network = _network(row, backbone, classes).to(setting.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)
    step = partial(_steps, network, optimizer, x, labels, setting)
    *_, warm = step(2)
    if setting.cuda:
        torch.cuda.reset_peak_memory_stats(setting.device)
    count = 1 if warm > LONGEST_STEP else min(MOST_STEPS, max(FEWEST_STEPS, int(CAP / warm)))
    seconds = statistics.median(step(count))
    base.setdefault(row.last_stride, seconds)
    return {
        "ms": 1e3 * seconds,
        "vs gap": seconds / base[row.last_stride],
        "images/s": len(x) / seconds,
        "peak, GB": torch.cuda.max_memory_allocated(setting.device) / 1e9 if setting.cuda else None,
        "steps": count,
    }


def _steps(
    network: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, labels: Tensor, setting: Setting, count: int
) -> list[float]:
    """Seconds of each step; nothing waits for the device in between but the network itself."""
    watch = Stopwatch(setting)
    watch.mark()
    for _ in range(count):
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            loss = nn.functional.cross_entropy(network(x), labels)
        loss.backward()
        optimizer.step()
        watch.mark()
    return watch.seconds()
