"""From models, methods and pictures to the files of a report, written as they come, and its tables."""

from __future__ import annotations

import base64
import glob
import io
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from ..errors import MissingExtraError, NotApplicableError, OptionError, one_line, require_extra
from ..files import write_atomically, write_json
from ..pictures import Picture, read_picture
from .annotations import PICTURE_NAME
from .explanation import Explanation
from .images import as_input
from .methods import explain_input
from .metrics import metrics
from .model_view import ForwardPass, ModelView
from .overlay import eigen_panel, montage

LONGEST_END = "_montage.png"
LONGEST_NAME = 255 - len(".." + 8 * "x")  # bytes of a name, less those that a temporary file's has besides
SIDE = 320  # of a map, at least, in pixels
WIDEST = 1200
QUALITY = 80
NUMBERS = {
    "deletion": "deletion",
    "random_deletion": "random",
    "insertion": "insertion",
    "random_insertion": "random",
    "completeness_gap": "completeness gap",
    "condition_number": "κ before",
    "normalized_condition_number": "κ after",
    "effective_rank": "effective rank",
    "entropy": "entropy",
}
# Of further tables, by the names of their files, the title and how to read them.
TABLES = {
    "sanity": (
        "Cascading randomisation",
        "Rank correlation with the map of the trained network, from a random classifier to all layers random; it falls "
        "below 0.5 for a map that shows what was learned (Adebayo et al., NeurIPS 2018).",
    ),
    "pointing": (
        "Pointing game",
        "Hits are maps whose maximum lies at an object of the class, or less than 15 pixels beside it (Zhang et al., "
        "ECCV 2016). Accuracy is the mean over the classes; energy is the share of the positive values inside.",
    ),
}
TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{{ title }}</title>
<style>
  :root { color-scheme: light dark; }
  body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 1200px; padding: 0 1rem 3rem; }
  h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; border-top: 1px solid #8884; padding-top: 1rem; }
  img { max-width: 100%; height: auto; display: block; }
  .maps { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr)); gap: 1rem; }
  .maps img { width: 100%; }
  figure { margin: 0; background: #8881; } figcaption { font-size: .9rem; padding: .5rem .75rem .75rem; }
  .none { background: #8882; padding: 1rem; font-size: .9rem; }
  .wide { margin: 1rem 0; width: fit-content; max-width: 100%; }
  @media (max-width: 800px) { .wide { overflow-x: auto; } .wide img { max-width: none; } }
  .scroll { overflow-x: auto; }
  table { border-collapse: collapse; font-size: .85rem; }
  th, td { padding: .2rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #8884; }
  th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p>In signed maps red speaks for the class and blue against it; in other maps the colour is the magnitude. Deletion is
the area under the probability of the class while the important parts are blurred: smaller is better. For insertion
larger is better. Next to each is the value of random orders.</p>
{% for section in sections %}
<section>
<h2>{{ section.name }}</h2>
<div class="maps">
{% for row in section.rows if row.explanation %}{% if loop.first %}<figure>
<img src="{{ row.explanation.image|embedded }}" alt="{{ section.name }}, as the network saw it">
<figcaption>what the network saw</figcaption></figure>{% endif %}{% endfor %}
{# The map of eigen is that of contribution: its panel is enough. #}
{% for row in section.rows %}{% if row.reason %}<div class="none"><b>{{ row.model }}, {{ row.method }}: n/a</b><br>
{{ row.reason }}</div>
{% elif row.method != "eigen" %}{% set lines = row.explanation.caption() %}<figure>
<a href="{{ row.stem|urlencode }}.png"><img src="{{ row.explanation.overlay(smallest_side=side)|embedded }}"
alt="{{ row.picture }}: {{ lines|join(", ") }}" loading="lazy"></a>
<figcaption><b>{{ row.model }}, {{ row.method }}</b><br>{{ lines[0].removeprefix(row.method).lstrip(", ") }}
{% for line in lines[1:] %}<br>{{ line }}{% endfor %}</figcaption></figure>
{% endif %}{% endfor %}
</div>
{% for file, what in section.compared.items() %}<figure class="wide"><a href="{{ file|urlencode }}">
<img src="{{ file|embedded }}" alt="{{ section.name }}: {{ what }}" loading="lazy"></a></figure>
{% endfor %}
<div class="scroll"><table>
<tr><th>model</th><th>method</th>{% for name in numbers.values() %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in section.rows if row.explanation %}<tr><td>{{ row.model }}</td><td>{{ row.method }}</td>
{% for name in numbers %}<td>{{ row.numbers[name]|number }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
</section>
{% endfor %}
{% for name, rows in tables.items() %}
<section><h2>{{ texts[name][0] }}</h2><p>{{ texts[name][1] }}</p>
<div class="scroll"><table><tr>{% for name in rows[0] %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in rows %}<tr>{% for value in row.values() %}<td>{{ value }}</td>{% endfor %}</tr>
{% endfor %}</table></div></section>
{% endfor %}
</body>
</html>
"""


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

    def overview(self) -> dict[str, str]:
        """For the table on the screen."""
        known = {"image": self.picture, "model": self.model, "method": self.method}
        shown = self.explanation
        if shown is None:
            return known | dict.fromkeys(("layer", "target", "probability", "completeness gap"), "n/a")
        gap = "n/a" if shown.completeness_gap is None else f"{shown.completeness_gap:.1e}"
        known |= {"layer": shown.layer or "-", "target": shown.class_name(shown.target)}
        return known | {"probability": f"{shown.probability:.4f}", "completeness gap": gap}


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


def find_pictures(names: Iterable[str | Path]) -> list[Path]:
    """Files, the pictures in folders and those that fit patterns, each once, in order.

    Raises:
        OptionError: for a pattern that nothing fits or a folder without pictures.
    """
    pictures: dict[Path, None] = {}
    for name in names:
        path = Path(name)
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if PICTURE_NAME.fullmatch(file.name))
        elif path.exists() or not glob.has_magic(str(name)):
            inside = [path]
        else:
            inside = sorted(Path(match) for match in glob.glob(str(name), recursive=True) if Path(match).is_file())
        if not inside:
            raise OptionError(
                f"{path} is a folder without pictures" if path.is_dir() else f"no file fits {str(name)!r}"
            )
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


def explain_pictures(job: Job, pictures: Sequence[Path]) -> list[Section]:
    """Explain every picture and write the page; if this ends early, that of the pictures that are done.

    A method that says nothing about a model, or whose extra is not installed, gives a row with the reason.

    Raises:
        OptionError: for no map at all; before anything is computed, for files that could not have their names.
        ValueError: as :func:`covpool_plugins.explain.explain` does, but for what a method says nothing about.
    """
    stems = distinct([path.stem for path in pictures])
    _check_names(job, stems)
    counts = Counter(path.name for path in pictures)
    sections: list[Section] = []
    try:
        with tqdm(total=len(pictures) * len(job.models) * len(job.methods), unit="map", disable=None) as progress:
            for path, stem in zip(pictures, stems, strict=True):
                try:
                    picture = read_picture(path)
                except ValueError as error:
                    if not job.skip_unreadable:
                        raise
                    say_skipped(error)
                else:
                    section = Section(path, path.name if counts[path.name] == 1 else str(path))
                    _explain_picture(job, section, picture, stem, progress)
                    sections.append(section)
    finally:
        if any(row.explanation for section in sections for row in section.rows):
            write_page(job, sections, {})
    if not any(row.explanation for section in sections for row in section.rows):
        raise OptionError(next(iter(reasons(job, sections)), "none of the pictures can be read"))
    return sections


def _check_names(job: Job, stems: Sequence[str]) -> None:
    for stem in stems:
        try:
            stem.encode()
        except UnicodeEncodeError:
            raise OptionError(f"the name of {stem!r} is not UTF-8; rename the picture") from None
        longest = max(len(job.stem(stem, model, method).encode()) for model in job.models for method in job.methods)
        if longest + len(LONGEST_END) > LONGEST_NAME:
            raise OptionError(f"the name of {stem[:40]}... is too long for its files; rename the picture")


def _explain_picture(job: Job, section: Section, picture: Picture, stem: str, progress: tqdm) -> None:
    passes = [view.forward_pass(as_input(picture, view.preprocessing)) for view in job.models.values()]
    target = int(passes[0].logits[0].argmax()) if job.target is None else job.target
    for method in job.methods:
        rows = []
        for model, passed in zip(job.models, passes, strict=True):
            rows.append(_explain(job, Row(section.name, model, method, job.stem(stem, model, method)), passed, target))
            progress.update()
        section.rows += rows
        section.compared |= _compare(job, stem, rows)


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


def write_page(job: Job, sections: Sequence[Section], tables: Mapping[str, Sequence[Mapping[str, str]]]) -> Path:
    """``index.html`` with every picture inside it, readable on a phone; each is a link to its file in full size.

    Beside it the numbers: ``metrics.json``, a dictionary for every map, and a file for each of the tables.

    Args:
        job: what was asked.
        sections: what was explained; its pictures are in the folder of the job.
        tables: rows of further tables, see ``TABLES``.

    Raises:
        MissingExtraError: without Jinja.
    """

    def embedded(picture: Picture | str) -> str:
        """A picture, or that of a file, inside the page, at most as wide as it is shown."""
        shown = (Image.open(job.out / picture) if isinstance(picture, str) else picture).convert("RGB")
        shown.thumbnail((WIDEST, WIDEST))
        file = io.BytesIO()
        shown.save(file, format="WEBP", quality=QUALITY)
        return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()

    environment = require_extra("jinja2", "explain").Environment(autoescape=True)
    environment.filters |= {"embedded": embedded, "number": lambda value: "" if value is None else f"{value:.3g}"}
    title = "Explanations of " + ", ".join(job.models)
    template = environment.from_string(TEMPLATE)
    page = template.render(title=title, sections=sections, tables=tables, numbers=NUMBERS, texts=TABLES, side=SIDE)
    if sections:
        write_json(job.out / "metrics.json", [row.entry() for section in sections for row in section.rows])
    for name, rows in tables.items():
        write_json(job.out / f"{name}.json", rows)
    return write_atomically(job.out / "index.html", lambda file: file.write(page.encode()))
