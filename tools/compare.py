"""Train small networks on the same pictures, several seeds each, and compare them; without a mode: every head."""

from __future__ import annotations

from studies import bilinear, heads, motion, planted  # noqa: F401
from studies.modes import COMPARISONS, run_mode

from covpool_plugins.command_line import run_tool


def main(argv: list[str] | None = None) -> None:
    run_mode(COMPARISONS, __doc__ or "", default="heads", argv=argv)


if __name__ == "__main__":
    run_tool(main)
