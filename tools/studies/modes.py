"""The tables of what ``tools/benchmark.py`` and ``tools/compare.py`` can do: a mode is one row."""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from covpool_plugins.command_line import Parser, available_device, positive_integer
from covpool_plugins.errors import OptionError, require_extra
from covpool_plugins.files import check_file
from covpool_plugins.tables import Table


@dataclass(frozen=True)
class Mode:
    """A sub-command: what it is for, an example, its options, and what it does with them."""

    description: str
    example: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], object]


MODES: Table[Mode] = Table("benchmark mode")
COMPARISONS: Table[Mode] = Table("comparison")


def run_mode(
    modes: Table[Mode], description: str, example: str, argv: Sequence[str] | None = None, default: str = ""
) -> None:
    """Run the mode that the first argument names.

    Args:
        modes: those that there are.
        description, example: of the tool.
        argv: the arguments; those of the process by default.
        default: the mode if the arguments begin with an option, or there are none.
    """
    argv = sys.argv[1:] if argv is None else argv
    if default and (not argv or (argv[0].startswith("-") and argv[0] not in ("-h", "--help"))):
        argv = [default, *argv]
    parser = Parser(description, example)
    without = f"; without one: {default}" if default else ""
    listed = f"one of: {', '.join(modes)}{without}"
    subparsers = parser.add_subparsers(dest="mode", required=True, metavar="MODE", help=listed)
    for name, mode in modes.items():
        mode.add_arguments(subparsers.add_parser(name, description=mode.description, example=mode.example))
    arguments = parser.parse_args(argv)
    modes[arguments.mode].run(arguments)


def output_file(text: str, suffixes: Sequence[str] = ()) -> Path:
    """A file that can be written, as an ``argparse`` type."""
    try:
        check_file(text, suffixes)
    except OptionError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return Path(text)


def plot_file(text: str) -> Path:
    """A picture file that matplotlib can write, as an ``argparse`` type.

    Raises:
        MissingExtraError: without matplotlib.
    """
    require_extra("matplotlib", "explain")
    return output_file(text, (".png", ".svg", ".pdf"))


def existing_folder(text: str) -> Path:
    """A folder that is there, as an ``argparse`` type."""
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text}: no such folder")
    return Path(text)


def add_numbers(parser: argparse.ArgumentParser, option: str, default: int | Sequence[int], text: str = "") -> None:
    """An option that takes a positive integer, or several where the default is several."""
    several = not isinstance(default, int)
    shown = " ".join(map(str, default)) if not isinstance(default, int) else default
    help_text = f"{text} ({shown})".strip()
    nargs = "+" if several else None
    parser.add_argument(option, type=positive_integer, nargs=nargs, default=default, metavar="N", help=help_text)


def add_names(
    parser: argparse.ArgumentParser, option: str, names: Iterable[str], default: Sequence[str] | None = None
) -> None:
    """An option that takes some of these names; the default is all."""
    names = list(names)
    help_text = f"of: {', '.join(names)} ({' '.join(default) if default else 'all'})"
    parser.add_argument(option, nargs="+", choices=names, default=default or names, metavar="NAME", help=help_text)


def add_training_arguments(parser: argparse.ArgumentParser, recipe: Any, settings: Sequence[str], seeds: int) -> None:
    """The options of every comparison: how many trainings, a file for the numbers, and integer fields of ``recipe``."""
    add_numbers(parser, "--seeds", seeds, "trainings of each row")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write all numbers to this file")
    for name in settings:
        add_numbers(parser, f"--{name.replace('_', '-')}", getattr(recipe, name))


def add_threads_and_json(parser: argparse.ArgumentParser) -> None:
    """The options of every mode that measures on one or more CPU threads."""
    add_numbers(parser, "--threads", 1, "CPU threads")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write all figures to this file")


def add_common_arguments(parser: argparse.ArgumentParser, batch: int | None = 32) -> None:
    """The options of every mode that takes times; without a default ``batch`` there is no ``--batch``."""
    if batch is not None:
        add_numbers(parser, "--batch", batch, "pictures")
    add_numbers(parser, "--repeats", 5, "repetitions that count")
    parser.add_argument("--device", type=available_device, default=torch.device("cpu"), help="cpu or cuda (cpu)")
    add_threads_and_json(parser)


def environment(device: torch.device | None = None) -> dict[str, Any]:
    """What the figures depend on besides the code; the device is the CPU by default."""
    return {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device and device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
