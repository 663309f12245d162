"""From models, methods and pictures to the files of a report, written as they come, and its tables."""

from __future__ import annotations

import glob
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from ..command_line import markdown_table
from ..errors import MissingExtraError, NotApplicableError, OptionError, one_line
from ..files import write_atomically
from ..pictures import Picture, read_picture
from .annotations import read_annotations
from .explanation import Explanation
from .images import as_input
from .methods import explain_input
from .metrics import metrics
from .model_view import ForwardPass, ModelView
from .overlay import eigen_panel, montage
from .pointing import mean_accuracy, pointing_game
from .sanity import cascading_randomization, depends_on_weights

LONGEST_END = "_montage.png"
LONGEST_NAME = 255 - len(".." + 8 * "x")  # bytes of a name, less those that a temporary file's has besides
NONE = "n/a"
VERDICTS = {None: NONE, True: "depends on the weights", False: "hardly depends on the weights"}


@dataclass(frozen=True)
class Job:
    """What to explain and how.

    Args:
        models: by what they are called; compared with each other where there are several.
        methods: from the name of a method to its options.
        out: the folder to write.
        target: the class; by default the top class of the first model.
        versus: the class whose score is taken off.
        deletion_steps: of the deletion and insertion curves; 0 leaves them out.
        seed: of whatever is random.
        skip_unreadable: leave out pictures that cannot be read, instead of ending there.
    """

    models: Mapping[str, ModelView]
    methods: Mapping[str, Mapping[str, Any]]
    out: Path
    target: int | None = None
    versus: int | None = None
    deletion_steps: int = 10
    seed: int = 0
    skip_unreadable: bool = False

    def stem(self, picture: str, model: str, method: str) -> str:
        """What the names of the files of one map begin with."""
        return "_".join([picture, model, method] if len(self.models) > 1 else [picture, method])


@dataclass(frozen=True)
class Row:
    """One model and one method on one picture: the explanation and its numbers, or the reason why there is none."""

    picture: str
    model: str
    method: str
    stem: str
    explanation: Explanation | None = None
    reason: str = ""
    numbers: Mapping[str, float | None] = field(default_factory=dict)

    def entry(self) -> dict[str, Any]:
        """For ``metrics.json``."""
        entry = {"image": self.picture, "model": self.model, "method": self.method}
        if self.explanation is None:
            return {**entry, "not_applicable": self.reason}
        names = ("target", "versus", "probability", "activation", "layer")
        return {**entry, **{name: getattr(self.explanation, name) for name in names}, **self.numbers}

    def overview(self) -> tuple[str, ...]:
        """For the table on the screen."""
        shown, known = self.explanation, (self.picture, self.model, self.method)
        if shown is None:
            return (*known, *[NONE] * 4)
        gap = NONE if shown.completeness_gap is None else f"{shown.completeness_gap:.1e}"
        return (*known, shown.layer or "-", shown.class_name(shown.target), f"{shown.probability:.4f}", gap)


