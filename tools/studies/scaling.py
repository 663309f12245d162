"""The ``scaling`` mode: time against channels, positions and batch, ours and the published forms, as a picture."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from covpool_plugins.linalg import resolve_method

from .baselines import ISQRT, MPA, SVD_PADE
from .figures import new_figure, save_figure
from .modes import MODES, Mode, add_common_arguments, add_names, plot_file
from .roots import features_section
from .sections import Result, Section, run_sections

BASE = {"channels": 256, "positions": 196, "batch": 8}
SWEEPS = {
    "channels": (32, 64, 128, 256, 512),
    "positions": (16, 49, 196, 784, 3136),
    "batch": (1, 2, 4, 8, 16, 32),
}
OURS = ("svdpade", "isqrt", "mpa")
# The published forms dashed, ours solid, in one colour for one method.
LINES = {
    SVD_PADE: ("tab:blue", "--"),
    "svdpade, mixed": ("tab:blue", "-"),
    ISQRT: ("tab:orange", "--"),
    "isqrt, float32": ("tab:orange", "-"),
    MPA: ("tab:green", "--"),
    "mpa, float32": ("tab:green", "-"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_names(parser, "--along", SWEEPS)
    parser.add_argument("--plot", type=plot_file, metavar="FILE", help="draw the times (.png, .svg or .pdf)")
    add_common_arguments(parser, batch=None)
    parser.set_defaults(batch=BASE["batch"])


def run(arguments: argparse.Namespace) -> None:
    results = run_sections(arguments, _sections(arguments))
    if arguments.plot:
        draw(results, arguments.plot)


def _sections(arguments: argparse.Namespace) -> Iterator[Section]:
    methods = {name: resolve_method(name) for name in OURS}
    for along in arguments.along:
        for value in SWEEPS[along]:
            sizes = BASE | {along: value}
            section = features_section(sizes["channels"], sizes["positions"], sizes["batch"], methods, arguments.device)
            yield dataclasses.replace(
                section,
                title=f"{along} {value}: {section.title}, batch {sizes['batch']}",
                contenders=[contender for contender in section.contenders if contender.name in LINES],
                details={**sizes, "along": along},
            )


def draw(results: Sequence[Result], path: Path) -> None:
    """A panel for each thing that grows: ms per picture, forward and backward, of every contender."""
    sweeps = list(dict.fromkeys(result.details["along"] for result in results))
    figure = new_figure(3.6 * len(sweeps), 3.6)
    panels = figure.subplots(1, len(sweeps), sharey=True, squeeze=False)[0]
    for axis, along in zip(panels, sweeps, strict=True):
        of_sweep = [result for result in results if result.details["along"] == along]
        for name, (colour, style) in LINES.items():
            points = [(r.details[along], 1e3 * row.both) for r in of_sweep for row in r.rows if row.contender == name]
            axis.plot(*zip(*points, strict=True), style, marker="o", markersize=3, color=colour, label=name)
        fixed = ", ".join(f"{key} {value}" for key, value in BASE.items() if key != along)
        axis.set(xscale="log", yscale="log", xlabel=along, title=fixed)
        axis.title.set_fontsize(9)
        axis.set_xticks(SWEEPS[along], [str(value) for value in SWEEPS[along]])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    panels[0].set_ylabel("forward + backward, ms per picture")
    panels[0].legend(fontsize=7)
    save_figure(figure, path)


EXAMPLE = "python tools/benchmark.py scaling --repeats 3 --plot out/scaling.png"
MODES.add("scaling", Mode(__doc__ or "", EXAMPLE, add_arguments, run))
