"""What the command-line tools share: a parser, the handling of errors, types of arguments, a table printer."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch

from .errors import on_one_line, one_line
from .interruption import INTERRUPTED, interrupt_by_exception, program_name


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, with an example at the end of ``--help``."""

    def __init__(self, description: str, example: str, **options: Any) -> None:
        super().__init__(
            **{"prog": program_name() if sys.argv[0].endswith("__main__.py") else None, **options},
            description=description,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def add_runner_arguments(self) -> None:
        """The arguments of the tools that run an MMEngine runner."""
        self.add_argument("config", help="path of the config")
        self.add_argument("--work-dir", metavar="DIR", help="folder for what is written (work_dirs/<config name>)")
        self.add_argument(
            "--cfg-options",
            nargs="+",
            default=[],
            metavar="KEY=VALUE",
            help="override parts of the config; data_root=DIR moves all its data sets",
        )
        self.add_argument("--launcher", choices=("none", "pytorch"), default="none", help="pytorch: run by torchrun")
        # torch.distributed.launch, and so mim, passes it; the environment says the same.
        self.add_argument("--local-rank", type=int, help=argparse.SUPPRESS)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {on_one_line(message)}\n")


def run_tool(main: Callable[[], None]) -> NoReturn:
    """Run a tool: bad input (``ValueError``, ``OSError``, ``ImportError``) is one line and status 2.

    Ctrl-C ends with the shell's status for it, 130, while the command is imported (see :mod:`.interruption`) as later,
    and a reader that has closed the pipe, such as ``head``, with 141.
    """
    try:
        interrupt_by_exception()
        main()
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()
        sys.exit(141)
    except (ValueError, OSError, ImportError) as error:
        _discard_output()
        print(f"{program_name()}: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{program_name()}: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    sys.exit(0)


def _discard_output() -> None:
    """Let what standard output still holds go nowhere if it cannot be written: Python would say so at its end."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def available_device(name: str) -> torch.device:
    """A device on which a tensor can be made, as an ``argparse`` type."""
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(f"{name!r} is not available: {one_line(error)}") from None


def positive_integer(text: str) -> int:
    """An integer >= 1, as an ``argparse`` type."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer >= 1, got {text!r}")
    return int(text)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """A Markdown table; the first ``text_columns`` columns are text, the others are numbers, aligned to the right."""
    rule = ["---"] * text_columns + ["---:"] * (len(header) - text_columns)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *rows))
