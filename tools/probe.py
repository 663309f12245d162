"""Compare pools on frozen features of a network, on a folder of classes or on photographs that ship."""

from __future__ import annotations

from covpool_plugins.command_line import Parser, run_tool


def main(argv: list[str] | None = None) -> None:
    from studies.probing import add_arguments, run

    example = "python tools/probe.py --model tf_efficientnet_lite0 --images FOLDER --pools gap svdpade --out out/probe"
    parser = Parser(__doc__ or "", example)
    add_arguments(parser)
    run(parser.parse_args(argv))


if __name__ == "__main__":
    run_tool(main)
