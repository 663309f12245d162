"""The ``bilinear`` comparison: what the papers on bilinear pooling compare, with small networks on the same crops.

Aggregation (sum, democratic, spectral), the gradient of the matrix root (by a Lyapunov equation or by differences of
eigenvalues), the power of the covariance, and one network or two.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from covpool_plugins.command_line import markdown_table

from .comparison import ComparisonRecipe, ComparisonRun, Costs, SmallNetwork, add_comparison_arguments, compare
from .figures import mean_and_spread
from .modes import COMPARISONS, Mode, add_names

RECIPE = ComparisonRecipe()


def _root(method: str) -> SmallNetwork:
    return SmallNetwork("ibcnn", (("method", method),))


def _democratic(gamma: float) -> SmallNetwork:
    return SmallNetwork("democratic", (("gamma", gamma),))


SUM, SPECTRAL = SmallNetwork("bcnn"), _root("exact")
# What is in two tables is trained once. In each, the first row is what the others are compared with.
SECTIONS: dict[str, dict[str, SmallNetwork]] = {
    "aggregation": {
        "sum": SUM,
        "democratic, γ = 0.5": _democratic(0.5),
        "democratic, γ = 0": _democratic(0.0),
        "spectral, p = 1/2": SPECTRAL,
    },
    "gradient": {
        "Lyapunov, in the eigenbasis": SPECTRAL,
        "Lyapunov, Newton-Schulz": _root("newton_schulz_lyapunov"),
        "Lyapunov, Denman-Beavers": _root("denman_beavers"),
        "SVD, 1 / (λi - λj)": _root("svdoriginal"),
        "SVD, 1 / (λi - λj) cut off": _root("svdtrunc"),
    },
    "power": {f"A^{p:g}": SmallNetwork("powcov", (("p", p),)) for p in (1.0, 0.75, 0.5, 0.25)}
    | {"log(I + A / ε)": SmallNetwork("logcov")},
    "networks": {
        "B-CNN": SUM,
        "Improved B-CNN": SPECTRAL,
        "[D+D]": SmallNetwork(streams=("D", "D")),
        "[D+M]": SmallNetwork(streams=("D", "M")),
        "average pooling": SmallNetwork("gap"),
    },
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_names(parser, "--sections", SECTIONS)
    add_comparison_arguments(parser, RECIPE)


def run(options: argparse.Namespace) -> None:
    networks = list(dict.fromkeys(network for name in options.sections for network in SECTIONS[name].values()))
    runs, costs = compare(options, RECIPE, [RECIPE.pictures], networks)
    for name in options.sections:
        print(f"\n{section_table(name, runs, costs)}")


def section_table(section: str, runs: Sequence[ComparisonRun], costs: Costs) -> str:
    """Means over the seeds ± standard deviation as a Markdown table; differences are taken seed by seed."""
    header = [section, "accuracy, %", "lowest to highest", "less the first row", "ms per step", "pool alone, ms"]
    by_network = {str(net): [run for run in runs if run.network == str(net)] for net in SECTIONS[section].values()}
    first = next(iter(by_network))
    rows = []
    for label, network in zip(SECTIONS[section], by_network, strict=True):
        of_network = by_network[network]
        accuracies = [run.accuracy for run in of_network if run.accuracy is not None]
        pairs = [(run.accuracy, other.accuracy) for run, other in zip(of_network, by_network[first], strict=True)]
        differences = [a - b for a, b in pairs if a is not None and b is not None]
        rows.append(
            [
                label if label == network else f"{label} (`{network}`)",
                mean_and_spread(accuracies),
                f"{min(accuracies):.1f} to {max(accuracies):.1f}" if accuracies else "-",
                "-" if network == first else mean_and_spread(differences, "+"),
                f"{costs.step_ms[network]:.1f}",
                f"{costs.pool_ms[network]:.2f}" if network in costs.pool_ms else "-",
                f"{of_network[0].parameters:,}".replace(",", " "),
            ]
        )
    return markdown_table([*header, "weights"], rows)


EXAMPLE = "python tools/compare.py bilinear --sections aggregation power --json out/bilinear.json"
COMPARISONS.add("bilinear", Mode(__doc__ or "", EXAMPLE, add_arguments, run))
