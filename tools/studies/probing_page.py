"""The page of a probe: the table, the plot, and the pictures that each pool takes for another class."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from covpool_plugins.errors import require_extra
from covpool_plugins.files import write_atomically
from covpool_plugins.pictures import read_picture

from .labelled import LabelledFiles

THUMBNAIL = 96
MOST_SHOWN = 60  # mistakes of a pool
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>covpool_plugins: probe</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }
  img { max-width: 100%; }
  table { border-collapse: collapse; }
  td, th { border-bottom: 1px solid #ddd; padding: .2rem .9rem .2rem 0; text-align: left; }
  figure { display: inline-block; margin: .3rem; width: 7rem; vertical-align: top; font: .75rem/1.2 system-ui; }
  figure img { width: 6rem; height: 6rem; object-fit: cover; }
</style>
</head>
<body>
<h1>Pools on frozen features</h1>
<table>{% for row in table %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}</table>
<p><img src="accuracy.png" alt="Accuracy of every pool on every layer"></p>
{% for section in sections %}
<h2>{{ section.title }}: {{ section.wrong }} mistakes of {{ section.all }}</h2>
{% for mistake in section.mistakes -%}
<figure><img src="data:image/jpeg;base64,{{ mistake.data }}" alt="{{ mistake.name }}">
<figcaption>{{ mistake.label }}, taken for {{ mistake.predicted }}</figcaption></figure>
{%- endfor %}
{% endfor %}
</body>
</html>
"""


def write_mistakes(path: Path, files: LabelledFiles, rows: Sequence[Any], table: str) -> None:
    """One page that opens offline, beside ``accuracy.png``."""
    jinja2 = require_extra("jinja2", "explain")
    thumbnails: dict[int, str] = {}
    sections = []
    for row in rows:
        tested = [(place, predicted) for place, predicted in enumerate(row.predicted) if predicted >= 0]
        wrong = [place for place, predicted in tested if predicted != files.labels[place]]
        mistakes = []
        for place in wrong[:MOST_SHOWN]:
            if place not in thumbnails:
                thumbnails[place] = _thumbnail(files.paths[place])
            names = {"label": files.classes[files.labels[place]], "predicted": files.classes[row.predicted[place]]}
            mistakes.append({"data": thumbnails[place], "name": files.paths[place].name, **names})
        title = f"{row.pool}, {row.layer}"
        sections.append({"title": title, "wrong": len(wrong), "all": len(tested), "mistakes": mistakes})
    header, _, *body = table.splitlines()
    cells = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in (header, *body)]
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(PAGE)
    html = page.render(table=cells, sections=sections)
    write_atomically(path, lambda file: file.write(html.encode()))


def _thumbnail(path: Path) -> str:
    picture = read_picture(path)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=80)
    return base64.b64encode(content.getvalue()).decode()
