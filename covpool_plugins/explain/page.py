"""One page with all explanations; it needs no network, and other files only for pictures in full size."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import require_extra
from ..files import write_atomically
from ..pictures import Picture
from .batch import MapRow, Section
from .report_tables import ReportTable

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
  .wide { background: #fff; }
  .wide { margin: 1rem 0; }
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
{% if section.image %}<figure><img src="{{ section.image }}" alt="{{ section.name }}, as the network saw it">
<figcaption>what the network saw</figcaption></figure>{% endif %}
{% for card in section.maps %}{% if card.data %}<figure>
<a href="{{ card.file }}"><img src="{{ card.data }}" alt="{{ card.alt }}" loading="lazy"></a>
<figcaption><b>{{ card.title }}</b>{% for line in card.lines %}<br>{{ line }}{% endfor %}</figcaption></figure>
{% else %}<div class="none"><b>{{ card.title }}: n/a</b><br>{{ card.reason }}</div>
{% endif %}{% endfor %}
</div>
{% for card in section.wide %}<figure class="wide">
<a href="{{ card.file }}"><img src="{{ card.data }}" alt="{{ card.alt }}" loading="lazy"></a></figure>
{% endfor %}
<div class="scroll"><table>
<tr><th>model</th><th>method</th>{% for name in names %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row, numbers in section.rows %}<tr><td>{{ row.label }}</td><td>{{ row.method }}</td>
{% for number in numbers %}<td>{{ number }}</td>{% endfor %}</tr>
{% endfor %}
</table></div>
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


def write_page(
    sections: Sequence[Section], directory: Path, title: str = "Explanations", tables: Sequence[ReportTable] = ()
) -> Path:
    """``index.html`` with every picture inside it, readable on a phone; each is a link to its file in full size.

    Args:
        sections: what was explained; the files are read from where they were written.
        directory: where to write.
        title: of the page.
        tables: further tables.

    Raises:
        MissingExtraError: without Jinja.
    """
    jinja = require_extra("jinja2", "explain")
    template = jinja.Environment(autoescape=True).from_string(TEMPLATE)
    parts = [_section(section) for section in sections]
    text = template.render(title=title, sections=parts, names=NUMBERS.values(), tables=tables)
    return write_atomically(directory / "index.html", lambda file: file.write(text.encode()))


def _section(section: Section) -> dict[str, Any]:
    """What the template shows of a picture. The map of ``eigen`` is that of ``contribution``: its panel is enough."""
    explained = [row for row in section.rows if row.explanation]
    repeated = {"eigen"} if any(row.method == "contribution" for row in explained) else set()
    wide = [(path, f"{method} of all models") for method, path in section.montages.items() if method not in repeated]
    wide += [(path, f"eigen panel of {label}") for label, path in section.panels.items()]
    name = section.rows[0].picture
    return {
        "name": name,
        "image": _data(explained[0].explanation.image) if explained and explained[0].explanation else None,
        "maps": [_card(row) for row in section.rows if row.method != "eigen" or row.reason],
        "wide": [{"data": _data(Image.open(path)), "file": path.name, "alt": f"{name}: {what}"} for path, what in wide],
        "rows": [(row, [_number(row.numbers.get(name)) for name in NUMBERS]) for row in explained],
    }


def _card(row: MapRow) -> dict[str, Any]:
    """A map, or why there is none."""
    card: dict[str, Any] = {"title": f"{row.label}, {row.method}", "reason": row.reason, "data": None}
    explanation = row.explanation
    if explanation is not None and row.file is not None:
        lines = explanation.caption()
        card |= {
            "data": _data(explanation.overlay(smallest_side=SIDE)),
            "file": row.file.name,
            "lines": [lines[0].removeprefix(f"{row.method}").lstrip(", "), *lines[1:]],
            "alt": f"{row.picture}: {', '.join(lines)}",
        }
    return card


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _data(picture: Picture) -> str:
    """A picture inside the page, at most as wide as it is shown."""
    picture = picture.convert("RGB")
    picture.thumbnail((WIDEST, WIDEST))
    file = io.BytesIO()
    picture.save(file, format="WEBP", quality=QUALITY)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
