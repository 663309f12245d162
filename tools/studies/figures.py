"""Figures as Markdown, JSON and a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from covpool_plugins.command_line import markdown_table
from covpool_plugins.errors import require_extra
from covpool_plugins.files import write_atomically

if TYPE_CHECKING:
    from .sections import Result, Row


def number(value: float) -> str:
    """Two digits from 0.01 to 100, one digit and an exponent elsewhere."""
    if not math.isfinite(value):
        return str(value)
    if value == 0 or 0.01 <= abs(value) < 99.5:
        return f"{value:#.2g}".rstrip(".")
    mantissa, exponent = f"{value:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def result_markdown(result: Result) -> str:
    """One section: heading, table, what the own operators are, and who was left out."""
    header = ["contender", "forward", "backward", "both", *(f"vs {name}" for name in result.against), "kept, MB"]
    with_errors = any(row.value_error is not None for row in result.rows)
    header += ["value error", "gradient error", "own value", "own gradient"] if with_errors else []
    rows = [_cells(row, result.against)[: len(header)] for row in result.rows]
    lines = [f"## {result.title}", "", "Times in ms per image or matrix.", "", markdown_table(header, rows), ""]
    operators = {row.operator: row.contender for row in reversed(result.rows) if row.operator}
    lines += [f"* own operator of {contender}: {operator}" for operator, contender in reversed(operators.items())]
    lines += [f"* left out: {contender}: {reason}" for contender, reason in result.left_out.items()]
    return "\n".join(lines) + "\n"


def _cells(row: Row, against: Sequence[str]) -> list[str]:
    times = [f"{1e3 * seconds:.3f}" for seconds in (row.forward, row.backward, row.both)]
    ratios = [_times(row.ratios[name]) if name in row.ratios else "-" for name in against]
    errors = [row.value_error, row.gradient_error, row.own_value_error, row.own_gradient_error]
    return [
        row.contender,
        *times,
        *ratios,
        f"{row.bytes_kept / 1e6:.3f}",
        *("-" if error is None else number(error) for error in errors),
    ]


def _times(ratio: float) -> str:
    return f"{ratio:.1f}x" if ratio >= 1 else f"{ratio:.2g}x"


def write_plot(path: Path, results: Sequence[Result]) -> None:
    """One panel per section: gradient error against the square root's gradient, over time per image."""
    figure_module = require_extra("matplotlib.figure", "explain")
    figure = figure_module.Figure(figsize=(7 * len(results), 6), layout="constrained")
    for axis, result in zip(figure.subplots(1, len(results), squeeze=False)[0], results, strict=True):
        kinds = sorted({row.kind for row in result.rows})
        for kind in kinds:
            shown = [r for r in result.rows if r.kind == kind and r.gradient_error and math.isfinite(r.gradient_error)]
            errors = [r.gradient_error for r in shown if r.gradient_error is not None]
            axis.scatter([1e3 * r.both for r in shown], errors, s=18, label=kind)
            for r in shown:
                axis.annotate(
                    r.label, (1e3 * r.both, r.gradient_error), fontsize=6, xytext=(3, 2), textcoords="offset points"
                )
        axis.set(xscale="log", yscale="log", title=result.title, xlabel="forward + backward, ms per image")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    figure.axes[0].set_ylabel("relative error of the gradient")
    save_figure(figure, path)


def save_figure(figure: Any, path: Path) -> None:
    """A matplotlib figure as what the suffix of the path says."""
    write_atomically(path, lambda file: figure.savefig(file, format=path.suffix[1:], dpi=130))
