"""Explain class scores of classifiers: overlays and numbers for your pictures, heads side by side."""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..command_line import Parser, available_device, markdown_table, positive_integer, run_tool
from ..errors import OptionError, UnknownNameError, one_line, require_extra
from ..files import check_folder
from ..pictures import check_picture
from . import ACTIVATIONS, GRADIENTS, ModelView, load_mmpretrain_model, load_timm_model
from .methods import LARGEST_SEED, explanation_options, list_explanations, with_options
from .pointing import pointing_table
from .report import TABLES, Job, distinct, explain_pictures, find_pictures, reasons, say_skipped, write_page
from .sanity import sanity_table

EXAMPLE = (
    "python tools/explain.py --model resnet50_svdpade --checkpoint best.pth --image cat.jpg photos/ "
    "--method contribution grad_cam --out out/explain"
)
FLAGS = ("layer", "masks", "iterations")  # options of methods that have a flag of their own


def main(argv: list[str] | None = None) -> None:
    arguments = parse(argv)
    methods = _methods(arguments)
    check_folder(arguments.out)
    if not arguments.list_layers:
        require_extra("jinja2", "explain")  # for the page
        require_extra("matplotlib", "explain")
    pictures = _pictures(arguments)
    models = _models(arguments)
    if arguments.list_layers:
        for label, view in models.items():
            print("\n  ".join([f"{label}:", *(view.shallow_stages or ["none: the model has no pool that is known"])]))
        return
    target, versus = (_class_number(arguments, option, models) for option in ("target", "versus"))
    options = (arguments.deletion_steps, arguments.seed, arguments.skip_unreadable)
    job = Job(models, methods, arguments.out, target, versus, *options)
    if arguments.pointing:
        sections, tables = [], {"pointing": pointing_table(models, methods, arguments.pointing)}
    else:
        sections = explain_pictures(job, pictures)
        shown = {section.name: section.path for section in sections}
        tables = {"sanity": sanity_table(models, methods, shown, target, job.seed)} if arguments.sanity else {}
        print(_table([row.overview() for section in sections for row in section.rows]))
    for name, rows in tables.items():
        print(f"\n{TABLES[name][0]}\n\n{_table(rows)}")
    for reason in reasons(job, sections):
        print(f"n/a: {reason}", file=sys.stderr)
    if tables:
        write_page(job, sections, tables)
    print(f"wrote {job.out / 'index.html'} and the numbers beside it")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__ or "", EXAMPLE)
    models = parser.add_argument_group("models; several are compared, each with the --checkpoint at the same position")
    add = models.add_argument
    add("--model", action="append", default=[], help="timm model name, for example resnet50_svdpade")
    add("--config", action="append", default=[], type=Path, help="MMPretrain config file")
    add("--checkpoint", action="append", default=[], type=Path, help="weights (.safetensors, .pth)")
    add("--num-classes", type=positive_integer, help="classes of the timm checkpoints (default: the model's own)")
    key_values: dict[str, Any] = dict(nargs="*", default=[], type=_key_value, metavar="KEY=VALUE")
    add("--model-kwargs", **key_values, help="for example reduce_channels=64")
    add("--label", action="append", default=[], help="what a model is called, in the order of models")
    add("--classes", type=_names, default=[], metavar="FILE", help="names of the classes, one a line")
    add("--grad", choices=GRADIENTS, default="exact", help="the exact gradient or the one of training (exact)")
    default = "sigmoid for one score and for multi-label heads, else softmax"
    add("--activation", choices=ACTIVATIONS, help=f"of the class scores (default: {default})")
    add("--device", type=available_device, default="cpu", help="for example cuda (default: cpu)")
    add("--list-layers", action="store_true", help="print the layers of the models")
    add = parser.add_argument
    add("--image", nargs="+", default=[], help="pictures, folders of pictures, patterns")
    add("--skip-unreadable", action="store_true", help="leave out pictures that cannot be read, and say so")
    known = ", ".join(list_explanations())
    add("--method", nargs="+", default=["contribution"], metavar="METHOD", help=f"all, or of: {known}")
    add("--target", "--target-class", metavar="CLASS", help="number or name of the class to explain (default: the top)")
    add("--versus", metavar="CLASS", help="explain the score of the target minus that of CLASS")
    add("--layer", help="layer for methods that take one (default: see the methods)")
    add("--masks", type=int, help="how many masks of RISE")
    add("--iterations", type=int, help="how many steps of the methods that optimise")
    add("--option", **key_values, help="an option of the methods that have it")
    add("--deletion-steps", type=int, default=10, help="steps of the deletion curves (10); 0 leaves them out")
    add("--sanity", action="store_true", help="also compare with the maps of more and more random weights")
    of_folder = "pointing game on a folder of pictures with masks or boxes; without --image"
    add("--pointing", type=Path, metavar="FOLDER", help=of_folder)
    add("--seed", type=int, default=0, help="of all random numbers (0); the same command writes the same files")
    add("--out", type=Path, default=Path("out/explain"), help="folder (default: out/explain)")
    arguments = parser.parse_args(argv)
    arguments.model_kwargs = dict(arguments.model_kwargs)
    _check(parser, arguments)
    return arguments


