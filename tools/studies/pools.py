"""The ``pool``, ``head`` and ``network`` modes: time and memory of every pool against average pooling.

``pool`` measures the pools alone, ``head`` whole heads of ResNet-50 (reduction, pool, 1000 classes, all gradients),
both against the published layers too; ``network`` measures a training step of a whole network.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from covpool_plugins.errors import OptionError, one_line
from covpool_plugins.linalg import packed_size
from covpool_plugins.pooling import create_pool, list_pools, pool_options
from covpool_plugins.pooling.reduction import DEFAULT_CHANNELS, conv_bn_relu
from covpool_plugins.timm_plugin import create_model, list_heads

from .baselines import BASELINES, ISQRT, MPA, SVD_PADE, Baseline
from .measure import correlated_features
from .modes import MODES, Mode, add_common_arguments, add_names, add_numbers
from .sections import Contender, Section, run_sections

AVERAGE, CLASSES = "gap", 1000
PUBLISHED = (SVD_PADE, ISQRT, MPA)


class PublishedPool(nn.Module):
    """Reduction by 1x1 convolution, and a published square root in its plain form."""

    def __init__(self, in_channels: int, reduce_channels: int | None, baseline: Baseline) -> None:
        super().__init__()
        self.reduction = conv_bn_relu(in_channels, reduce_channels) if reduce_channels else nn.Identity()
        self.baseline = baseline
        self.out_features = packed_size(reduce_channels or in_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.baseline(self.reduction(x).flatten(2))


class NoPool(nn.Module):
    """The reduction alone, its features cut or filled with zeros to the length of a packed covariance.

    Its head tells what the layers cost that every head has: no pool can be faster.
    """

    def __init__(self, in_channels: int, reduce_channels: int) -> None:
        super().__init__()
        self.reduction = conv_bn_relu(in_channels, reduce_channels)
        self.out_features = packed_size(reduce_channels)

    def forward(self, x: Tensor) -> Tensor:
        features = self.reduction(x).flatten(1)
        return nn.functional.pad(features, (0, self.out_features - features.shape[1]))


def add_arguments(parser: argparse.ArgumentParser, channels: int) -> None:
    """The options of ``pool`` and ``head``."""
    add_numbers(parser, "--channels", channels)
    add_numbers(parser, "--sides", [7, 14], "of the maps")
    add_names(parser, "--pools", list_pools())
    add_common_arguments(parser)


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backbone", default="resnet50", metavar="NAME", help="timm model (resnet50)")
    add_names(parser, "--heads", list_heads())
    add_numbers(parser, "--size", 224, "of the pictures")
    add_common_arguments(parser, batch=8)


def _pool_sections(arguments: argparse.Namespace) -> Iterator[Section]:
    """Maps (batch, C, side, side) to vectors, without a reduction."""
    for side in arguments.sides:
        yield _section(f"pools on {arguments.channels} x {side} x {side}", _pools(arguments, None), arguments, side)


def _head_sections(arguments: argparse.Namespace) -> Iterator[Section]:
    """Maps (batch, C, side, side) through reduction, pool and classifier to scores, with all gradients."""
    reduced = min(DEFAULT_CHANNELS, arguments.channels)
    for side in arguments.sides:
        bound = ("no pool, same layers", "bound", NoPool(arguments.channels, reduced).to(arguments.device))
        heads = (
            (name, kind, nn.Sequential(pool, nn.Linear(pool.out_features, CLASSES, device=arguments.device)))
            for name, kind, pool in (bound, *_pools(arguments, reduced))
        )
        title = f"heads on {arguments.channels} x {side} x {side}, {CLASSES} classes"
        yield _section(title, heads, arguments, side)


def _pools(arguments: argparse.Namespace, reduced: int | None) -> Iterator[tuple[str, str, Any]]:
    torch.manual_seed(0)
    for name in PUBLISHED:
        yield name, "baseline", PublishedPool(arguments.channels, reduced, BASELINES[name]).to(arguments.device)
    for name in dict.fromkeys([AVERAGE, *arguments.pools]):
        # Every pool with the same number of channels, also those that the papers use without a reduction.
        options: dict[str, Any] = {"reduce_channels": reduced} if "reduce_channels" in pool_options(name) else {}
        yield name, "ours", create_pool(name, arguments.channels, device=arguments.device, **options)


def _section(
    title: str, modules: Iterable[tuple[str, str, nn.Module]], arguments: argparse.Namespace, side: int
) -> Section:
    X = correlated_features(arguments.batch, arguments.channels, side**2, arguments.device).unflatten(-1, (side, side))
    against = (SVD_PADE, ISQRT, f"{AVERAGE}, ours")
    return Section(title, [Contender(*module) for module in modules], X, against=against, details={"side": side})


def _network_section(arguments: argparse.Namespace) -> Section:
    torch.manual_seed(0)
    heads = dict.fromkeys([AVERAGE, *arguments.heads])
    networks = {head: _network(arguments, head) for head in heads}
    X = torch.randn(arguments.batch, 3, arguments.size, arguments.size).to(arguments.device)
    try:
        networks[AVERAGE](X)
    except (AssertionError, RuntimeError, ValueError) as error:
        network = f"{arguments.backbone} on {arguments.batch} pictures of {arguments.size}"
        raise OptionError(f"{network}: {one_line(error)}") from None
    contenders = [Contender(head, "ours", network) for head, network in networks.items()]
    title = f"{arguments.backbone} at {arguments.size}, {CLASSES} classes, all gradients"
    return Section(title, contenders, X, against=(f"{AVERAGE}, ours",), details={"backbone": arguments.backbone})


def _network(arguments: argparse.Namespace, head: str) -> nn.Module:
    """With as many channels for every head, also for those that the papers use without a reduction."""
    reduced: dict[str, Any] = {"reduce_channels": DEFAULT_CHANNELS} if "reduce_channels" in pool_options(head) else {}
    return create_model(arguments.backbone, head, num_classes=CLASSES, **reduced).to(arguments.device)


def _add(
    name: str, example: str, add_arguments: Callable[..., None], sections: Callable[..., Iterable[Section]]
) -> None:
    def run(arguments: argparse.Namespace) -> None:
        run_sections(arguments, sections(arguments))

    MODES.add(name, Mode(__doc__ or "", f"python tools/benchmark.py {name} {example}", add_arguments, run))


_add("pool", "--pools svdpade isqrt --sides 7", partial(add_arguments, channels=256), _pool_sections)
_add("head", "--pools svdpade isqrt --sides 7", partial(add_arguments, channels=2048), _head_sections)
_add(
    "network", "--heads svdpade isqrt --batch 8", add_network_arguments, lambda arguments: [_network_section(arguments)]
)
