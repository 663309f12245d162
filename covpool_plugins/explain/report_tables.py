"""Whether explanations can be trusted, as tables of a report: cascading randomisation and the pointing game."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..command_line import markdown_table
from ..files import write_json
from ..pictures import read_picture
from .annotations import read_annotations
from .batch import Job
from .pointing import mean_accuracy, pointing_game
from .sanity import cascading_randomization, depends_on_weights

NONE = "n/a"
VERDICTS = {None: NONE, True: "depends on the weights", False: "hardly depends on the weights"}


@dataclass(frozen=True)
class ReportTable:
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

    def __str__(self) -> str:
        return f"{self.title}\n\n{markdown_table(self.head, self.rows, len(self.head))}"

    def write(self, path: Path) -> Path:
        """As JSON, a list with a dictionary for every row."""
        return write_json(path, [dict(zip(self.head, row, strict=True)) for row in self.rows])


def sanity_table(job: Job, pictures: Sequence[Path], progress: Callable[[], object] = lambda: None) -> ReportTable:
    """Every method on every picture while the weights become random from the classifier down.

    Args:
        job: models, methods, target.
        pictures: files.
        progress: called after every method.
    """
    rows = []
    for path in pictures:
        picture = read_picture(path)
        for model in job.models:
            for method in job.methods:
                methods = {method: job.options(method)}
                steps = cascading_randomization(model.view, picture, methods, job.target, seed=job.seed)
                similarities = [NONE if step.similarity is None else f"{step.similarity:+.2f}" for step in steps]
                notes = [step.note for step in steps if step.note]
                verdict = notes[-1] if notes else VERDICTS[depends_on_weights(steps)[method]]
                rows.append((path.name, model.label, method, " ".join(similarities), verdict))
                progress()
    return ReportTable(
        "Cascading randomisation",
        "Rank correlation with the map of the trained network, from a random classifier to all layers random; it falls "
        "below 0.5 for a map that shows what was learned (Adebayo et al., NeurIPS 2018).",
        ("image", "model", "method", "correlations", "verdict"),
        rows,
    )


def pointing_table(job: Job, folder: Path, progress: Callable[[], object] = lambda: None) -> ReportTable:
    """The pointing game on annotated pictures, mean over the classes.

    Args:
        job: models, methods, names of the classes.
        folder: see :mod:`covpool_plugins.explain.annotations`.
        progress: called after every method.

    Raises:
        ValueError: for a folder that does not have the form.
    """
    pictures = read_annotations(folder, job.models[0].view.class_names or None)
    rows = []
    for model in job.models:
        for method in job.methods:
            classes = pointing_game(model.view, pictures, {method: job.options(method)})
            accuracy = mean_accuracy(classes).get(method)
            energies = [energy for row in classes for energy in row.energies]
            energy = sum(energies) / len(energies) if energies else None
            counts = (str(sum(row.hits for row in classes)), str(sum(row.misses for row in classes)))
            shares = (NONE if share is None else f"{share:.3f}" for share in (accuracy, energy))
            notes = [row.note for row in classes if row.note]
            rows.append((model.label, method, *counts, *shares, notes[-1] if notes else ""))
            progress()
    return ReportTable(
        "Pointing game",
        "Hits are maps whose maximum lies at an object of the class, or less than 15 pixels beside it (Zhang et al., "
        "ECCV 2016). Accuracy is the mean over the classes; energy is the share of the positive values inside.",
        ("model", "method", "hits", "misses", "accuracy", "energy", "note"),
        rows,
    )
