"""Measure the package: time, memory and accuracy of its parts against the published forms."""

from __future__ import annotations

from studies import convergence, gpu, operators, pools, roots, scaling, whitening_layers  # noqa: F401
from studies.modes import MODES, run_mode

from covpool_plugins.command_line import run_tool


def main(argv: list[str] | None = None) -> None:
    run_mode(MODES, __doc__ or "", "python tools/benchmark.py linalg --channels 256 --positions 49", argv)


if __name__ == "__main__":
    run_tool(main)