@dataclass
class Section:
    """What there is about one picture.

    Args:
        path: of the picture.
        name: its file name, with the folder where two pictures share one.
        rows: in the order of methods, then of models.
        compared: montages of the models and eigen panels: from the name of the file to what it shows.
    """

    path: Path
    name: str
    rows: list[Row] = field(default_factory=list)
    compared: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A table of the report.

    Args:
        file: name of the file with its rows.
        title: above it.
        text: how to read it.
        head: names of its columns.
        rows: texts.
    """

    file: str
    title: str
    text: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __str__(self) -> str:
        return f"{self.title}\n\n{markdown_table(self.head, self.rows, len(self.head))}"

    def entries(self) -> list[dict[str, str]]:
        """For the file: a dictionary for every row."""
        return [dict(zip(self.head, row, strict=True)) for row in self.rows]


def find_pictures(names: Iterable[str | Path]) -> list[Path]:
    """Files, the pictures in folders and those that fit patterns, each once, in order.

    Raises:
        OptionError: for a pattern that nothing fits or a folder without pictures.
    """
    pictures: dict[Path, None] = {}
    for name in names:
        path = Path(name)
        if path.is_dir():
            known = set(Image.registered_extensions())
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in known)
            if not inside:
                raise OptionError(f"{path} is a folder without pictures")
        elif path.exists() or not glob.has_magic(str(name)):
            inside = [path]
        else:
            inside = sorted(Path(match) for match in glob.glob(str(name), recursive=True) if Path(match).is_file())
            if not inside:
                raise OptionError(f"no file fits {str(name)!r}")
        pictures |= dict.fromkeys(inside)
    return list(pictures)


def distinct(names: Sequence[str]) -> list[str]:
    """The names; all are numbered if two are the same but for their case."""
    if len({name.casefold() for name in names}) == len(names):
        return list(names)
    return [f"{name}-{position}" for position, name in enumerate(names, start=1)]


def say_skipped(error: ValueError) -> None:
    """Why a picture is left out."""
    print(f"skipped: {one_line(error)}", file=sys.stderr)


def explain_pictures(job: Job, pictures: Sequence[Path]) -> Iterator[Section]:
    """Explain every picture; each file is whole when it appears, and stays if what follows is interrupted.

    A method that says nothing about a model, or whose extra is not installed, gives a row with the reason.

    Raises:
        OptionError: for a picture whose files could not have their names, before anything is computed.
        ValueError: as :func:`covpool_plugins.explain.explain` does, but for what a method says nothing about.
    """
    stems = distinct([path.stem for path in pictures])
    _check_names(job, stems)
    counts = Counter(path.name for path in pictures)
    total = len(pictures) * len(job.models) * len(job.methods)
    with tqdm(total=total, unit="map", disable=None) as progress:
        for path, stem in zip(pictures, stems, strict=True):
            try:
                picture = read_picture(path)
            except ValueError as error:
                if not job.skip_unreadable:
                    raise
                say_skipped(error)
                continue
            section = Section(path, path.name if counts[path.name] == 1 else str(path))
            passes = [view.forward_pass(as_input(picture, view.preprocessing)) for view in job.models.values()]
            target = int(passes[0].logits[0].argmax()) if job.target is None else job.target
            for method in job.methods:
                rows = []
                for model, passed in zip(job.models, passes, strict=True):
                    row = Row(section.name, model, method, job.stem(stem, model, method))
                    rows.append(_explain(job, row, passed, target))
                    progress.update()
                section.rows += rows
                section.compared |= _compare(job, stem, rows)
            yield section


def _check_names(job: Job, stems: Sequence[str]) -> None:
    for stem in stems:
        try:
            stem.encode()
        except UnicodeEncodeError:
            raise OptionError(f"the name of {stem!r} is not UTF-8; rename the picture") from None
        longest = max(len(job.stem(stem, model, method).encode()) for model in job.models for method in job.methods)
        if longest + len(LONGEST_END) > LONGEST_NAME:
            raise OptionError(f"the name of {stem[:40]}... is too long for its files; rename the picture")


def _explain(job: Job, row: Row, passed: ForwardPass, target: int) -> Row:
    """The row with its explanation, whose files are written, or with the reason why there is none."""
    if job.versus == target:
        return replace(row, reason=f"class {target} versus itself: it is the top class")
    view = job.models[row.model]
    try:
        explanation = explain_input(view, passed, row.method, target, job.versus, **job.methods[row.method])
    except (NotApplicableError, MissingExtraError) as error:
        return replace(row, reason=f"{row.method}: {one_line(error).removeprefix(f'{row.method}: ')}")
    numbers = metrics(view, passed, explanation, steps=job.deletion_steps, seed=job.seed)
    explanation.save(job.out, row.stem)
    return replace(row, explanation=explanation, numbers=numbers)


def _compare(job: Job, stem: str, rows: Sequence[Row]) -> dict[str, str]:
    """The eigen panels, and the montage of all models, of one method; the montage of ``eigen`` repeats another."""
    method = rows[0].method
    shown: dict[str, str] = {}
    if len(rows) > 1 and any(row.explanation for row in rows):
        name = f"{stem}_{method}_montage.png"
        _save(montage([(row.model, row.explanation or row.reason) for row in rows]), job.out / name)
        if method != "eigen" or "contribution" not in job.methods:
            shown[name] = f"{method} of all models"
    for row in rows if method == "eigen" else ():
        if row.explanation is not None:
            name = f"{row.stem}_panel.png"
            _save(eigen_panel(row.explanation), job.out / name)
            shown[name] = f"eigen panel of {row.model}"
    return shown


def _save(picture: Picture, path: Path) -> None:
    write_atomically(path, lambda file: picture.save(file, format="PNG"))


def reasons(job: Job, sections: Iterable[Section]) -> list[str]:
    """Why there are no maps, each once, with the model where there are several."""
    rows = [row for section in sections for row in section.rows if row.reason]
    return list(dict.fromkeys(f"{row.model}: {row.reason}" if len(job.models) > 1 else row.reason for row in rows))


def sanity_table(job: Job, sections: Iterable[Section]) -> Table:
    """Every method on every explained picture while the weights become random from the classifier down."""
    rows = []
    for section in sections:
        for model, view in job.models.items():
            steps = cascading_randomization(view, section.path, job.methods, job.target, seed=job.seed)
            verdicts = depends_on_weights(steps)
            for method in job.methods:
                own = [step for step in steps if step.method == method]
                similarities = [NONE if step.similarity is None else f"{step.similarity:+.2f}" for step in own]
                notes = [step.note for step in own if step.note]
                verdict = notes[-1] if notes else VERDICTS[verdicts[method]]
                rows.append((section.name, model, method, " ".join(similarities), verdict))
    return Table(
        "sanity.json",
        "Cascading randomisation",
        "Rank correlation with the map of the trained network, from a random classifier to all layers random; it falls "
        "below 0.5 for a map that shows what was learned (Adebayo et al., NeurIPS 2018).",
        ("image", "model", "method", "correlations", "verdict"),
        rows,
    )


def pointing_table(job: Job, folder: Path) -> Table:
    """The pointing game on the annotated pictures of a folder, mean over the classes.

    Raises:
        ValueError: for a folder that does not have the form, see :mod:`covpool_plugins.explain.annotations`.
    """
    rows = []
    for model, view in job.models.items():
        pictures = read_annotations(folder, view.class_names or None)
        classes = pointing_game(view, pictures, job.methods)
        accuracies = mean_accuracy(classes)
        for method in job.methods:
            own = [row for row in classes if row.method == method]
            energies = [energy for row in own for energy in row.energies]
            shares = (accuracies.get(method), sum(energies) / len(energies) if energies else None)
            counts = (str(sum(row.hits for row in own)), str(sum(row.misses for row in own)))
            notes = [row.note for row in own if row.note]
            texts = (NONE if share is None else f"{share:.3f}" for share in shares)
            rows.append((model, method, *counts, *texts, notes[-1] if notes else ""))
    return Table(
        "pointing.json",
        "Pointing game",
        "Hits are maps whose maximum lies at an object of the class, or less than 15 pixels beside it (Zhang et al., "
        "ECCV 2016). Accuracy is the mean over the classes; energy is the share of the positive values inside.",
        ("model", "method", "hits", "misses", "accuracy", "energy", "note"),
        rows,
    )
