"""Many explanations: models by methods by pictures, written as they come, and what compares them."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import MissingExtraError, NotApplicableError, OptionError, one_line
from ..files import write_atomically, write_json
from ..pictures import Picture, read_picture
from .explanation import Explanation
from .images import as_input
from .methods import explain_input, explanation_options
from .metrics import metrics
from .model_view import ForwardPass, ModelView
from .panel import eigen_panel, montage

LONGEST_END = "_montage.png"
LONGEST_NAME = 255 - len(".." + 8 * "x")  # bytes of a name, less those that a temporary file's has besides


@dataclass(frozen=True)
class NamedModel:
    """A model and what it is called in pictures and file names."""

    label: str
    view: ModelView


@dataclass(frozen=True)
class Job:
    """What to explain and how.

    Args:
        models: compared with each other where there are several.
        methods: from the name of a method to its options.
        target: the class; by default the top class of the first model.
        versus: the class whose score is taken off.
        deletion_steps: of the deletion and insertion curves; 0 leaves them out.
        seed: of whatever is random.
        skip_unreadable: leave out pictures that cannot be read, instead of ending there.
    """

    models: Sequence[NamedModel]
    methods: Mapping[str, Mapping[str, Any]]
    target: int | None = None
    versus: int | None = None
    deletion_steps: int = 10
    seed: int = 0
    skip_unreadable: bool = False

    def options(self, method: str) -> dict[str, Any]:
        """The options of a method, with the job's seed if it takes one."""
        seed = {"seed": self.seed} if "seed" in explanation_options(method) else {}
        return {**seed, **self.methods[method]}


@dataclass
class MapRow:
    """One model and one method on one picture: the explanation, its numbers and its file, or why there is none."""

    picture: str
    label: str
    method: str
    explanation: Explanation | None = None
    reason: str | None = None
    numbers: dict[str, float | None] = field(default_factory=dict)
    file: Path | None = None


@dataclass
class Section:
    """The part of the page about one picture.

    Args:
        stem: begins the names of its files.
        rows: in the order of methods, then of models.
        panels: eigen panels by model.
        montages: comparisons of the models by method.
    """

    stem: str
    rows: list[MapRow] = field(default_factory=list)
    panels: dict[str, Path] = field(default_factory=dict)
    montages: dict[str, Path] = field(default_factory=dict)


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


def unique_stems(paths: Sequence[Path]) -> list[str]:
    """File names without suffix; all are numbered if two are the same but for their case."""
    stems = [path.stem for path in paths]
    if len({stem.casefold() for stem in stems}) == len(stems):
        return stems
    return [f"{stem}-{position}" for position, stem in enumerate(stems, start=1)]


def check_names(job: Job, stems: Sequence[str]) -> None:
    """Raise unless the files of all pictures can have their names, before anything is computed.

    Raises:
        OptionError: for a name that is not UTF-8, or too long for a file.
    """
    for stem in stems:
        try:
            stem.encode()
        except UnicodeEncodeError:
            raise OptionError(f"the name of {stem!r} is not UTF-8; rename the picture") from None
        for model in job.models:
            for method in job.methods:
                name = _stem(job, stem, MapRow("", model.label, method)) + LONGEST_END
                if len(name.encode()) > LONGEST_NAME:
                    raise OptionError(f"the name of {stem[:40]}... is too long for its files; rename the picture")


def unique_names(paths: Sequence[Path]) -> list[str]:
    """File names, with their folders where two pictures share one."""
    counts = Counter(path.name for path in paths)
    return [path.name if counts[path.name] == 1 else str(path) for path in paths]


def explain_pictures(
    job: Job,
    pictures: Sequence[Path],
    directory: Path,
    progress: Callable[[], object] = lambda: None,
    skipped: Callable[[str], object] = lambda reason: None,
) -> Iterator[Section]:
    """Explain every picture; each file is whole when it appears, and stays if what follows is interrupted.

    A method that says nothing about a model, or whose extra is not installed, gives a row with the reason.

    Args:
        job: what to explain and how.
        pictures: files.
        directory: where to write.
        progress: called after every explanation.
        skipped: called with the reason for every picture that is left out.

    Raises:
        ValueError: as :func:`covpool_plugins.explain.explain` does, but for what a method says nothing about.
    """
    stems = unique_stems(pictures)
    check_names(job, stems)
    for path, stem, name in zip(pictures, stems, unique_names(pictures), strict=True):
        try:
            picture, section = read_picture(path), Section(stem)
        except ValueError as error:
            if not job.skip_unreadable:
                raise
            skipped(one_line(error))
            continue
        inputs = [model.view.forward_pass(as_input(picture, model.view.preprocessing)) for model in job.models]
        target = job.target
        if target is None:
            target = int(inputs[0].logits[0].argmax())
        for method in job.methods:
            rows = []
            for model, passed in zip(job.models, inputs, strict=True):
                row = _explain(job, model, passed, MapRow(name, model.label, method), target)
                if row.explanation is not None:
                    row.file = row.explanation.save(directory, _stem(job, stem, row))[0]
                rows.append(row)
                progress()
            section.rows += rows
            _compare(job, section, rows, directory)
        yield section


def write_numbers(sections: Sequence[Section], directory: Path) -> Path:
    """``metrics.json``: rows with ``image``, ``model``, ``method``, ``target``, ``probability`` and the numbers."""
    entries = []
    for row in (row for section in sections for row in section.rows):
        entry: dict[str, Any] = {"image": row.picture, "model": row.label, "method": row.method}
        if row.explanation is None:
            entry["not_applicable"] = row.reason
        else:
            names = ("target", "versus", "probability", "activation", "layer")
            entry |= {name: getattr(row.explanation, name) for name in names} | row.numbers
        entries.append(entry)
    return write_json(directory / "metrics.json", entries)


def _explain(job: Job, model: NamedModel, passed: ForwardPass, row: MapRow, target: int) -> MapRow:
    """The row with its explanation, or with the reason why there is none."""
    if job.versus == target:
        return replace(row, reason=f"class {target} versus itself: it is the top class")
    try:
        explanation = explain_input(model.view, passed, row.method, target, job.versus, **job.options(row.method))
    except (NotApplicableError, MissingExtraError) as error:
        return replace(row, reason=f"{row.method}: {one_line(error).removeprefix(f'{row.method}: ')}")
    numbers = metrics(model.view, passed, explanation, steps=job.deletion_steps, seed=job.seed)
    return replace(row, explanation=explanation, numbers=numbers)


def _compare(job: Job, section: Section, rows: Sequence[MapRow], directory: Path) -> None:
    """The eigen panels, and the montage of all models, of one method."""
    method = rows[0].method
    for row in rows if method == "eigen" else ():
        if row.explanation is not None:
            path = directory / f"{_stem(job, section.stem, row)}_panel.png"
            section.panels[row.label] = _save(eigen_panel(row.explanation), path)
    if len(rows) > 1 and any(row.explanation for row in rows):
        picture = montage([(row.label, row.explanation or row.reason or "") for row in rows])
        section.montages[method] = _save(picture, directory / f"{section.stem}_{method}_montage.png")


def _stem(job: Job, stem: str, row: MapRow) -> str:
    return f"{stem}_{row.label}_{row.method}" if len(job.models) > 1 else f"{stem}_{row.method}"


def _save(picture: Picture, path: Path) -> Path:
    return write_atomically(path, lambda file: picture.save(file, format="PNG"))
