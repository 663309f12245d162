"""The comparisons of the papers on bilinear pooling, on crops of real photographs, with small networks from scratch.

Aggregation (sum, democratic, spectral), the gradient of the matrix root (by a Lyapunov equation or by differences of
eigenvalues), the power of the covariance, and one network or two: all are trained on the same crops, seed by seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from covpool_plugins.command_line import Parser, markdown_table, run_tool

from .comparison import (
    ComparisonRecipe,
    ComparisonRun,
    Contender,
    Milliseconds,
    add_arguments,
    check_arguments,
    mean_and_spread,
    run_all,
    save,
    step_times,
)
from .modes import environment
from .sources import source


def _root(method: str) -> Contender:
    return Contender("ibcnn", (("method", method),))


def _democratic(gamma: float) -> Contender:
    return Contender("democratic", (("gamma", gamma),))


def _power(p: float) -> Contender:
    return Contender("powcov", (("p", p),))


SUM, SPECTRAL = Contender("bcnn"), _root("exact")
# What is in two comparisons is trained once. In each, the first row is what the others are compared with.
SECTIONS: dict[str, dict[str, Contender]] = {
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
    "power": {f"A^{p:g}": _power(p) for p in (1.0, 0.75, 0.5, 0.25)} | {"log(I + A / ε)": Contender("logcov")},
    "networks": {
        "B-CNN": SUM,
        "Improved B-CNN": SPECTRAL,
        "[D+D]": Contender(networks=("D", "D")),
        "[D+M]": Contender(networks=("D", "M")),
        "average pooling": Contender("gap"),
    },
}


def section_table(section: str, runs: Sequence[ComparisonRun], networks: Milliseconds, pools: Milliseconds) -> str:
    """One comparison as a Markdown table: means over the seeds ± standard deviation.

    Differences are taken seed by seed.
    """
    header = [
        section,
        "accuracy, %",
        "lowest to highest",
        "less the first row",
        "ms per step",
        "pool alone, ms",
        "weights",
    ]
    of = {str(c): [run for run in runs if run.contender == str(c)] for c in SECTIONS[section].values()}
    first = [run.accuracy for run in next(iter(of.values()))]
    rows = []
    for label, contender in SECTIONS[section].items():
        own = of[str(contender)]
        found = [run.accuracy for run in own if run.accuracy is not None]
        less = [
            run.accuracy - b for run, b in zip(own, first, strict=True) if run.accuracy is not None and b is not None
        ]
        pool = f"{pools[str(contender)]:.2f}" if str(contender) in pools else "-"
        rows.append(
            [
                label if label == str(contender) else f"{label} (`{contender}`)",
                mean_and_spread(found),
                f"{min(found):.1f} to {max(found):.1f}",
                "-" if contender == next(iter(SECTIONS[section].values())) else mean_and_spread(less, "+"),
                f"{networks[str(contender)]:.1f}",
                pool,
                f"{own[0].parameters:,}".replace(",", " "),
            ]
        )
    return markdown_table(header, rows)


def compare(
    recipe: ComparisonRecipe,
    sections: Sequence[str] = tuple(SECTIONS),
    seeds: int = 5,
    workers: int = 1,
    json: Path | None = None,
) -> list[ComparisonRun]:
    """Train everything, print a table for each comparison, write the numbers to ``json``.

    Args:
        recipe: what the trainings have in common.
        sections: comparisons, of ``SECTIONS``.
        seeds: how many; they are 0, 1, ...
        workers: trainings at a time.
        json: file for all numbers.

    Raises:
        OptionError: for a folder of images that is no folder of classes.
    """
    contenders = list(dict.fromkeys(contender for name in sections for contender in SECTIONS[name].values()))
    names = source(recipe.pictures).classes
    facts = environment(torch.device("cpu")) | dict(classes=list(names), recipe=asdict(recipe))
    jobs = [(recipe, contender, seed) for seed in range(seeds) for contender in contenders]
    runs = run_all(jobs, workers, json, facts)
    times = step_times(recipe, contenders)
    print(f"{len(names)} classes, by chance {100 / len(names):.1f} %; {seeds} seeds; {', '.join(names)}")
    for name in sections:
        print(f"\n{section_table(name, runs, *times)}")
    save(json, facts | dict(networks_ms=times[0], pools_ms=times[1]), runs)
    return runs


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = Parser(__doc__ or "", "python -m studies.bilinear --json out/bilinear.json", prog="bilinear")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="NAME")
    add_arguments(parser, ComparisonRecipe())
    options = parser.parse_args(arguments)
    settings = check_arguments(options)
    recipe = ComparisonRecipe(options.images or ComparisonRecipe.pictures, **settings)
    torch.set_num_threads(1)  # small networks gain nothing by more
    compare(recipe, options.sections, options.seeds, options.workers, options.json)


if __name__ == "__main__":
    run_tool(main)
