"""Explain class scores of classifiers: overlays and numbers for your pictures, heads side by side."""

from __future__ import annotations

import argparse
import ast
import re
import sys
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..command_line import Parser, available_device, markdown_table, positive_integer, run_tool
from ..errors import OptionError, UnknownNameError, one_line, require_extra
from ..files import check_folder
from ..pictures import check_picture
from . import (
    ACTIVATIONS,
    GRADIENTS,
    ModelView,
    explanation_options,
    list_explanations,
    load_mmpretrain_model,
    load_timm_model,
)
from .batch import (
    Job,
    MapRow,
    NamedModel,
    Section,
    explain_pictures,
    find_pictures,
    write_numbers,
)
from .methods import LARGEST_SEED, with_options
from .page import write_page
from .report_tables import ReportTable, pointing_table, sanity_table

EXAMPLE = (
    "python tools/explain.py --model resnet50_svdpade --checkpoint best.pth --image cat.jpg photos/ "
    "--method contribution grad_cam --out out/explain"
)
BUDGETS = {"masks": "masks of RISE", "iterations": "steps of the methods that optimise"}


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
        print("\n".join(_layers(model) for model in models))
        return
    for model in models:
        _check_layer(arguments, model)
    for option in ("target", "versus"):
        _check_class(arguments, option, models)
    job = Job(
        models,
        methods,
        arguments.target,
        arguments.versus,
        arguments.deletion_steps,
        arguments.seed,
        arguments.skip_unreadable,
    )
    if arguments.pointing:
        _point(job, arguments)
        return
    sections = _explain(job, pictures, arguments.out)
    tables = [_check_sanity(job, pictures, arguments.out)] if arguments.sanity else []
    page = write_page(sections, arguments.out, _title(job), tables)
    print("\n\n".join([_overview(sections), *map(str, tables)]))
    for reason in dict.fromkeys(_reason(job, row) for section in sections for row in section.rows if row.reason):
        print(f"n/a: {reason}", file=sys.stderr)
    print(f"wrote {page} and {arguments.out / 'metrics.json'}")


def _explain(job: Job, pictures: list[Path], out: Path) -> list[Section]:
    """Explain all pictures; if that ends early, there is a page of those that are done."""
    sections: list[Section] = []
    total = len(pictures) * len(job.models) * len(job.methods)
    try:
        with tqdm(total=total, unit="map", disable=None) as progress:
            for section in explain_pictures(job, pictures, out, progress.update, _say_skipped):
                sections.append(section)
    except BaseException:
        if any(row.explanation for section in sections for row in section.rows):
            write_numbers(sections, out)
            write_page(sections, out, _title(job))
        raise
    if not sections:
        raise OptionError("none of the pictures can be read")
    if not any(row.explanation for section in sections for row in section.rows):
        raise OptionError(_reason(job, sections[0].rows[0]))
    write_numbers(sections, out)
    return sections


def _pictures(arguments: argparse.Namespace) -> list[Path]:
    """The pictures; one that is none is reported, or left out, before the models are loaded."""
    readable = []
    for path in find_pictures(arguments.image):
        try:
            check_picture(path)
        except ValueError as error:
            if not arguments.skip_unreadable:
                raise
            _say_skipped(one_line(error))
        else:
            readable.append(path)
    if arguments.image and not readable:
        raise OptionError("none of the pictures can be read")
    return readable


def _say_skipped(reason: str) -> None:
    print(f"skipped: {reason}", file=sys.stderr)


def _reason(job: Job, row: MapRow) -> str:
    """Why there is no map, with the model where there are several."""
    return f"{row.label}: {row.reason}" if len(job.models) > 1 else str(row.reason)


def _check_sanity(job: Job, pictures: list[Path], out: Path) -> ReportTable:
    total = len(pictures) * len(job.models) * len(job.methods)
    with tqdm(total=total, unit="method", desc="sanity", disable=None) as progress:
        table = sanity_table(job, pictures, progress.update)
    table.write(out / "sanity.json")
    return table