def _check(parser: Parser, arguments: argparse.Namespace) -> None:
    models = len(arguments.model) + len(arguments.config)
    if not models:
        parser.error("one of the arguments --model --config is required")
    if arguments.model and arguments.config:
        parser.error("--model and --config cannot be mixed in one call")
    if len(arguments.checkpoint) not in (0, models):
        parser.error(f"{models} models need {models} checkpoints or none, got {len(arguments.checkpoint)}")
    if len(arguments.label) not in (0, models) or len(set(arguments.label)) < len(arguments.label):
        parser.error(f"{models} models need {models} different labels or none, got {', '.join(arguments.label)}")
    for key in ("name", "checkpoint", "num_classes"):
        if key in arguments.model_kwargs:
            parser.error(f"--model-kwargs: {key} has an option of its own")
    if arguments.config and (arguments.num_classes is not None or arguments.model_kwargs):
        parser.error("--num-classes and --model-kwargs go with --model; with --config the config says it")
    if arguments.image and arguments.pointing:
        parser.error("--pointing takes the pictures of its folder: leave out --image")
    if not (arguments.image or arguments.list_layers or arguments.pointing):
        parser.error("the following arguments are required: --image")
    if arguments.deletion_steps < 0:
        parser.error(f"--deletion-steps must be at least 0, got {arguments.deletion_steps}")
    if not 0 <= arguments.seed <= LARGEST_SEED:
        parser.error(f"--seed must be an integer from 0 to {LARGEST_SEED}, got {arguments.seed}")
    if arguments.target is not None and arguments.target == arguments.versus:
        parser.error(f"--versus must be another class than --target, got {arguments.versus} for both")


def _methods(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The methods with those of the options that each takes, and the seed; an option that none takes is an error."""
    names = list_explanations() if "all" in arguments.method else list(dict.fromkeys(arguments.method))
    known = {name: explanation_options(name) for name in names}
    flags = {name: getattr(arguments, name) for name in FLAGS if getattr(arguments, name) is not None}
    options = dict(arguments.option)
    for key in options:
        if key in flags:
            raise OptionError(f"--option {key} and --{key} are the same; give one of them")
    for key in [*flags, *options]:
        if not any(key in known[name] for name in names):
            flag = f"--{key}" if key in flags else f"--option {key}"
            listed = ", ".join(sorted(set().union(*known.values()))) or "no options"
            raise OptionError(f"{flag}: none of the methods {', '.join(names)} takes it; they take: {listed}")
    options = {"seed": arguments.seed} | options | flags
    return with_options({name: {key: options[key] for key in options if key in known[name]} for name in names})


def _pictures(arguments: argparse.Namespace) -> list[Path]:
    """The pictures; one that is none is reported, or left out, before the models are loaded."""
    readable = []
    for path in find_pictures(arguments.image):
        try:
            check_picture(path)
            readable.append(path)
        except ValueError as error:
            if not arguments.skip_unreadable:
                raise
            say_skipped(error)
    if arguments.image and not readable:
        raise OptionError("none of the pictures can be read")
    return readable


def _models(arguments: argparse.Namespace) -> dict[str, ModelView]:
    """By what they are called in pictures and file names."""
    sources = arguments.model or arguments.config
    names = arguments.label or [source.stem if arguments.config else source for source in sources]
    labels = distinct([re.sub(r"[^\w.-]+", "_", name) for name in names])
    models = {}
    for label, source, checkpoint in zip(labels, sources, arguments.checkpoint or [None] * len(sources), strict=True):
        if arguments.config:
            model = load_mmpretrain_model(source, checkpoint)
        else:
            torch.manual_seed(arguments.seed)
            model = load_timm_model(source, checkpoint, arguments.num_classes, **arguments.model_kwargs)
        if checkpoint is None and ":" not in str(source):
            print(f"{source}: no --checkpoint: the weights are random", file=sys.stderr)
        view = ModelView.of(model.to(arguments.device), arguments.grad, arguments.activation, arguments.classes)
        if arguments.layer and arguments.layer not in view.stages and view.pool is not None:
            raise OptionError(f"{label}: {UnknownNameError('layer', arguments.layer, view.shallow_stages)}")
        models[label] = view
    return models


def _class_number(arguments: argparse.Namespace, option: str, models: Mapping[str, ModelView]) -> int | None:
    """A class of the command line as its number, which is the same in all models."""
    given = getattr(arguments, option)
    if given is None:
        return None
    target = int(given) if re.fullmatch(r"[+-]?\d{1,9}", given) else given
    numbers = [view.class_number(target, option) for view in models.values()]
    if len(set(numbers)) > 1:
        raise OptionError(f"--{option}: {given!r} is another class in each model: {', '.join(map(str, numbers))}")
    return numbers[0]


def _key_value(text: str) -> tuple[str, Any]:
    """A Python literal where the value is one, otherwise the text."""
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, got {text!r}")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return key, value


def _names(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8-sig").rstrip("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise argparse.ArgumentTypeError(f"{path}: not a text of names ({one_line(error)})") from None


def _table(rows: list[dict[str, str]]) -> str:
    return markdown_table(list(rows[0]), [list(row.values()) for row in rows], len(rows[0]))


if __name__ == "__main__":
    run_tool(main)
