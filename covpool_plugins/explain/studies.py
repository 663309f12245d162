"""Whether explanations can be trusted, as tables: cascading randomisation and the pointing game."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import write_atomically
from ..pictures import read_picture
from .annotations import read_annotations
from .batch import Job, seeded_options
from .pointing import mean_accuracy, pointing_game
from .sanity import cascading_randomization, depends_on_weights

NONE = "n/a"


@dataclass(frozen=True)
class Table:
    """A table of a report.

    Args:
        title: above it.
        text: how to read it.
        head: names of its columns.
        rows: texts.
    """

    title: str
    text: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def write(self, path: Path) -> Path:
        """As JSON, a list with a dictionary for every row."""
        text = json.dumps([dict(zip(self.head, row, strict=True)) for row in self.rows], indent=1)
        return write_atomically(path, lambda file: file.write(text.encode()))


def sanity_table(job: Job, pictures: Sequence[Path], progress: Callable[[], object] = lambda: None) -> Table:
    """Every method on every picture while the weights become random from the classifier down.

    Args:
        job: models, methods, target.
        pictures: files.
        progress: called after every method.
    """
    rows = []
    for path in pictures:
        picture = read_picture(path)
        for subject in job.subjects:
            for method, options in job.methods.items():
                chosen = {method: seeded_options(job, method, options)}
                found = cascading_randomization(
                    subject.view, picture, [method], job.target, seed=job.seed, options=chosen
                )
                verdict = depends_on_weights(found).get(method)
                said = {None: NONE, True: "depends on the weights", False: "hardly depends on the weights"}[verdict]
                notes = [row.note for row in found if row.note]
                steps = " ".join(NONE if row.similarity is None else f"{row.similarity:+.2f}" for row in found)
                rows.append((path.name, subject.label, method, steps, said if not notes else notes[-1]))
                progress()
    return Table(
        "Cascading randomisation",
        "Rank correlation of the map with that of the trained network, from random classifier to all random; a map "
        "that shows what was learned falls below 0.5 (Adebayo et al., NeurIPS 2018).",
        ("image", "model", "method", "correlations", "verdict"),
        rows,
    )


def pointing_table(job: Job, folder: Path, progress: Callable[[], object] = lambda: None) -> Table:
    """The pointing game on annotated pictures, mean over the classes.

    Args:
        job: models, methods, names of the classes.
        folder: see :mod:`covpool_plugins.explain.annotations`.
        progress: called after every method.

    Raises:
        ValueError: for a folder that does not have the form.
    """
    pictures = read_annotations(folder, job.class_names or None)
    rows = []
    for subject in job.subjects:
        for method, options in job.methods.items():
            chosen = {method: seeded_options(job, method, options)}
            found = pointing_game(subject.view, pictures, [method], chosen)
            accuracy = mean_accuracy(found).get(method)
            energies = [energy for row in found for energy in row.energies]
            counts = (str(sum(row.hits for row in found)), str(sum(row.misses for row in found)))
            share = f"{sum(energies) / len(energies):.3f}" if energies else NONE
            notes = [row.note for row in found if row.note]
            rows.append((subject.label, method, *counts, _number(accuracy), share, notes[-1] if notes else ""))
            progress()
    return Table(
        "Pointing game",
        "Maps whose maximum lies at an object of the class, or less than 15 pixels beside it (Zhang et al., ECCV "
        "2016): hits, misses, mean accuracy of the classes; energy is the share of the positive values inside.",
        ("model", "method", "hits", "misses", "accuracy", "energy", "note"),
        rows,
    )


def print_table(table: Table) -> str:
    """As text."""
    rows = [table.head, *table.rows]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _number(value: Any) -> str:
    return NONE if value is None else f"{value:.3f}"
