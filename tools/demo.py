"""Fine-tune, test and explain three heads on photographs that ship with packages; nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

from covpool_plugins.command_line import Parser, positive_integer, run_tool


def main() -> None:
    parser = Parser(__doc__ or "", "python tools/demo.py --out out/demo")
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder for all results (out/demo)")
    parser.add_argument("--epochs", type=positive_integer, default=2, help="training epochs of each head (2)")
    arguments = parser.parse_args()

    from studies.demo import run_demo

    run_demo(arguments.out, arguments.epochs)


if __name__ == "__main__":
    run_tool(main)
