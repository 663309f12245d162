"""Many explanations: models by methods by pictures, written as they come, and what compares them."""

from __future__ import annotations

import glob
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import MissingExtraError, NotApplicableError, OptionError, one_line
from ..files import write_atomically
from ..pictures import Picture, read_picture
from .explanation import Explanation, explain
from .images import as_input
from .methods import method_options
from .metrics import metrics
from .model_view import ModelView
from .panel import eigen_panel, montage

Report = Callable[[str], object]


@dataclass(frozen=True)
class Subject:
    """A model to be explained and what it is called in pictures and file names."""

    label: str
    view: ModelView


@dataclass(frozen=True)
class Job:
    """What to explain and how.

    Args:
        subjects: models, compared with each other where there are several.
        methods: from the name of a method to its options.
        target: the class; the top class of the first model by default.
        versus: the class whose score is taken off.
        class_names: for captions.
        deletion_steps: of the deletion and insertion curves; 0 leaves them out.
        seed: of whatever is random.
    """

    subjects: Sequence[Subject]
    methods: Mapping[str, Mapping[str, Any]]
    target: int | None = None
    versus: int | None = None
    class_names: Sequence[str] = ()
    deletion_steps: int = 10
    seed: int = 0


@dataclass
class Row:
    """One model and one method on one picture: the explanation or the reason why there is none, and its numbers."""

    picture: str
    label: str
    method: str
    explanation: Explanation | None
    reason: str | None = None
    numbers: dict[str, float | None] = field(default_factory=dict)
    file: Path | None = None


@dataclass
class Page:
    """All of one picture.

    Args:
        stem: begins the names of its files.
        rows: in the order of methods, then of models.
        panels: eigen panels by model.
        montages: comparisons of the models by method.
    """

    stem: str
    rows: list[Row] = field(default_factory=list)
    panels: dict[str, Path] = field(default_factory=dict)
    montages: dict[str, Path] = field(default_factory=dict)


def find_pictures(names: Iterable[str | Path]) -> list[Path]:
    """Files, the pictures of folders and those that fit patterns, each once, in order.

    Raises:
        OptionError: for a pattern that nothing fits or a folder without pictures.
    """
    found: dict[Path, None] = {}
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
        found |= dict.fromkeys(inside)
    return list(found)


def unique_stems(paths: Sequence[Path]) -> list[str]:
    """File names without suffix, numbered where two pictures share one; unique also where case does not count."""
    counts = Counter(path.stem.casefold() for path in paths)
    taken = {stem for stem, count in counts.items() if count == 1}
    stems = []
    for position, path in enumerate(paths, start=1):
        stem = path.stem
        if counts[stem.casefold()] > 1:
            numbered = (f"{path.stem}-{i}" for i in itertools.count(position))
            stem = next(candidate for candidate in numbered if candidate.casefold() not in taken)
            taken.add(stem.casefold())
        stems.append(stem)
    return stems


def unique_names(paths: Sequence[Path]) -> list[str]:
    """File names, with their folders where two pictures share one."""
    counts = Counter(path.name for path in paths)
    return [path.name if counts[path.name] == 1 else str(path) for path in paths]


def explain_pictures(
    job: Job, pictures: Sequence[Path], directory: Path, progress: Callable[[], object] = lambda: None
) -> Iterator[Page]:
    """Explain every picture; each file is whole when it appears, and stays if what follows is interrupted.

    A method that says nothing about a model, or whose extra is not installed, gives a row with the reason.

    Args:
        job: what to explain and how.
        pictures: files.
        directory: where to write.
        progress: called after every explanation.

    Raises:
        ValueError: as :func:`covpool_plugins.explain.explain` does; what a method has no meaning for is no error.
    """
    for path, stem, name in zip(pictures, unique_stems(pictures), unique_names(pictures), strict=True):
        picture, page = read_picture(path), Page(stem)
        target = _target(job, picture)
        for method, options in job.methods.items():
            rows = []
            for subject in job.subjects:
                row = _row(job, subject, name, picture, method, options, target)
                if row.explanation is not None:
                    row.file = row.explanation.save(directory, _name(job, stem, subject.label, method))[0]
                rows.append(row)
                progress()
            page.rows += rows
            _compare(job, page, method, rows, directory)
        yield page


def seeded_options(job: Job, method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a method, with the job's seed if it takes one."""
    return {**({"seed": job.seed} if "seed" in method_options(method) else {}), **options}


def write_numbers(pages: Sequence[Page], directory: Path) -> Path:
    """``metrics.json``: rows with ``image``, ``model``, ``method``, ``target``, ``probability`` and the numbers."""
    rows = []
    for row in itertools.chain.from_iterable(page.rows for page in pages):
        said: dict[str, Any] = {"image": row.picture, "model": row.label, "method": row.method}
        if row.explanation is None:
            rows.append(said | {"not_applicable": row.reason})
            continue
        names = ("target", "versus", "probability", "layer")
        rows.append(said | {name: getattr(row.explanation, name) for name in names} | row.numbers)
    text = json.dumps(_finite(rows), indent=1)
    return write_atomically(directory / "metrics.json", lambda file: file.write(text.encode()))


def _target(job: Job, picture: Picture) -> int:
    """The class that all models of a comparison are asked about."""
    if job.target is not None:
        return job.target
    view = job.subjects[0].view
    return int(view.logits(as_input(picture, view.preprocessing))[0].argmax())


def _row(
    job: Job,
    subject: Subject,
    name: str,
    picture: Picture,
    method: str,
    options: Mapping[str, Any],
    target: int,
) -> Row:
    x = as_input(picture, subject.view.preprocessing)
    if job.versus == target:
        return Row(name, subject.label, method, None, reason=f"class {target} versus itself: it is the top class")
    try:
        found = explain(subject.view, x, method, target, versus=job.versus, **seeded_options(job, method, options))
    except (NotApplicableError, MissingExtraError) as error:
        return Row(name, subject.label, method, None, reason=f"{method}: {one_line(error).removeprefix(f'{method}: ')}")
    found = replace(found, class_names=job.class_names)
    numbers = metrics(subject.view, x, found, steps=job.deletion_steps, seed=job.seed)
    return Row(name, subject.label, method, found, numbers=numbers)


def _compare(job: Job, page: Page, method: str, rows: Sequence[Row], directory: Path) -> None:
    if method == "eigen":
        for row in rows:
            if row.explanation is not None:
                name = f"{_name(job, page.stem, row.label, method)}_panel.png"
                page.panels[row.label] = _save(eigen_panel(row.explanation), directory / name)
    if len(rows) > 1 and any(row.explanation for row in rows):
        compared = montage([(row.label, row.explanation or row.reason or "") for row in rows])
        page.montages[method] = _save(compared, directory / f"{page.stem}_{method}_montage.png")


def _name(job: Job, stem: str, label: str, method: str) -> str:
    return f"{stem}_{label}_{method}" if len(job.subjects) > 1 else f"{stem}_{method}"


def _save(picture: Picture, path: Path) -> Path:
    return write_atomically(path, lambda file: picture.save(file, format="PNG"))


def _finite(value: Any) -> Any:
    """JSON has no infinity: texts instead."""
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return str(value) if isinstance(value, float) and value - value != 0 else value
