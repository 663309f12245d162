"""The ``pool`` and ``head`` modes: time and memory of every pool against the published layers and average pooling.

``pool`` measures the pools alone, ``head`` whole heads of ResNet-50: reduction, pool, 1000 classes, with all gradients.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from covpool_plugins.command_line import positive_integer
from covpool_plugins.linalg import packed_size
from covpool_plugins.pooling import create_pool, list_pools, pool_options
from covpool_plugins.pooling.reduction import DEFAULT_CHANNELS, ConvReduction

from .baselines import BASELINES, ISQRT, MPA, SVD_PADE, Baseline
from .measure import correlated_features
from .modes import MODES, Mode, add_common_arguments
from .networks import AVERAGE, CLASSES
from .sections import Contender, Section, run_sections

PUBLISHED = (SVD_PADE, ISQRT, MPA)


class PublishedPool(nn.Module):
    """Reduction by 1x1 convolution, and a published square root in its plain form."""

    def __init__(self, in_channels: int, reduce_channels: int | None, baseline: Baseline) -> None:
        super().__init__()
        self.reduction = ConvReduction(in_channels, reduce_channels) if reduce_channels else nn.Identity()
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
        self.reduction = ConvReduction(in_channels, reduce_channels)
        self.out_features = packed_size(reduce_channels)

    def forward(self, x: Tensor) -> Tensor:
        features = self.reduction(x).flatten(1)
        return nn.functional.pad(features, (0, self.out_features - features.shape[1]))


def add_arguments(parser: argparse.ArgumentParser, channels: int) -> None:
    """The options of both modes."""
    parser.add_argument("--channels", type=positive_integer, default=channels, metavar="C", help=f"({channels})")
    parser.add_argument(
        "--sides", type=positive_integer, nargs="+", default=[7, 14], metavar="S", help="of the maps (7 14)"
    )
    parser.add_argument("--pools", nargs="+", choices=list_pools(), default=list_pools(), metavar="POOL", help="(all)")
    add_common_arguments(parser)


def run(arguments: argparse.Namespace, sections: Callable[[argparse.Namespace], Iterator[Section]]) -> None:
    """Measure, print each section as it is done, write the file."""
    run_sections(arguments, sections(arguments))


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


for _name, _channels, _sections in (("pool", 256, _pool_sections), ("head", 2048, _head_sections)):
    _example = f"python tools/benchmark.py {_name} --pools svdpade isqrt --sides 7 --json out/{_name}.json"
    _add_arguments, _run = partial(add_arguments, channels=_channels), partial(run, sections=_sections)
    MODES.add(_name, Mode(__doc__ or "", _example, _add_arguments, _run))
