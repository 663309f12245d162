"""A section of the benchmark: contenders for one input, timed in turn and compared with the exact result."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from covpool_plugins.command_line import markdown_table
from covpool_plugins.errors import one_line
from covpool_plugins.files import write_json

from .figures import number
from .measure import Function, bytes_saved, relative_error, seeded_gradient, time_interleaved, value_and_gradient
from .modes import environment

Clock = Literal["both", "backward"]


@dataclass(frozen=True)
class Contender:
    """One route to a result.

    Args:
        label: short name.
        kind: group in tables and plots, for example the precision.
        function: X -> result.
        operator: what the route computes where that is not what the section asks for; else empty.
        own: that operator, which is called with float64 input.
    """

    label: str
    kind: str
    function: Function
    operator: str = ""
    own: Function | None = None

    @property
    def name(self) -> str:
        return self.label if self.kind == "baseline" else f"{self.label}, {self.kind}"


@dataclass(frozen=True)
class Section:
    """What is measured together.

    Args:
        title: heading.
        contenders: in the order of the rows.
        X: input (B, ...) with one picture or matrix per sample.
        G: gradient that goes into the backward; ``None`` for one of each result's own shape.
        exact: value and gradient in float64; ``None`` where the contenders have nothing in common to compare.
        against: names of the contenders that ratios are taken to.
        clock: which time the ratios compare.
        details: of the input, for the JSON file.
    """

    title: str
    contenders: Sequence[Contender]
    X: Tensor
    G: Tensor | None = None
    exact: tuple[Tensor, Tensor] | None = None
    against: tuple[str, ...] = ()
    clock: Clock = "both"
    details: dict[str, Any] = field(default_factory=dict)


@dataclass
class Row:
    """The figures of one contender: bytes and seconds per sample, relative errors."""

    contender: str
    label: str
    kind: str
    operator: str
    bytes_kept: float
    value_error: float | None = None
    gradient_error: float | None = None
    own_value_error: float | None = None
    own_gradient_error: float | None = None
    forward: float = 0.0
    backward: float = 0.0
    both: float = 0.0
    ratios: dict[str, float] = field(default_factory=dict)


@dataclass
class Result:
    """The rows of a section, and why contenders are missing from it."""

    title: str
    against: tuple[str, ...]
    details: dict[str, Any]
    rows: list[Row]
    left_out: dict[str, str]

    def markdown(self) -> str:
        """Heading, table, what the operators of their own are, and who was left out."""
        header = ["contender", "forward", "backward", "both", *(f"vs {name}" for name in self.against), "kept, MB"]
        if any(row.value_error is not None for row in self.rows):
            header += ["value error", "gradient error", "own value", "own gradient"]
        rows = [_cells(row, self.against)[: len(header)] for row in self.rows]
        lines = [f"## {self.title}", "", "Times in ms per picture or matrix.", "", markdown_table(header, rows), ""]
        operators = {row.operator: row.contender for row in reversed(self.rows) if row.operator}
        lines += [f"* own operator of {contender}: {operator}" for operator, contender in reversed(operators.items())]
        lines += [f"* left out: {contender}: {reason}" for contender, reason in self.left_out.items()]
        return "\n".join(lines) + "\n"


def _cells(row: Row, against: Sequence[str]) -> list[str]:
    times = [f"{1e3 * seconds:.3f}" for seconds in (row.forward, row.backward, row.both)]
    ratios = [_ratio(row.ratios[name]) if name in row.ratios else "-" for name in against]
    errors = [row.value_error, row.gradient_error, row.own_value_error, row.own_gradient_error]
    kept = f"{row.bytes_kept / 1e6:.3f}"
    return [row.contender, *times, *ratios, kept, *("-" if error is None else number(error) for error in errors)]


def _ratio(ratio: float) -> str:
    return f"{ratio:.1f}x" if ratio >= 1 else f"{ratio:.2g}x"


def run_section(section: Section, repeats: int) -> Result:
    """Errors and memory first, once each; then the times of those that got so far, in turn."""
    left_out: dict[str, str] = {}
    rows: dict[str, Row] = {}
    functions: dict[str, Function] = {}
    own: dict[str, tuple[Tensor, Tensor]] = {}
    for contender in section.contenders:
        try:
            rows[contender.name] = _untimed_row(contender, section, own)
            functions[contender.name] = contender.function
        except RuntimeError as error:
            left_out[contender.name] = one_line(error)
    G = {name: _gradient(function, section) for name, function in functions.items()}
    times = time_interleaved(functions, section.X, G, repeats, section.title)
    for name, row in rows.items():
        row.forward, row.backward, row.both = (seconds / len(section.X) for seconds in times[name].median())
    for row in rows.values():
        for other in section.against:
            if other in rows:
                row.ratios[other] = getattr(rows[other], section.clock) / getattr(row, section.clock)
    return Result(section.title, section.against, section.details, list(rows.values()), left_out)


def _gradient(function: Function, section: Section) -> Tensor:
    result = function(section.X)
    G = seeded_gradient(result.shape, result.device) if section.G is None else section.G
    return G.to(result.dtype)


def _untimed_row(contender: Contender, section: Section, own: dict[str, tuple[Tensor, Tensor]]) -> Row:
    """Bytes and errors; ``own`` holds the float64 results of the operators met so far."""
    kept = bytes_saved(contender.function, section.X) / len(section.X)
    row = Row(contender.name, contender.label, contender.kind, contender.operator, kept)
    G = _gradient(contender.function, section)
    result = value_and_gradient(contender.function, section.X, G)
    if section.exact is not None:
        row.value_error, row.gradient_error = map(relative_error, result, section.exact)
    if contender.own is not None:
        if contender.operator not in own:
            own[contender.operator] = value_and_gradient(contender.own, section.X.double(), G.double())
        row.own_value_error, row.own_gradient_error = map(relative_error, result, own[contender.operator])
    return row


def run_sections(arguments: argparse.Namespace, sections: Iterable[Section]) -> list[Result]:
    """Measure sections, print each as it is done, and write the JSON file, as the common options say."""
    torch.set_num_threads(arguments.threads)
    facts = {**environment(arguments.device), "batch": arguments.batch, "repeats": arguments.repeats}
    print(f"# {arguments.mode}\n\n" + ", ".join(f"{key} {value}" for key, value in facts.items()) + "\n", flush=True)
    results: list[Result] = []
    for section in sections:
        results.append(run_section(section, arguments.repeats))
        print(results[-1].markdown(), flush=True)
    if arguments.json:
        write_json(arguments.json, {"environment": facts, "sections": [asdict(result) for result in results]})
    return results
