"""The ``pool`` and ``head`` modes: what every pool costs, alone and in a whole classifier head."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from covpool_plugins.command_line import positive_integer
from covpool_plugins.linalg import packed_size
from covpool_plugins.pooling import POOLS, create_pool, list_pools, pool_options
from covpool_plugins.pooling.reduction import DEFAULT_CHANNELS, ConvReduction

from .baselines import BASELINES, ISQRT, MPA, SVD_PADE, Baseline
from .measure import Function, correlated_features
from .modes import MODES, Mode, add_common_arguments
from .sections import Contender, Section, run_sections

AVERAGE = "gap"
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

    def __init__(self, in_channels: int, reduce_channels: int | None) -> None:
        super().__init__()
        self.reduction = ConvReduction(in_channels, reduce_channels) if reduce_channels else nn.Identity()
        self.out_features = packed_size(reduce_channels or in_channels)

    def forward(self, x: Tensor) -> Tensor:
        features = self.reduction(x).flatten(1)
        return nn.functional.pad(features, (0, self.out_features - features.shape[1]))


def add_arguments(parser: argparse.ArgumentParser, channels: int) -> None:
    """The options of both modes."""
    parser.add_argument("--channels", type=positive_integer, default=channels, metavar="C", help=f"({channels})")
    parser.add_argument(
        "--sides", type=positive_integer, nargs="+", default=[7, 14], metavar="S", help="of the maps (7 14)"
    )
    parser.add_argument("--batch", type=positive_integer, default=32, help="images (32)")
    parser.add_argument("--pools", nargs="+", default=list_pools(), metavar="POOL", help="(all)")
    add_common_arguments(parser)


def run(arguments: argparse.Namespace, sections: Callable[[argparse.Namespace, int], Section]) -> None:
    """Measure, print each section as it is done, write the file."""
    for name in arguments.pools:
        POOLS[name]  # raises for a name that does not exist
    run_sections(arguments, arguments.mode, (sections(arguments, side) for side in arguments.sides))


def pool_section(arguments: argparse.Namespace, side: int) -> Section:
    """Reduced maps (batch, C, side, side) to vectors, without a reduction."""
    contenders = _contenders(arguments, None, lambda pool: pool)
    title = f"pools on {arguments.channels} x {side} x {side}"
    return _section(title, contenders, arguments, side)


def head_section(arguments: argparse.Namespace, side: int) -> Section:
    """Maps (batch, C, side, side) through reduction, pool and classifier to 1000 scores, with all gradients."""

    def with_classifier(pool: nn.Module) -> nn.Module:
        return nn.Sequential(pool, nn.Linear(int(pool.out_features), 1000, device=arguments.device))  # type: ignore[arg-type]

    reduced = min(DEFAULT_CHANNELS, arguments.channels)
    bound = NoPool(arguments.channels, reduced).to(arguments.device)
    contenders = [
        ("no pool, same layers", "bound", with_classifier(bound)),
        *_contenders(arguments, reduced, with_classifier),
    ]
    return _section(f"heads on {arguments.channels} x {side} x {side}, 1000 classes", contenders, arguments, side)


def _contenders(
    arguments: argparse.Namespace, reduced: int | None, finish: Callable[[nn.Module], nn.Module]
) -> Iterator[tuple[str, str, nn.Module]]:
    torch.manual_seed(0)
    for name in PUBLISHED:
        pool = PublishedPool(arguments.channels, reduced, BASELINES[name]).to(arguments.device)
        yield name, "baseline", finish(pool)
    for name in dict.fromkeys([AVERAGE, *arguments.pools]):
        # Every pool with the same number of channels, also those that the papers use without a reduction.
        options: dict[str, Any] = {"reduce_channels": reduced} if "reduce_channels" in pool_options(name) else {}
        yield name, "ours", finish(create_pool(name, arguments.channels, device=arguments.device, **options))


def _section(
    title: str, contenders: Iterable[tuple[str, str, nn.Module]], arguments: argparse.Namespace, side: int
) -> Section:
    X = correlated_features(arguments.batch, arguments.channels, side * side, arguments.device)
    found = [Contender(name, kind, _callable(module)) for name, kind, module in contenders]
    against = (SVD_PADE, ISQRT, f"{AVERAGE}, ours")
    return Section(title, found, X.unflatten(-1, (side, side)), None, None, against, details={"side": side})


def _callable(module: nn.Module) -> Function:
    return module


for _name, _channels, _sections, _what in [
    ("pool", 256, pool_section, "Every pool alone: time and memory against the published layers and average pooling."),
    ("head", 2048, head_section, "Whole heads of ResNet-50: reduction, pool, 1000 classes, with all gradients."),
]:
    MODES.add(
        _name,
        Mode(
            _what,
            f"python tools/benchmark.py {_name} --pools svdpade isqrt --sides 7 --json out/{_name}.json",
            partial(add_arguments, channels=_channels),
            partial(run, sections=_sections),
        ),
    )
