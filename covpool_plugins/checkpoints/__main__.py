"""Convert a checkpoint of the original repositories for timm or MMPretrain, and back."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from tqdm import tqdm

from ..command_line import Parser, run_tool
from . import ORDERS, TARGETS, Converted, load_original, summary, write

EXAMPLE = "python tools/convert.py model_best.pth.tar --to timm --out converted/resnet50_svdpade"


def main(argv: list[str] | None = None) -> None:
    arguments = parse(argv)
    size = arguments.checkpoint.stat().st_size
    with tqdm(total=size, unit="B", unit_scale=True, desc="checking", disable=None, leave=False) as bar:
        hints = dict(
            arch=arguments.arch, head=arguments.head, triangle=arguments.triangle, averaged=not arguments.no_ema
        )
        converted = load_original(arguments.checkpoint, **hints, progress=bar.update)
        print(_table(converted))
        if arguments.to is None:
            return
        bar.set_description("writing")
        files = write(converted, arguments.to, arguments.out, arguments.force)
    print("\n".join(f"wrote {path}" for path in files))
    print(_next_step(converted, arguments))


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__ or "", EXAMPLE)
    parser.add_argument("checkpoint", type=Path, help="file of torch.save or safetensors, or folder of --to timm")
    parser.add_argument("--to", choices=list(TARGETS), help="what to write; without it only the summary is printed")
    parser.add_argument("--out", type=Path, help="folder to write")
    parser.add_argument("--arch", help="architecture, where the keys leave it open: mpncovresnet50, resnet50, ...")
    parser.add_argument("--head", help="head, where the keys leave it open: svdpade, isqrt, seb, ...")
    parser.add_argument(
        "--triangle",
        choices=ORDERS,
        help="order of the vector of a covariance; fast-MPN-COV's was the lower triangle until December 2018",
    )
    parser.add_argument(
        "--no-ema", action="store_true", help="take the plain weights where there are averaged ones too"
    )
    parser.add_argument("--force", action="store_true", help="replace what an earlier call has written")
    arguments = parser.parse_args(argv)
    if (arguments.to is None) != (arguments.out is None):
        parser.error("--to and --out go together")
    return arguments


def _table(converted: Converted) -> str:
    return "\n".join(f"{name:10} {value}" for name, value in summary(converted))


def _next_step(converted: Converted, arguments: argparse.Namespace) -> str:
    out = arguments.out
    if arguments.to == "timm":
        return f"load it: timm.create_model({f'local-dir:{out}'!r}, pretrained=True)"
    if arguments.to == "mmpretrain":
        config = next(out.glob("*.py"))
        return f"test it: python tools/test.py {shlex.join([str(config), str(config.with_suffix('.pth'))])}"
    return "the state of its training is not part of it"


if __name__ == "__main__":
    run_tool(main)
