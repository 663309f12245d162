"""The ``network`` mode: forward and backward of a whole network's training step by head, against average pooling."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import nn

from covpool_plugins.command_line import positive_integer
from covpool_plugins.errors import OptionError, one_line
from covpool_plugins.pooling import pool_options
from covpool_plugins.pooling.reduction import DEFAULT_CHANNELS
from covpool_plugins.timm_plugin import create_model, list_heads

from .modes import MODES, Mode, add_common_arguments
from .sections import Contender, Section, run_sections

AVERAGE = "gap"
CLASSES = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the mode."""
    parser.add_argument("--backbone", default="resnet50", metavar="NAME", help="timm model (resnet50)")
    parser.add_argument("--heads", nargs="+", default=list_heads(), choices=list_heads(), metavar="HEAD", help="(all)")
    parser.add_argument("--size", type=positive_integer, default=224, help="of the pictures (224)")
    add_common_arguments(parser, batch=8)


def run(arguments: argparse.Namespace) -> None:
    """Measure, print, write the file."""
    run_sections(arguments, [_section(arguments)])


def _section(arguments: argparse.Namespace) -> Section:
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


EXAMPLE = "python tools/benchmark.py network --heads svdpade isqrt --batch 8"
MODES.add("network", Mode(__doc__ or "", EXAMPLE, add_arguments, run))
