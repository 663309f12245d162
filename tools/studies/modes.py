"""The table of what ``tools/benchmark.py`` can do; a mode is one row."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from covpool_plugins.command_line import available_device, positive_integer
from covpool_plugins.errors import require_extra
from covpool_plugins.files import check_file
from covpool_plugins.tables import Table


@dataclass(frozen=True)
class Mode:
    """A sub-command: what it is for, an example, its options, and what it does with them."""

    description: str
    example: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]


MODES: Table[Mode] = Table("benchmark mode")


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of every mode that takes time: repetitions, threads, device, JSON file."""
    parser.add_argument("--repeats", type=positive_integer, default=5, help="repetitions that count (5)")
    parser.add_argument("--threads", type=positive_integer, default=1, help="CPU threads (1)")
    parser.add_argument("--device", type=available_device, default=torch.device("cpu"), help="cpu or cuda (cpu)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")


def check_outputs(json: Path | None, plot: Path | None = None) -> None:
    """Raise before anything is measured if a file could not be written afterwards.

    Raises:
        OptionError: naming the file.
        MissingExtraError: for a plot, without matplotlib.
    """
    if json is not None:
        check_file(json)
    if plot is not None:
        check_file(plot, (".png", ".svg", ".pdf"))
        require_extra("matplotlib", "explain")


def environment(device: torch.device) -> dict[str, Any]:
    """What the figures depend on besides the code."""
    return {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
