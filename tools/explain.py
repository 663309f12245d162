"""Explain class scores of a classifier: overlays and numbers for pictures of your own."""

from __future__ import annotations

import argparse
import ast
import itertools
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from covpool_plugins.command_line import Parser, one_line, run_tool
from covpool_plugins.errors import OptionError
from covpool_plugins.explain import (
    GRADIENTS,
    METHODS,
    Explanation,
    ModelView,
    explain,
    list_methods,
    load_mmpretrain_model,
    load_timm_model,
    method_options,
    read_picture,
)
from covpool_plugins.explain.explanation import check_target
from covpool_plugins.explain.methods import NotApplicableError

EXAMPLE = (
    "python tools/explain.py --model resnet50_svdpade --checkpoint best.pth --image cat.jpg dog.jpg "
    "--method contribution grad_cam --out out/explain"
)


def main(argv: list[str] | None = None) -> None:
    arguments = parse(argv)
    for method in arguments.method:
        METHODS[method]
    options = {m: _options(m, arguments.layer) for m in arguments.method}
    if arguments.layer and not any(options.values()):
        raise OptionError(f"--layer: none of the methods {', '.join(arguments.method)} takes a layer")
    for path in arguments.image:
        read_picture(path)
    view = ModelView.of(_load(arguments).to(arguments.device), arguments.grad)
    if arguments.target is not None:
        check_target(arguments.target, view)
    if arguments.layer:
        view.stage(arguments.layer)

    rows: list[tuple[str, ...]] = [("image", "method", "layer", "target", "probability", "completeness gap")]
    written: list[Path] = []
    reasons: list[str] = []
    stems = _stems(arguments.image)
    with tqdm(total=len(stems) * len(options), unit="map", disable=None) as progress:
        for path, stem in zip(arguments.image, stems, strict=True):
            picture, found = read_picture(path), []
            for method, extra in options.items():
                try:
                    found.append(explain(view, picture, method, arguments.target, **extra))
                except NotApplicableError as error:
                    rows.append((path.name, method, *["n/a"] * (len(rows[0]) - 2)))
                    reasons.append(one_line(error))
                progress.update()
            for explanation in found:
                written += explanation.save(arguments.out, f"{stem}_{explanation.method}")
                rows.append(_row(path, explanation))
    print(_table(rows))
    for reason in dict.fromkeys(reasons):
        print(f"n/a: {reason}", file=sys.stderr)
    print("\n".join(f"wrote {path}" for path in written))


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__ or "", EXAMPLE)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="timm model name, for example resnet50_svdpade")
    source.add_argument("--config", type=Path, help="MMPretrain config file")
    parser.add_argument("--checkpoint", type=Path, help="weights (.safetensors, .pth); random without")
    parser.add_argument("--num-classes", type=int, help="classes of the timm checkpoint (default: the model's own)")
    parser.add_argument(
        "--model-kwargs",
        nargs="*",
        default=[],
        type=_key_value,
        metavar="KEY=VALUE",
        help="for example reduce_channels=64",
    )
    parser.add_argument("--image", type=Path, nargs="+", required=True, help="pictures")
    parser.add_argument(
        "--method", nargs="+", default=["contribution"], metavar="METHOD", help=f"of: {', '.join(list_methods())}"
    )
    parser.add_argument("--target", "--target-class", type=int, help="class to explain (default: the top class)")
    parser.add_argument("--layer", help="layer for methods that take one (default: the backbone's last map)")
    parser.add_argument("--grad", choices=GRADIENTS, default="exact", help="true gradient, or the training gradient")
    parser.add_argument("--device", type=_device, default="cpu", help="for example cuda (default: cpu)")
    parser.add_argument("--out", type=Path, default=Path("out/explain"), help="folder (default: out/explain)")
    arguments = parser.parse_args(argv)
    arguments.model_kwargs = dict(arguments.model_kwargs)
    for key in ("name", "checkpoint", "num_classes"):
        if key in arguments.model_kwargs:
            parser.error(f"--model-kwargs: {key} has an option of its own")
    if arguments.config and (arguments.num_classes is not None or arguments.model_kwargs):
        parser.error("--num-classes and --model-kwargs go with --model; with --config the config says it")
    return arguments


def _key_value(text: str) -> tuple[str, Any]:
    """A Python literal where the value is one, otherwise the text."""
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, got {text!r}")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def _device(name: str) -> torch.device:
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(f"{name!r} is not available: {one_line(error)}") from None


def _load(arguments: argparse.Namespace) -> torch.nn.Module:
    if arguments.checkpoint is None and ":" not in (arguments.model or ""):
        print("no --checkpoint: the weights are random", file=sys.stderr)
    if arguments.config:
        return load_mmpretrain_model(arguments.config, arguments.checkpoint)
    return load_timm_model(arguments.model, arguments.checkpoint, arguments.num_classes, **arguments.model_kwargs)


def _options(method: str, layer: str | None) -> dict[str, str]:
    return {"layer": layer} if layer and "layer" in method_options(method) else {}


def _stems(paths: list[Path]) -> list[str]:
    """File names without suffix, numbered where two pictures share one; unique also where case does not count."""
    counts = Counter(path.stem.casefold() for path in paths)
    taken = {stem for stem, count in counts.items() if count == 1}
    stems = []
    for position, path in enumerate(paths, start=1):
        stem = path.stem
        if counts[stem.casefold()] > 1:
            numbered = (f"{path.stem}-{i}" for i in itertools.count(position))
            stem = next(candidate for candidate in numbered if candidate.casefold() not in taken)
            taken.add(stem.casefold())
        stems.append(stem)
    return stems


def _row(path: Path, explanation: Explanation) -> tuple[str, ...]:
    gap = explanation.completeness_gap
    return (
        path.name,
        explanation.method,
        explanation.layer or "-",
        str(explanation.target),
        f"{explanation.probability:.4f}",
        "n/a" if gap is None else f"{gap:.1e}",
    )


def _table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


if __name__ == "__main__":
    run_tool(main)
