"""One page with all explanations; it needs no other file and no network."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import require_extra
from ..files import write_atomically
from .batch import Section
from .report_tables import ReportTable

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
<p>In signed maps red speaks for the class and blue against it; in other maps the colour is the magnitude. Deletion is
the area under the probability of the class while the important parts are blurred: smaller is better. For insertion
larger is better. Next to each is the value of random orders.</p>
{% for section in sections %}
<section>
<h2>{{ section.name }}</h2>
{% for data, text in section.wide %}<figure class="wide"><img src="{{ data }}" alt="{{ text }}"></figure>
{% endfor %}
<div class="maps">
{% for data, row in section.maps %}{% if data %}<figure><img src="{{ data }}" alt="{{ row.label }}, {{ row.method }}">
<figcaption>{{ row.label }}, {{ row.method }}</figcaption></figure>
{% else %}<div class="none"><b>{{ row.label }}, {{ row.method }}: n/a</b><br>{{ row.reason }}</div>
{% endif %}{% endfor %}
</div>
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
    """``index.html`` with every picture inside it, readable on a phone.

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
    wide = [(_data(path), f"{method} of all models") for method, path in section.montages.items()]
    wide += [(_data(path), f"eigen panel of {label}") for label, path in section.panels.items()]
    maps = [(_data(row.file) if row.file else None, row) for row in section.rows]
    rows = [(row, [_number(row.numbers.get(name)) for name in NUMBERS]) for row in section.rows if row.explanation]
    return {"name": section.rows[0].picture, "wide": wide, "maps": maps, "rows": rows}


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _data(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
