"""Train, test and explain three heads on photographs that ship inside scikit-image; nothing is downloaded."""

from pathlib import Path

from covpool_plugins.command_line import Parser, run_tool


def main() -> None:
    parser = Parser(__doc__ or "", "python tools/demo.py --out out/demo")
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder for all results (out/demo)")
    parser.add_argument("--epochs", type=int, default=6, help="training epochs of each head (6)")
    args = parser.parse_args()
    if args.epochs < 1:
        parser.error(f"--epochs must be at least 1, got {args.epochs}")

    from studies.demo import run_demo

    run_demo(args.out, args.epochs)


if __name__ == "__main__":
    run_tool(main)
