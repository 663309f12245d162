"""All explanations on one page; it needs no network, and other files only for pictures in full size."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ..errors import OptionError, require_extra
from ..files import write_atomically, write_json
from ..pictures import Picture
from .report import Job, Section, Table, explain_pictures, reasons

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
  .wide { background: #fff; margin: 1rem 0; }
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
{% for table in tables %}
<section><h2>{{ table.title }}</h2><p>{{ table.text }}</p>
<div class="scroll"><table><tr>{% for name in table.head %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in table.rows %}<tr>{% for value in row %}<td>{{ value }}</td>{% endfor %}</tr>
{% endfor %}</table></div></section>
{% endfor %}
</body>
</html>
"""


def explain_all(job: Job, pictures: Sequence[Path]) -> list[Section]:
    """Explain every picture; if that ends early, there is a page of those that are done.

    Raises:
        OptionError: if there is no map at all.
        ValueError: as :func:`explain_pictures` does.
    """
    sections: list[Section] = []
    try:
        for section in explain_pictures(job, pictures):
            sections.append(section)
    except BaseException:
        if _any_map(sections):
            write_page(job, sections)
        raise
    if not sections:
        raise OptionError("none of the pictures can be read")
    if not _any_map(sections):
        raise OptionError(reasons(job, sections)[0])
    return sections


def _any_map(sections: Sequence[Section]) -> bool:
    return any(row.explanation for section in sections for row in section.rows)


def write_page(job: Job, sections: Sequence[Section], tables: Sequence[Table] = ()) -> list[Path]:
    """``index.html`` with every picture inside it, readable on a phone; each is a link to its file in full size.

    Beside it the numbers: ``metrics.json``, a dictionary for every map, and a file for each of the tables.

    Args:
        job: what was asked.
        sections: what was explained; its pictures are in the folder of the job.
        tables: further tables.

    Returns:
        What was written.

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
    page = template.render(title=title, sections=sections, tables=tables, numbers=NUMBERS, side=SIDE)
    written = [write_atomically(job.out / "index.html", lambda file: file.write(page.encode()))]
    if sections:
        entries = [row.entry() for section in sections for row in section.rows]
        written.append(write_json(job.out / "metrics.json", entries))
    return written + [write_json(job.out / table.file, table.entries()) for table in tables]
