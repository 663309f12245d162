"""Explain class scores of classifiers: overlays and numbers for pictures of your own, heads side by side."""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from covpool_plugins.command_line import Parser, available_device, run_tool
from covpool_plugins.errors import OptionError, UnknownNameError, one_line
from covpool_plugins.explain import (
    GRADIENTS,
    METHODS,
    ModelView,
    list_methods,
    load_mmpretrain_model,
    load_timm_model,
    method_options,
    read_picture,
)
from covpool_plugins.explain.batch import Job, Page, Row, Subject, explain_pictures, find_pictures, write_numbers
from covpool_plugins.explain.explanation import check_target
from covpool_plugins.explain.methods import check_options
from covpool_plugins.explain.options import LARGEST_SEED
from covpool_plugins.explain.report import write_report
from covpool_plugins.explain.studies import Table, pointing_table, print_table, sanity_table
from covpool_plugins.files import check_folder

EXAMPLE = (
    "python tools/explain.py --model resnet50_svdpade --checkpoint best.pth --image cat.jpg photos/ "
    "--method contribution grad_cam --out out/explain"
)
BUDGETS = {"masks": "masks of RISE", "iterations": "steps of the methods that optimise"}


def main(argv: list[str] | None = None) -> None:
    arguments = parse(argv)
    methods = _methods(arguments)
    check_folder(arguments.out)
    pictures = find_pictures(arguments.image)
    for path in pictures:
        read_picture(path)  # whatever cannot be read is said before the models are loaded
    subjects = _subjects(arguments)
    if arguments.list_layers:
        print("\n".join(_layers(subject) for subject in subjects))
        return
    for subject in subjects:
        _check_classes(arguments, subject)
        _check_layer(arguments, subject)
    job = Job(
        subjects,
        methods,
        arguments.target,
        arguments.versus,
        arguments.classes,
        arguments.deletion_steps,
        arguments.seed,
    )
    if arguments.pointing:
        _point(job, arguments)
        return
    pages = _explain(job, pictures, arguments.out)
    tables = [_check_sanity(job, pictures, arguments.out)] if arguments.sanity else []
    report = write_report(pages, arguments.out, _title(subjects), tables)
    print(_table(pages))
    print("".join(f"\n{table.title}\n{print_table(table)}\n" for table in tables), end="")
    for reason in dict.fromkeys(_reason(job, row) for page in pages for row in page.rows if row.reason):
        print(f"n/a: {reason}", file=sys.stderr)
    print(f"wrote {report} and {arguments.out / 'metrics.json'}")


def _explain(job: Job, pictures: list[Path], out: Path) -> list[Page]:
    """Explain all pictures; if that ends early, there is a page of those that are done."""
    pages: list[Page] = []
    total = len(pictures) * len(job.subjects) * len(job.methods)
    try:
        with tqdm(total=total, unit="map", disable=None) as progress:
            for page in explain_pictures(job, pictures, out, progress.update):
                pages.append(page)
    except BaseException:
        if any(row.explanation for page in pages for row in page.rows):
            write_numbers(pages, out)
            write_report(pages, out, _title(job.subjects))
        raise
    if not any(row.explanation for page in pages for row in page.rows):
        raise OptionError(_reason(job, pages[0].rows[0]))
    write_numbers(pages, out)
    return pages


def _reason(job: Job, row: Row) -> str:
    """Why there is no map, with the model where there are several."""
    return f"{row.label}: {row.reason}" if len(job.subjects) > 1 else str(row.reason)


def _check_sanity(job: Job, pictures: list[Path], out: Path) -> Table:
    total = len(pictures) * len(job.subjects) * len(job.methods)
    with tqdm(total=total, unit="method", desc="sanity", disable=None) as progress:
        table = sanity_table(job, pictures, progress.update)
    table.write(out / "sanity.json")
    return table


def _point(job: Job, arguments: argparse.Namespace) -> None:
    with tqdm(total=len(job.subjects) * len(job.methods), unit="method", desc="pointing", disable=None) as progress:
        table = pointing_table(job, arguments.pointing, progress.update)
    written = table.write(arguments.out / "pointing.json")
    report = write_report([], arguments.out, _title(job.subjects), [table])
    print(f"{print_table(table)}\nwrote {report} and {written}")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__ or "", EXAMPLE)
    source = parser.add_argument_group("models; several are compared, each with the --checkpoint of the same place")
    source.add_argument("--model", action="append", default=[], help="timm model name, for example resnet50_svdpade")
    source.add_argument("--config", action="append", default=[], type=Path, help="MMPretrain config file")
    source.add_argument("--checkpoint", action="append", default=[], type=Path, help="weights (.safetensors, .pth)")
    source.add_argument("--num-classes", type=int, help="classes of the timm checkpoints (default: the model's own)")
    source.add_argument(
        "--model-kwargs", nargs="*", default=[], type=_key_value, metavar="KEY=VALUE", help="as reduce_channels=64"
    )
    parser.add_argument("--image", nargs="+", default=[], help="pictures, folders of pictures, patterns")
    known = ", ".join(list_methods())
    parser.add_argument("--method", nargs="+", default=["contribution"], metavar="METHOD", help=f"all, or of: {known}")
    parser.add_argument("--target", "--target-class", type=int, help="class to explain (default: the top class)")
    parser.add_argument("--versus", type=int, metavar="CLASS", help="explain the score of the target less that of this")
    parser.add_argument("--classes", type=_names, default=[], metavar="FILE", help="names of the classes, one a line")
    parser.add_argument("--layer", help="layer for methods that take one (default: see the methods)")
    parser.add_argument("--list-layers", action="store_true", help="print the layers of the models")
    for name, what in BUDGETS.items():
        parser.add_argument(f"--{name}", type=int, help=f"how many {what}")
    parser.add_argument(
        "--option", nargs="*", default=[], type=_key_value, metavar="KEY=VALUE", help="for every method that has it"
    )
    parser.add_argument("--deletion-steps", type=int, default=10, help="of the deletion curves (10); 0 leaves them out")
    parser.add_argument("--sanity", action="store_true", help="compare with the maps of ever more random weights too")
    parser.add_argument(
        "--pointing", type=Path, metavar="FOLDER", help="pointing game on pictures with masks or boxes, without --image"
    )
    parser.add_argument("--grad", choices=GRADIENTS, default="exact", help="true gradient, or the training gradient")
    parser.add_argument("--seed", type=int, default=0, help="of all that is random (0): same command, same files")
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
    if arguments.num_classes is not None and arguments.num_classes < 1:
        parser.error(f"--num-classes must be at least 1, got {arguments.num_classes}")
    if arguments.target is not None and arguments.target == arguments.versus:
        parser.error(f"--versus must be another class than --target, got {arguments.versus} for both")


