"""Measure the package: time, memory and accuracy of its parts against the published forms."""

from __future__ import annotations

from studies import convergence, gpu, networks, operators, pools, reliability, roots, scaling, whitening_layers  # noqa: F401
from studies.modes import MODES

from covpool_plugins.command_line import Parser, run_tool


def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__ or "", "python tools/benchmark.py linalg --channels 256 --positions 49")
    modes = parser.add_subparsers(dest="mode", required=True, metavar="MODE", help=f"one of: {', '.join(MODES)}")
    for name, mode in MODES.items():
        mode.add_arguments(modes.add_parser(name, description=mode.description, example=mode.example))
    arguments = parser.parse_args(argv)
    MODES[arguments.mode].run(arguments)


if __name__ == "__main__":
    run_tool(main)
