"""Train networks on the same pictures, several seeds each, and compare them.

Without a mode every head is trained from scratch; with --backbone a pretrained network is fine-tuned.
"""

from __future__ import annotations

import sys

from studies import bilinear, finetuning, heads, motion, planted  # noqa: F401
from studies.modes import COMPARISONS, run_mode

from covpool_plugins.command_line import run_tool


def main(argv: list[str] | None = None) -> None:
    example = "python tools/compare.py heads --json out/compare.json --plot out/compare.png"
    argv = sys.argv[1:] if argv is None else argv
    pretrained = any(argument.split("=")[0] == "--backbone" for argument in argv)
    run_mode(COMPARISONS, __doc__ or "", example, argv, default="finetune" if pretrained else "heads")


if __name__ == "__main__":
    run_tool(main)
