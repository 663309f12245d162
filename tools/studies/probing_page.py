"""The page of a probe: the table, the plot, and the pictures that each pool takes for another class."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from covpool_plugins.pictures import read_picture

from .figures import write_page
from .labelled import LabelledFiles

THUMBNAIL = 96
MOST_SHOWN = 60  # mistakes of a pool
PAGE = """<h1>Pools on frozen features</h1>
{{ table(*rows) }}
<p><img src="accuracy.png" alt="Accuracy of every pool on every layer"></p>
{% for section in sections %}
<h2>{{ section.title }}: {{ section.wrong }} mistakes of {{ section.all }}</h2>
{% for mistake in section.mistakes -%}
<figure><img src="data:image/jpeg;base64,{{ mistake.data }}" alt="{{ mistake.name }}">
<figcaption>{{ mistake.label }}, taken for {{ mistake.predicted }}</figcaption></figure>
{%- endfor %}
{% endfor %}"""


def write_mistakes(path: Path, files: LabelledFiles, rows: Sequence[Any], table: Any) -> None:
    """One page that opens offline, beside ``accuracy.png``."""
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
    write_page(path, "probe", PAGE, rows=table, sections=sections)


def _thumbnail(path: Path) -> str:
    picture = read_picture(path)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=80)
    return base64.b64encode(content.getvalue()).decode()
