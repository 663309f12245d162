"""A section of the benchmark: contenders for one input, timed in turn and compared with the exact result."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from covpool_plugins.errors import one_line
from covpool_plugins.files import write_json

from .figures import result_markdown
from .measure import Function, bytes_saved, relative_error, seeded_gradient, time_interleaved, value_and_gradient
from .modes import check_outputs, environment

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
        X: input (B, ...) with one image or matrix per sample.
        G: gradient that goes into the backward; ``None`` for one of each result's own shape.
        exact: value and gradient in float64; ``None`` where the contenders have nothing in common to compare.
        against: names of the contenders that ratios are taken to.
        clock: which time the ratios compare.
        details: of the input, for the JSON file.
    """

    title: str
    contenders: Sequence[Contender]
    X: Tensor
    G: Tensor | None
    exact: tuple[Tensor, Tensor] | None
    against: tuple[str, ...] = ()
    clock: Clock = "both"
    details: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclass
class Row:
    """The figures of one contender: seconds per sample, bytes per sample, relative errors."""

    contender: str
    label: str
    kind: str
    operator: str
    value_error: float | None
    gradient_error: float | None
    own_value_error: float | None
    own_gradient_error: float | None
    bytes_kept: float
    forward: float = 0.0
    backward: float = 0.0
    both: float = 0.0
    ratios: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclass
class Result:
    """The rows of a section, and why contenders are missing from it."""

    title: str
    against: tuple[str, ...]
    rows: list[Row]
    left_out: dict[str, str]
    details: dict[str, Any]


def run_section(section: Section, repeats: int) -> Result:
    """Errors and memory first, once each; then the times of those that got so far, in turn."""
    left_out: dict[str, str] = {}
    rows: dict[str, Row] = {}
    functions: dict[str, Function] = {}
    own: dict[str, tuple[Tensor, Tensor]] = {}
    for contender in section.contenders:
        try:
            rows[contender.name] = _accuracy(contender, section, own)
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
    return Result(section.title, section.against, list(rows.values()), left_out, section.details)


def _gradient(function: Function, section: Section) -> Tensor:
    result = function(section.X)
    G = seeded_gradient(result.shape, result.device) if section.G is None else section.G
    return G.to(result.dtype)


def _accuracy(contender: Contender, section: Section, own: dict[str, tuple[Tensor, Tensor]]) -> Row:
    """Errors and bytes; ``own`` holds the float64 results of the operators met so far."""
    G = _gradient(contender.function, section)
    found = value_and_gradient(contender.function, section.X, G)
    own_errors: tuple[float, float] | None = None
    if contender.own is not None:
        if contender.operator not in own:
            own[contender.operator] = value_and_gradient(contender.own, section.X.double(), G.double())
        own_errors = _errors(found, own[contender.operator])
    errors = _errors(found, section.exact) if section.exact else None
    return Row(
        contender=contender.name,
        label=contender.label,
        kind=contender.kind,
        operator=contender.operator,
        value_error=errors[0] if errors else None,
        gradient_error=errors[1] if errors else None,
        own_value_error=own_errors[0] if own_errors else None,
        own_gradient_error=own_errors[1] if own_errors else None,
        bytes_kept=bytes_saved(contender.function, section.X) / len(section.X),
    )


def _errors(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> tuple[float, float]:
    return relative_error(found[0], expected[0]), relative_error(found[1], expected[1])


def run_sections(arguments: argparse.Namespace, title: str, sections: Iterable[Section]) -> list[Result]:
    """Measure sections, print each as it is done, and write the JSON file, as the common options say.

    Raises:
        OptionError: before anything is measured, if the file cannot be written.
    """
    check_outputs(arguments.json)
    torch.set_num_threads(arguments.threads)
    facts = {**environment(arguments.device), "batch": arguments.batch, "repeats": arguments.repeats}
    print(f"# {title}\n\n" + ", ".join(f"{key} {value}" for key, value in facts.items()) + "\n", flush=True)
    results: list[Result] = []
    for section in sections:
        results.append(run_section(section, arguments.repeats))
        print(result_markdown(results[-1]), flush=True)
    if arguments.json:
        write_json(arguments.json, {"environment": facts, "sections": [dataclasses.asdict(r) for r in results]})
    return results
