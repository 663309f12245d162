"""The ``heads`` comparison: accuracy, time, memory, condition numbers and failures of every head.

Each stands behind the same small network, trained from scratch seed by seed on the same pictures by the same recipe.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from covpool_plugins.command_line import markdown_table
from covpool_plugins.errors import OptionError
from covpool_plugins.timm_plugin import list_heads

from .comparison import ComparisonRecipe, ComparisonRun, Costs, SmallNetwork, add_comparison_arguments, compare
from .figures import mean_and_spread, new_figure, number, save_figure
from .modes import COMPARISONS, Mode, add_names, plot_file
from .photographs import SOURCES

RECIPE = ComparisonRecipe(size=48, epochs=12, test_per_class=40)
HYBRID = SmallNetwork("isqrt", switch="svdpade")
# Gradients of the root where the covariance is singular, the published and plain ones against ours.
FAILING = (
    *(SmallNetwork("svdpade", baseline=f"torch.linalg.eigh, autograd ({precision})") for precision in ("f32", "f64")),
    *(
        SmallNetwork(name, (("compute", "float32"),))
        for name in ("svdoriginal", "svdtrunc", "svdtaylor", "svdpi", "svdpade", "exact", "isqrt")
    ),
)
SINGULAR_SIZE = 16  # 2x2 positions for 32 channels


def networks(heads: Sequence[str]) -> list[SmallNetwork]:
    """The heads by name, and the hybrid protocol behind the one that it begins with."""
    rows = [SmallNetwork(name) for name in dict.fromkeys(heads)]
    return [network for row in rows for network in ([row, HYBRID] if row.pool == HYBRID.pool else [row])]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--heads", nargs="+", choices=list_heads(), metavar="NAME", help="(all)")
    add_names(parser, "--pictures", SOURCES)
    parser.add_argument("--failures", action="store_true", help="the gradients on singular covariances instead")
    parser.add_argument("--plot", type=plot_file, metavar="FILE", help="draw accuracies and times (.png, .svg or .pdf)")
    add_comparison_arguments(parser, RECIPE)
    parser.set_defaults(size=None)


def run(options: argparse.Namespace) -> None:
    if options.failures and options.heads is not None:
        raise OptionError("--failures has rows of its own: leave out --heads")
    if options.size is None:
        options.size = SINGULAR_SIZE if options.failures else RECIPE.size
    rows = FAILING if options.failures else networks(options.heads or list_heads())
    runs, costs = compare(options, RECIPE, options.pictures, rows)
    print(f"\n{table(runs, costs)}")
    if options.plot is not None:
        draw(runs, costs, options.plot)


def table(runs: Sequence[ComparisonRun], costs: Costs) -> str:
    """Means over the seeds ± standard deviation as a Markdown table; the condition numbers are medians."""
    pictures = list(dict.fromkeys(run.pictures for run in runs))
    header = ["head", *(f"{name}, %" for name in pictures), "failed", "ms per step", "kept, MB", "condition number"]
    rows = []
    for network in dict.fromkeys(run.network for run in runs):
        of_network = [run for run in runs if run.network == network]
        rows.append(
            [
                f"`{network}`",
                *(mean_and_spread(_accuracies(of_network, name)) for name in pictures),
                f"{sum(run.accuracy is None for run in of_network)} of {len(of_network)}",
                f"{costs.step_ms[network]:.1f}" if network in costs.step_ms else "-",
                f"{costs.kept_mb[network]:.1f}" if network in costs.kept_mb else "-",
                _conditions(of_network),
            ]
        )
    return markdown_table(header, rows)


def _accuracies(runs: Iterable[ComparisonRun], pictures: str) -> list[float]:
    return [run.accuracy for run in runs if run.pictures == pictures and run.accuracy is not None]


def _conditions(runs: Sequence[ComparisonRun]) -> str:
    """Median over all runs of the covariance's condition number, and of the condition number of what becomes of it."""
    sides = ([run.condition for run in runs], [run.condition_after for run in runs])
    known = [[value for value in side if value is not None] for side in sides]
    return " → ".join(number(statistics.median(values)) for values in known if values) or "-"


def draw(runs: Sequence[ComparisonRun], costs: Costs, path: Path) -> None:
    """Accuracy of every head, mean and spread, a panel for each source of pictures; and the time of a step.

    A dashed line is average pooling's.
    """
    pictures = list(dict.fromkeys(run.pictures for run in runs))
    accuracies = {
        network: [_accuracies((run for run in runs if run.network == network), name) for name in pictures]
        for network in dict.fromkeys(run.network for run in runs)
    }
    rows = sorted(accuracies, key=lambda network: statistics.mean(accuracies[network][0] or [0]))
    figure = new_figure(3.2 * (len(pictures) + 1), 1.2 + 0.21 * len(rows))
    *panels, last = figure.subplots(1, len(pictures) + 1, sharey=True)
    for place, (axis, name) in enumerate(zip(panels, pictures, strict=True)):
        values = [accuracies[row][place] for row in rows]
        means = [statistics.mean(row) if row else float("nan") for row in values]
        spreads = [statistics.stdev(row) if len(row) > 1 else 0.0 for row in values]
        axis.errorbar(means, range(len(rows)), xerr=spreads, fmt="o", markersize=4, capsize=2, label="mean ± deviation")
        if "gap" in rows:
            axis.axvline(means[rows.index("gap")], color="0.6", linestyle="--", linewidth=1, label="mean of gap")
        axis.set(title=name, xlabel="test accuracy, %")
    last.barh(range(len(rows)), [costs.step_ms.get(row, 0.0) for row in rows], color="tab:orange")
    last.set(title="training step", xlabel="ms")
    panels[0].legend(fontsize=7, loc="upper left")
    panels[0].set_yticks(range(len(rows)), rows, fontsize=8)
    for axis in (*panels, last):
        axis.grid(alpha=0.3)
    save_figure(figure, path)


EXAMPLE = "python tools/compare.py heads --json out/compare.json --plot out/compare.png"
COMPARISONS.add("heads", Mode(__doc__ or "", EXAMPLE, add_arguments, run))
