"""The ``finetune`` comparison: a pretrained network, fine-tuned on a folder of classes with one head after another.

All heads have one recipe. ``--choose`` picks its learning rates by the mean over the heads on the first fold, which is
not reported.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from covpool_plugins.command_line import available_device, markdown_table
from covpool_plugins.errors import OptionError

from .figures import mean_and_interval, mean_and_spread, new_figure, save_figure, shown_interval
from .finetune_training import BASELINE, STARTS, FinetuneRecipe, FinetuneRun, train, weights_of
from .labelled import folds, labelled_files
from .modes import COMPARISONS, Mode, add_numbers, add_training_arguments, environment, existing_folder, plot_file
from .rows import head_and_options
from .training import train_all

ROWS = (
    "gap",
    "svdpade",
    "gap(last_stride=1)",
    "svdpade(last_stride=1)",
    "svdpade(last_stride=1, centered=False)",
    "isqrt(last_stride=1)",
    "gaussian(last_stride=1)",
    "ibcnn(last_stride=1)",
    "moment(last_stride=1, reduce_channels=768)",
)
RATES = tuple(product((3e-4, 1e-3), (1e-3, 1e-2)))  # of the network and of the classifier
SETTINGS = ("epochs", "size", "channels", "folds")
MEASURES = ("frozen", "pictures", "crops")  # accuracies of a run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    default = FinetuneRecipe(Path())
    parser.add_argument(
        "--images", type=existing_folder, required=True, metavar="DIR", help="one folder for each class"
    )
    parser.add_argument(
        "--groups", default="", metavar="PATTERN", help="what in a file's name tells what stays together"
    )
    parser.add_argument("--backbone", default=default.backbone, metavar="NAME", help=f"({default.backbone})")
    parser.add_argument("--packages", type=existing_folder, metavar="DIR", help="packages of weights, if not installed")
    parser.add_argument("--rows", nargs="+", default=ROWS, metavar="HEAD", help=f"({' '.join(map(repr, ROWS))})")
    parser.add_argument(
        "--rates", type=float, nargs=2, default=RATES[0], metavar="X", help="network's and classifier's"
    )
    parser.add_argument(
        "--start", choices=STARTS, default=default.start, help=f"heads from a fitted probe or not ({default.start})"
    )
    parser.add_argument("--choose", action="store_true", help="choose the rates on the first fold")
    parser.add_argument("--against", default=BASELINE, metavar="HEAD", help=f"the row of the differences ({BASELINE})")
    parser.add_argument("--report", action="store_true", help="train nothing, report what the file of --json has")
    parser.add_argument("--device", type=available_device, default=torch.device("cpu"), help="cpu or cuda (cpu)")
    parser.add_argument("--plot", type=plot_file, metavar="FILE", help="draw the differences (.png, .svg or .pdf)")
    add_numbers(parser, "--workers", 1, "trainings at a time")
    add_training_arguments(parser, default, SETTINGS, seeds=3)


def run(options: argparse.Namespace) -> None:
    settings = {name: getattr(options, name) for name in SETTINGS}
    recipe = FinetuneRecipe(
        options.images,
        options.backbone,
        options.packages,
        options.groups,
        start=options.start,
        device=str(options.device),
        **settings,
    )
    for row in options.rows:
        head_and_options(row)
    if options.against not in options.rows:
        raise OptionError(f"--against {options.against!r} is not among the rows: {', '.join(options.rows)}")
    files = labelled_files(recipe.images, recipe.groups)
    folds(files, recipe.folds)
    weights_of(recipe.backbone, recipe.packages)
    facts = {
        **environment(options.device),
        "recipe": {**asdict(recipe), "images": recipe.images.name, "packages": None, "device": None},
        "classes": files.classes,
        "pictures": len(files.paths),
        "groups": len(np.unique(files.groups)),
    }
    runs = _earlier_runs(options.json, facts)
    rates = tuple(options.rates)
    if options.choose:
        jobs = [(row, 0, 0, *chosen) for chosen in RATES for row in options.rows]
        runs = _train_missing(recipe, jobs, runs, options, facts)
        rates = best_rates(runs, options.rows)
        print(f"learning rates {rates[0]:g} of the network and {rates[1]:g} of the classifier")
    order = product(range(options.seeds), range(1, recipe.folds), options.rows)
    jobs = [(row, fold, seed, *rates) for seed, fold, row in order]
    runs = _train_missing(recipe, jobs, runs, options, facts)
    reported = of_all_rows([run for run in runs if run.job in set(jobs)], options.rows)
    print(f"\n{len(reported)} trainings: {counted(reported)}\n\n{markdown_table(*table(reported, options.against))}")
    if options.plot is not None:
        draw(reported, options.plot, options.against)


def _earlier_runs(path: Path | None, facts: dict[str, Any]) -> list[FinetuneRun]:
    """The runs that the file has already, so that what was interrupted goes on.

    Raises:
        OptionError: for a file of other trainings.
    """
    if path is None or not path.exists():
        return []
    try:
        found = json.loads(path.read_text())
        runs = [FinetuneRun(**run) for run in found["runs"]]
        same = found["recipe"] == json.loads(json.dumps(facts["recipe"]))
    except (ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise OptionError(f"{path} holds other numbers than of these trainings; name another file")
    return runs


def _train_missing(
    recipe: FinetuneRecipe,
    jobs: Sequence[tuple[Any, ...]],
    runs: list[FinetuneRun],
    options: argparse.Namespace,
    facts: dict[str, Any],
) -> list[FinetuneRun]:
    if options.report:
        return runs
    known = {run.job for run in runs}
    missing = [(recipe, *job) for job in jobs if job not in known]
    return train_all(train, missing, options.json, facts, options.workers, runs)


def best_rates(runs: Sequence[FinetuneRun], rows: Sequence[str]) -> tuple[float, float]:
    """The learning rates whose crops of the first fold are classified best, in the mean over the rows.

    Raises:
        OptionError: for rows that were not trained with all rates.
    """
    found: dict[tuple[float, float], list[float]] = {rates: [] for rates in RATES}
    for run in runs:
        if run.fold == 0 and run.row in rows:
            found.setdefault((run.learning_rate, run.classifier_rate), []).append(run.crops or 0.0)
    if any(len(found[rates]) < len(rows) for rates in RATES):
        raise OptionError("--report: the file has not all trainings of the first fold, which choose the rates")
    return max(RATES, key=lambda rates: statistics.mean(found[rates]))


def of_all_rows(runs: Sequence[FinetuneRun], rows: Sequence[str]) -> list[FinetuneRun]:
    """The runs of the folds and seeds that every row has, so that rows are compared on the same ones."""
    common = set.intersection(*({(run.fold, run.seed) for run in runs if run.row == row} for row in rows))
    return [run for run in runs if (run.fold, run.seed) in common]


def counted(runs: Sequence[FinetuneRun]) -> str:
    """How many folds each seed has."""
    folds_of: dict[int, set[int]] = {}
    for run in runs:
        folds_of.setdefault(run.seed, set()).add(run.fold)
    return ", ".join(f"seed {seed} on {len(found)} folds" for seed, found in sorted(folds_of.items()))


def fold_means(runs: Sequence[FinetuneRun], row: str, measure: str) -> dict[int, float]:
    """The mean over the seeds for each fold; a training that diverged counts as no picture right."""
    found: dict[int, list[float]] = {}
    for run in runs:
        if run.row == row:
            found.setdefault(run.fold, []).append(getattr(run, measure) or 0.0)
    return {fold: statistics.mean(values) for fold, values in found.items()}


def difference(
    runs: Sequence[FinetuneRun], row: str, measure: str, baseline: str = BASELINE
) -> tuple[float, float] | None:
    """Mean difference to a row over the folds, and half the width of its 95 % interval."""
    own, base = fold_means(runs, row, measure), fold_means(runs, baseline, measure)
    return mean_and_interval([own[fold] - base[fold] for fold in own if fold in base])


def measures_of(runs: Sequence[FinetuneRun]) -> list[str]:
    """The accuracies that the runs have; heads that start at random have none before the training."""
    return [measure for measure in MEASURES if any(getattr(run, measure) is not None for run in runs)]


def table(runs: Sequence[FinetuneRun], baseline: str = BASELINE) -> tuple[list[str], list[list[str]]]:
    """Header and rows: means over folds ± deviation; differences to a row, fold by fold, with their 95 % intervals."""
    measures = measures_of(runs)
    header = ["head", *(cell for measure in measures for cell in (f"{measure}, %", "difference"))]
    rows = []
    for row in dict.fromkeys(run.row for run in runs):
        of_row = [run for run in runs if run.row == row]
        cells = [f"`{row}`"]
        for measure in measures:
            cells.append(mean_and_spread(list(fold_means(runs, row, measure).values())))
            cells.append("" if row == baseline else shown_interval(difference(runs, row, measure, baseline)))
        seconds = statistics.median(run.seconds or 0.0 for run in of_row)
        rows.append([*cells, str(of_row[0].width), f"{of_row[0].parameters / 1e6:.2f}", f"{seconds:.1f}"])
    return [*header, "width", "million parameters", "s"], rows


def draw(runs: Sequence[FinetuneRun], path: Path, baseline: str = BASELINE) -> None:
    """The differences to a row with their intervals."""
    rows = [row for row in dict.fromkeys(run.row for run in runs) if row != baseline][::-1]
    figure = new_figure(7, 1.2 + 0.3 * len(rows))
    axis = figure.subplots()
    for number, measure in enumerate(measures_of(runs)):
        shift = 0.2 * (0.5 - number)
        found = [(place, difference(runs, row, measure, baseline)) for place, row in enumerate(rows)]
        shown = [(place, pair) for place, pair in found if pair is not None]
        axis.errorbar(
            [pair[0] for _, pair in shown],
            [place + shift for place, _ in shown],
            xerr=[pair[1] for _, pair in shown],
            fmt="o",
            markersize=4,
            capsize=2,
            label=measure,
        )
    axis.axvline(0, color="0.6", linestyle="--", linewidth=1)
    axis.set_yticks(range(len(rows)), rows, fontsize=8)
    axis.set(xlabel=f"points more than {baseline}, with 95 % intervals")
    figure.legend(loc="outside upper right", ncols=2, fontsize=8)
    axis.grid(alpha=0.3)
    save_figure(figure, path)


EXAMPLE = "python tools/compare.py finetune --images out/materials --groups '(.+)--' --json out/finetune.json"
COMPARISONS.add("finetune", Mode(__doc__ or "", EXAMPLE, add_arguments, run))