def _methods(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The methods with those of the options that each takes; an option that none takes is an error."""
    names = list_methods() if "all" in arguments.method else list(dict.fromkeys(arguments.method))
    for name in names:
        METHODS[name]
    given = {"layer": arguments.layer, **{name: getattr(arguments, name) for name in BUDGETS}}
    given = {name: value for name, value in given.items() if value is not None}
    for key in dict(arguments.option):
        if key in given:
            raise OptionError(f"--option {key} and --{key} are the same; give one of them")
    options = given | dict(arguments.option)
    taken = {name: {key: value for key, value in options.items() if key in method_options(name)} for name in names}
    for key in options:
        if not any(key in of_method for of_method in taken.values()):
            flag = f"--{key}" if key in given else f"--option {key}"
            known = sorted({option for name in names for option in method_options(name)})
            raise OptionError(f"{flag}: none of the methods {', '.join(names)} takes it; they take: {', '.join(known)}")
    for name in names:
        check_options(name, taken[name])
    return taken


def _subjects(arguments: argparse.Namespace) -> list[Subject]:
    sources = arguments.model or arguments.config
    checkpoints = arguments.checkpoint or [None] * len(sources)
    names = [re.sub(r"[^\w.-]+", "_", source.stem if arguments.config else source) for source in sources]
    subjects = []
    for position, (source, checkpoint) in enumerate(zip(sources, checkpoints, strict=True)):
        if arguments.config:
            model = load_mmpretrain_model(source, checkpoint)
        else:
            torch.manual_seed(arguments.seed)
            model = load_timm_model(source, checkpoint, arguments.num_classes, **arguments.model_kwargs)
        if checkpoint is None and ":" not in str(source):
            print(f"{source}: no --checkpoint: the weights are random", file=sys.stderr)
        label = names[position] if names.count(names[position]) == 1 else f"{names[position]}-{position + 1}"
        subjects.append(Subject(label, ModelView.of(model.to(arguments.device), arguments.grad)))
    return subjects


def _check_classes(arguments: argparse.Namespace, subject: Subject) -> None:
    for option in ("target", "versus"):
        number = getattr(arguments, option)
        if number is not None:
            check_target(number, subject.view, option)
    if arguments.classes and len(arguments.classes) != subject.view.num_classes:
        raise OptionError(
            f"--classes has {len(arguments.classes)} names, {subject.label} has {subject.view.num_classes} classes"
        )


def _check_layer(arguments: argparse.Namespace, subject: Subject) -> None:
    if arguments.layer and subject.view.pool is not None:
        try:
            subject.view.stage(arguments.layer)
        except UnknownNameError as error:
            raise OptionError(f"{subject.label}: {error}") from None


def _layers(subject: Subject) -> str:
    names = subject.view.shallow_stages or ["none: no pool is known whose map they would lead to"]
    return "\n".join([f"{subject.label}:", *(f"  {name}" for name in names)])


def _title(subjects: Sequence[Subject]) -> str:
    return "Explanations of " + ", ".join(subject.label for subject in subjects)


def _key_value(text: str) -> tuple[str, Any]:
    """A Python literal where the value is one, otherwise the text."""
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, got {text!r}")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def _names(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").rstrip("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise argparse.ArgumentTypeError(f"{path}: not a text of names ({one_line(error)})") from None


def _table(pages: list[Page]) -> str:
    head = ("image", "model", "method", "layer", "target", "probability", "completeness gap")
    rows: list[tuple[str, ...]] = []
    for row in (row for page in pages for row in page.rows):
        found = row.explanation
        if found is None:
            rows.append((row.picture, row.label, row.method, *["n/a"] * 4))
            continue
        gap = found.completeness_gap
        said = (found.layer or "-", found.class_name(found.target), f"{found.probability:.4f}")
        rows.append((row.picture, row.label, row.method, *said, "n/a" if gap is None else f"{gap:.1e}"))
    return print_table(Table("Explanations", "", head, rows))


if __name__ == "__main__":
    run_tool(main)
