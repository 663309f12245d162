"""Numbers, plots and pages of the studies."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from covpool_plugins.errors import require_extra
from covpool_plugins.files import write_atomically


def number(value: float) -> str:
    """Two digits from 0.01 to 100, one digit and an exponent elsewhere."""
    if not math.isfinite(value):
        return str(value)
    if value == 0 or 0.01 <= abs(value) < 99.5:
        return f"{value:#.2g}".rstrip(".")
    mantissa, exponent = f"{value:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def mean_and_spread(values: Sequence[float], sign: str = "") -> str:
    """Mean ± standard deviation, with one digit."""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.1f}{spread}" if values else "-"


def mean_and_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Mean, and half the width of its 95 % interval (t distribution); nothing for fewer than two values.

    Of differences over folds the interval is a guide: folds share training pictures.
    """
    if len(values) < 2:
        return None
    quantile = float(require_extra("scipy.stats", "probe").t.ppf(0.975, len(values) - 1))
    return statistics.mean(values), quantile * statistics.stdev(values) / len(values) ** 0.5


def shown_interval(pair: tuple[float, float] | None) -> str:
    """A mean and its interval, with a sign and one digit."""
    return "-" if pair is None else f"{pair[0]:+.1f} ± {pair[1]:.1f}"


def new_figure(width: float, height: float) -> Any:
    """A matplotlib figure.

    Raises:
        MissingExtraError: without matplotlib.
    """
    return require_extra("matplotlib.figure", "explain").Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Any, path: Path) -> None:
    """A matplotlib figure as what the suffix of the path says."""
    write_atomically(path, lambda file: figure.savefig(file, format=path.suffix[1:], dpi=130))


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>covpool_plugins: {{ title }}</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }
  table { border-collapse: collapse; margin: 1rem 0; }
  td, th { border-bottom: 1px solid #ddd; padding: .3rem .9rem .3rem 0; text-align: right; }
  td:first-child, th:first-child { text-align: left; }
  img { max-width: 100%; height: auto; }
  figure { display: inline-block; margin: .3rem; width: 7rem; vertical-align: top; font: .75rem/1.2 system-ui; }
  figure img { width: 6rem; height: 6rem; object-fit: cover; }
  .scroll { overflow-x: auto; }
</style>
</head>
<body>
{% macro table(header, rows) -%}
<div class="scroll"><table>
<tr>{% for cell in header %}<th>{{ cell }}</th>{% endfor %}</tr>
{% for row in rows -%}
<tr>{% for cell in row %}<td>{{ cell.strip("`") }}</td>{% endfor %}</tr>
{% endfor -%}
</table></div>
{%- endmacro -%}
BODY
</body>
</html>
"""


def write_page(path: Path, title: str, body: str, **values: Any) -> None:
    """A page that opens offline.

    Args:
        path: of the page.
        title: of the page.
        body: a Jinja template in HTML, which may call ``table(header, rows)``.
        values: what the template shows.

    Raises:
        MissingExtraError: without jinja2.
    """
    jinja2 = require_extra("jinja2", "explain")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    html = environment.from_string(PAGE.replace("BODY", body)).render(title=title, **values)
    write_atomically(path, lambda file: file.write(html.encode()))