def _point(job: Job, arguments: argparse.Namespace) -> None:
    with tqdm(total=len(job.models) * len(job.methods), unit="method", desc="pointing", disable=None) as progress:
        table = pointing_table(job, arguments.pointing, progress.update)
    written = table.write(arguments.out / "pointing.json")
    page = write_page([], arguments.out, _title(job), [table])
    print(f"{table}\nwrote {page} and {written}")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__ or "", EXAMPLE)
    source = parser.add_argument_group("models; several are compared, each with the --checkpoint at the same position")
    source.add_argument("--model", action="append", default=[], help="timm model name, for example resnet50_svdpade")
    source.add_argument("--config", action="append", default=[], type=Path, help="MMPretrain config file")
    source.add_argument("--checkpoint", action="append", default=[], type=Path, help="weights (.safetensors, .pth)")
    source.add_argument(
        "--num-classes", type=positive_integer, help="classes of the timm checkpoints (default: the model's own)"
    )
    source.add_argument(
        "--model-kwargs",
        nargs="*",
        default=[],
        type=_key_value,
        metavar="KEY=VALUE",
        help="for example reduce_channels=64",
    )
    source.add_argument("--label", action="append", default=[], help="what a model is called, in the order of models")
    parser.add_argument("--image", nargs="+", default=[], help="pictures, folders of pictures, patterns")
    parser.add_argument(
        "--skip-unreadable", action="store_true", help="leave out pictures that cannot be read, and say so"
    )
    known = ", ".join(list_explanations())
    parser.add_argument("--method", nargs="+", default=["contribution"], metavar="METHOD", help=f"all, or of: {known}")
    parser.add_argument(
        "--target", "--target-class", metavar="CLASS", help="number or name of the class to explain (default: the top)"
    )
    parser.add_argument("--versus", metavar="CLASS", help="explain the score of the target minus that of CLASS")
    parser.add_argument("--classes", type=_names, default=[], metavar="FILE", help="names of the classes, one a line")
    parser.add_argument("--layer", help="layer for methods that take one (default: see the methods)")
    parser.add_argument("--list-layers", action="store_true", help="print the layers of the models")
    for name, what in BUDGETS.items():
        parser.add_argument(f"--{name}", type=int, help=f"how many {what}")
    parser.add_argument(
        "--option",
        nargs="*",
        default=[],
        type=_key_value,
        metavar="KEY=VALUE",
        help="an option of the methods that have it",
    )
    parser.add_argument(
        "--deletion-steps", type=int, default=10, help="steps of the deletion curves (10); 0 leaves them out"
    )
    parser.add_argument(
        "--sanity", action="store_true", help="also compare with the maps of more and more random weights"
    )
    parser.add_argument(
        "--pointing",
        type=Path,
        metavar="FOLDER",
        help="pointing game on a folder of pictures with masks or boxes; without --image",
    )
    parser.add_argument(
        "--grad", choices=GRADIENTS, default="exact", help="the exact gradient or the one of training (exact)"
    )
    parser.add_argument(
        "--activation",
        choices=ACTIVATIONS,
        help="of the class scores (default: sigmoid for one score and for multi-label heads, else softmax)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of all random numbers (0); the same command writes the same files"
    )
    parser.add_argument("--device", type=available_device, default="cpu", help="for example cuda (default: cpu)")
    parser.add_argument("--out", type=Path, default=Path("out/explain"), help="folder (default: out/explain)")
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
    """The methods with those of the options that each takes; an option that none takes is an error."""
    names = list_explanations() if "all" in arguments.method else list(dict.fromkeys(arguments.method))
    known = {name: explanation_options(name) for name in names}
    flags = {name: getattr(arguments, name) for name in ("layer", *BUDGETS) if getattr(arguments, name) is not None}
    options = dict(arguments.option)
    for key in options:
        if key in flags:
            raise OptionError(f"--option {key} and --{key} are the same; give one of them")
    for key in [*flags, *options]:
        if not any(key in known[name] for name in names):
            flag = f"--{key}" if key in flags else f"--option {key}"
            listed = ", ".join(sorted(set().union(*known.values())))
            raise OptionError(f"{flag}: none of the methods {', '.join(names)} takes it; they take: {listed}")
    options |= flags
    return with_options({name: {key: options[key] for key in options if key in known[name]} for name in names})


def _models(arguments: argparse.Namespace) -> list[NamedModel]:
    sources = arguments.model or arguments.config
    checkpoints = arguments.checkpoint or [None] * len(sources)
    called = arguments.label or [source.stem if arguments.config else source for source in sources]
    names = [re.sub(r"[^\w.-]+", "_", name) for name in called]
    models = []
    for position, (source, checkpoint) in enumerate(zip(sources, checkpoints, strict=True)):
        if arguments.config:
            model = load_mmpretrain_model(source, checkpoint)
        else:
            torch.manual_seed(arguments.seed)
            model = load_timm_model(source, checkpoint, arguments.num_classes, **arguments.model_kwargs)
        if checkpoint is None and ":" not in str(source):
            print(f"{source}: no --checkpoint: the weights are random", file=sys.stderr)
        label = names[position] if names.count(names[position]) == 1 else f"{names[position]}-{position + 1}"
        models.append(
            NamedModel(
                label, ModelView.of(model.to(arguments.device), arguments.grad, arguments.activation, arguments.classes)
            )
        )
    return models


def _check_class(arguments: argparse.Namespace, option: str, models: list[NamedModel]) -> None:
    """A class of the command line as its number, which is the same in all models."""
    given = getattr(arguments, option)
    if given is None:
        return
    target = int(given) if re.fullmatch(r"[+-]?\d{1,9}", given) else given
    numbers = [model.view.class_number(target, option) for model in models]
    if len(set(numbers)) > 1:
        raise OptionError(f"--{option}: {given!r} is another class in each model: {', '.join(map(str, numbers))}")
    setattr(arguments, option, numbers[0])


def _check_layer(arguments: argparse.Namespace, model: NamedModel) -> None:
    if arguments.layer and model.view.pool is not None:
        try:
            model.view.stage(arguments.layer)
        except UnknownNameError as error:
            raise OptionError(f"{model.label}: {error}") from None


def _layers(model: NamedModel) -> str:
    names = model.view.shallow_stages or ["none: the model has no pool that is known"]
    return "\n".join([f"{model.label}:", *(f"  {name}" for name in names)])


def _title(job: Job) -> str:
    return "Explanations of " + ", ".join(model.label for model in job.models)


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
        return Path(path).read_text(encoding="utf-8").rstrip("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise argparse.ArgumentTypeError(f"{path}: not a text of names ({one_line(error)})") from None


def _overview(sections: list[Section]) -> str:
    head = ("image", "model", "method", "layer", "target", "probability", "completeness gap")
    rows: list[tuple[str, ...]] = []
    for row in (row for section in sections for row in section.rows):
        explanation = row.explanation
        if explanation is None:
            rows.append((row.picture, row.label, row.method, *["n/a"] * 4))
            continue
        layer, target = explanation.layer or "-", explanation.class_name(explanation.target)
        gap = "n/a" if explanation.completeness_gap is None else f"{explanation.completeness_gap:.1e}"
        rows.append((row.picture, row.label, row.method, layer, target, f"{explanation.probability:.4f}", gap))
    return markdown_table(head, rows, text_columns=5)


if __name__ == "__main__":
    run_tool(main)
