"""Every head behind the same small network, on the same pictures: accuracy, time, memory, condition numbers, failures.

The networks are trained from scratch, seed by seed; all heads share the pictures, their order, the recipe and the
weights that the network starts from. The recipe is tuned for none of them.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from covpool_plugins.command_line import Parser, markdown_table
from covpool_plugins.errors import require_extra
from covpool_plugins.timm_plugin import list_heads

from .comparison import (
    ComparisonRecipe,
    ComparisonRun,
    Contender,
    Milliseconds,
    add_arguments,
    check_arguments,
    mean_and_spread,
    memory,
    run_all,
    save,
    step_times,
)
from .figures import number, save_figure
from .modes import check_outputs, environment
from .sources import SOURCES, source

RECIPE = ComparisonRecipe(size=48, epochs=12, test_per_class=40)
HYBRID = Contender("isqrt", switch="svdpade")
# Gradients of the root where the covariance is singular, the published and plain ones against ours.
FAILING = (
    *(Contender("svdpade", baseline=f"torch.linalg.eigh, autograd ({precision})") for precision in ("f32", "f64")),
    *(
        Contender(name, (("compute", "float32"),))
        for name in ("svdoriginal", "svdtrunc", "svdtaylor", "svdpi", "svdpade", "exact", "isqrt")
    ),
)
SINGULAR_SIZE = 16  # 2x2 positions for 32 channels


def contenders(heads: Sequence[str]) -> list[Contender]:
    """The heads by name, and the hybrid protocol behind the one that it begins with."""
    found = [Contender(name) for name in dict.fromkeys(heads)]
    return [row for head in found for row in ([head, HYBRID] if head.head == HYBRID.head else [head])]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = Parser(__doc__ or "", "python tools/compare.py --json out/compare.json --plot out/compare.png")
    parser.add_argument("--heads", nargs="+", choices=list_heads(), metavar="NAME", help="(all)")
    parser.add_argument("--pictures", nargs="+", choices=SOURCES, default=list(SOURCES), metavar="NAME", help="(all)")
    parser.add_argument("--failures", action="store_true", help="the gradients on singular covariances instead")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw accuracies and times (.png, .svg or .pdf)")
    add_arguments(parser, RECIPE)
    parser.set_defaults(size=None)
    options = parser.parse_args(arguments)
    if options.size is None:
        options.size = SINGULAR_SIZE if options.failures else RECIPE.size
    settings = check_arguments(options)
    check_outputs(options.json, options.plot)
    if options.failures and options.heads is not None:
        parser.error("--failures has rows of its own: leave out --heads")
    torch.set_num_threads(1)  # small networks gain nothing by more
    named = [options.images] if options.images else options.pictures
    recipes = [replace(RECIPE, pictures=name, **settings) for name in named]
    for recipe in recipes:
        source(recipe.pictures)  # a mistake shows before the first training
    rows = list(FAILING) if options.failures else contenders(options.heads or list_heads())
    compare(recipes, rows, options.seeds, options.workers, options.json, options.plot)


def compare(
    recipes: Sequence[ComparisonRecipe],
    rows: Sequence[Contender],
    seeds: int,
    workers: int = 1,
    json: Path | None = None,
    plot: Path | None = None,
) -> list[ComparisonRun]:
    """Train every row on the pictures of every recipe, print the table, write the numbers and draw them.

    Args:
        recipes: what the trainings have in common, one for each source of pictures.
        rows: what is compared.
        seeds: how many; they are 0, 1, ...
        workers: trainings at a time.
        json: file for all numbers.
        plot: file for the picture.
    """
    facts: dict[str, Any] = environment(torch.device("cpu")) | dict(recipes=[asdict(recipe) for recipe in recipes])
    jobs = [(recipe, row, seed) for seed in range(seeds) for recipe in recipes for row in rows]
    runs = run_all(jobs, workers, json, facts)
    own = [row for row in rows if not row.switch]  # the hybrid takes the time of the two it is made of
    times, kept = step_times(recipes[0], own)[0], memory(recipes[0], own)
    save(json, facts | dict(step_ms=times, kept_mb=kept), runs)
    for recipe in recipes:
        classes = source(recipe.pictures).classes
        print(f"{recipe.pictures}: {len(classes)} classes, by chance {100 / len(classes):.1f} %; {seeds} seeds")
    print(f"\n{table(runs, times, kept)}")
    if plot is not None:
        draw(runs, times, plot)
    return runs


def table(runs: Sequence[ComparisonRun], times: Milliseconds, kept: Mapping[str, float]) -> str:
    """Means over the seeds ± standard deviation as a Markdown table; the condition numbers are medians."""
    pictures = list(dict.fromkeys(run.pictures for run in runs))
    header = ["head", *(f"{name}, %" for name in pictures), "failed", "ms per step", "kept, MB", "condition number"]
    cells = []
    for row in dict.fromkeys(run.contender for run in runs):
        own = [run for run in runs if run.contender == row]
        cells.append(
            [
                f"`{row}`",
                *(mean_and_spread(_accuracies(own, name)) for name in pictures),
                f"{sum(run.failed for run in own)} of {len(own)}",
                f"{times[row]:.1f}" if row in times else "-",
                f"{kept[row]:.1f}" if row in kept else "-",
                _conditions(own),
            ]
        )
    return markdown_table(header, cells)


def _accuracies(runs: Iterable[ComparisonRun], pictures: str) -> list[float]:
    return [run.accuracy for run in runs if run.pictures == pictures and run.accuracy is not None]


def _conditions(runs: Sequence[ComparisonRun]) -> str:
    """Median over all runs of the covariance's condition number, and of the condition number of what becomes of it."""
    sides = ([r.condition for r in runs], [r.condition_after for r in runs])
    known = [[value for value in side if value is not None] for side in sides]
    return " → ".join(number(statistics.median(values)) for values in known if values) or "-"


def draw(runs: Sequence[ComparisonRun], times: Milliseconds, path: Path) -> None:
    """Accuracy of every head, mean and spread, a panel for each source of pictures; and the time of a step.

    A dashed line is average pooling's.
    """
    pictures = list(dict.fromkeys(run.pictures for run in runs))
    rows = list(dict.fromkeys(run.contender for run in runs))
    rows.sort(key=lambda row: statistics.mean(_accuracies((r for r in runs if r.contender == row), pictures[0]) or [0]))
    size = (3.2 * (len(pictures) + 1), 1.2 + 0.21 * len(rows))
    figure = require_extra("matplotlib.figure", "explain").Figure(figsize=size, layout="constrained")
    *panels, last = figure.subplots(1, len(pictures) + 1, sharey=True)
    for axis, name in zip(panels, pictures, strict=True):
        found = [_accuracies((run for run in runs if run.contender == row), name) for row in rows]
        means = [statistics.mean(values) if values else float("nan") for values in found]
        spreads = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in found]
        axis.errorbar(means, range(len(rows)), xerr=spreads, fmt="o", markersize=4, capsize=2, label="mean ± deviation")
        if "gap" in rows:
            axis.axvline(means[rows.index("gap")], color="0.6", linestyle="--", linewidth=1, label="mean of gap")
        axis.set(title=name, xlabel="test accuracy, %")
    last.barh(range(len(rows)), [times.get(row, 0.0) for row in rows], color="tab:orange")
    last.set(title="training step", xlabel="ms")
    panels[0].legend(fontsize=7, loc="upper left")
    panels[0].set_yticks(range(len(rows)), rows, fontsize=8)
    for axis in (*panels, last):
        axis.grid(alpha=0.3)
    save_figure(figure, path)
