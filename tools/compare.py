"""Train small networks on the same pictures, several seeds each, and compare them; without a mode: every head."""

from __future__ import annotations

from studies import bilinear, heads, motion, planted  # noqa: F401
from studies.modes import COMPARISONS, run_mode

from covpool_plugins.command_line import run_tool


def main(argv: list[str] | None = None) -> None:
    example = "python tools/compare.py heads --json out/compare.json --plot out/compare.png"
    run_mode(COMPARISONS, __doc__ or "", example, argv, default="heads")


if __name__ == "__main__":
    run_tool(main)
