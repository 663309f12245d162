"""One page with all explanations; it needs no other file and no network."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import require_extra
from ..files import write_atomically
from .batch import Page, Row
from .studies import Table

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
  .maps { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 260px), 1fr)); gap: 1rem; }
  figure { margin: 0; } figcaption { font-size: .85rem; }
  .none { background: #8882; padding: 1rem; font-size: .85rem; }
  .wide { margin: 1rem 0; }
  .scroll { overflow-x: auto; }
  table { border-collapse: collapse; font-size: .85rem; }
  th, td { padding: .2rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #8884; }
  th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p>Red speaks for the class, blue against it; other maps have one scale of magnitudes. Deletion: area under the class's
probability while the important parts are blurred, the smaller the better; insertion: the larger the better; beside each
stands what random orders give.</p>
{% for page in pages %}
<section>
<h2>{{ page.name }}</h2>
{% for picture in page.wide %}<figure class="wide"><img src="{{ picture.data }}" alt="{{ picture.text }}"></figure>
{% endfor %}
<div class="maps">
{% for map in page.maps %}{% if map.data %}<figure><img src="{{ map.data }}" alt="{{ map.text }}">
<figcaption>{{ map.text }}</figcaption></figure>
{% else %}<div class="none"><b>{{ map.text }}: n/a</b><br>{{ map.reason }}</div>
{% endif %}{% endfor %}
</div>
<div class="scroll"><table>
<tr><th>model</th><th>method</th>{% for name in names %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in page.rows %}<tr><td>{{ row.label }}</td><td>{{ row.method }}</td>
{% for value in row.numbers %}<td>{{ value }}</td>{% endfor %}</tr>
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


def write_report(
    pages: Sequence[Page], directory: Path, title: str = "Explanations", tables: Sequence[Table] = ()
) -> Path:
    """``index.html`` with every picture inside it, readable on a phone.

    Args:
        pages: what was explained; the files are read from where they were written.
        directory: where to write.
        title: of the page.
        tables: further tables.

    Raises:
        MissingExtraError: without Jinja.
    """
    jinja = require_extra("jinja2", "explain")
    template = jinja.Environment(autoescape=True).from_string(TEMPLATE)
    text = template.render(title=title, pages=[_page(page) for page in pages], names=NUMBERS.values(), tables=tables)
    return write_atomically(directory / "index.html", lambda file: file.write(text.encode()))


def _page(page: Page) -> dict[str, Any]:
    wide = [{"data": _data(path), "text": f"{method} of all models"} for method, path in page.montages.items()]
    wide += [{"data": _data(path), "text": f"eigen panel of {label}"} for label, path in page.panels.items()]
    named = page.rows[0].picture if page.rows else page.stem
    numbered = [row for row in page.rows if row.explanation is not None]
    rows = [{"label": r.label, "method": r.method, "numbers": [_number(r, name) for name in NUMBERS]} for r in numbered]
    return {"name": named, "wide": wide, "maps": [_map(row) for row in page.rows], "rows": rows}


def _map(row: Row) -> dict[str, Any]:
    text = f"{row.label}, {row.method}"
    return {"data": _data(row.file) if row.file else None, "text": text, "reason": row.reason}


def _number(row: Row, name: str) -> str:
    value = row.numbers.get(name)
    return "" if value is None else f"{value:.3g}"


def _data(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
