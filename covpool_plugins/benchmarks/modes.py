"""The table of what ``tools/benchmark.py`` can do; a mode is one row."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..checks import check_choice
from ..command_line import available_device
from ..errors import OptionError, require_extra
from ..files import check_folder
from ..tables import Table


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
    parser.add_argument("--repeats", type=positive, default=5, help="repetitions that count (5)")
    parser.add_argument("--threads", type=positive, default=1, help="CPU threads (1)")
    parser.add_argument("--device", type=available_device, default=torch.device("cpu"), help="cpu or cuda (cpu)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")


def positive(text: str) -> int:
    """An integer >= 1, as an ``argparse`` type."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer >= 1, got {text!r}")
    return int(text)


def check_output(path: Path | None) -> None:
    """Raise :class:`OptionError` for what cannot become a file: better before the measurement than after."""
    if path is not None and path.is_dir():
        raise OptionError(f"{path} is a folder; name a file")
    if path is not None:
        check_folder(path.parent)


def check_plot(path: Path | None) -> None:
    """As :func:`check_output`, for a picture; the suffix says of which kind.

    Raises:
        OptionError: for another kind than those below.
        MissingExtraError: without matplotlib.
    """
    if path is None:
        return
    check_choice("the suffix of a plot", path.suffix, (".png", ".svg", ".pdf"))
    check_output(path)
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
