"""Plots and the page of the demo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

from covpool_plugins.errors import require_extra
from covpool_plugins.explain.overlay import colour_limit
from covpool_plugins.files import write_atomically

from .training import Run

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>covpool_plugins: demo</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 56rem; margin: 2rem auto; padding: 0 1rem; }
  table { border-collapse: collapse; margin: 1rem 0; }
  td, th { border-bottom: 1px solid #ddd; padding: .3rem .9rem .3rem 0; text-align: right; }
  td:first-child, th:first-child { text-align: left; }
  img { max-width: 100%; height: auto; }
  .scroll { overflow-x: auto; }
</style>
</head>
<body>
<h1>Second-order pooling on three textures</h1>
<p>The same small ResNet, trained from the same weights on crops of scikit-image's photographs of brick, grass and
gravel (training and validation crops come from disjoint halves of each photograph), with three heads.</p>
<div class="scroll"><table>
<tr><th>head</th><th>validation accuracy</th>
<th>after 2 epochs</th><th>ms per training step</th><th>peak memory</th></tr>
{% for run in runs -%}
<tr><td>{{ run.head }}</td><td>{{ "%.1f"|format(run.accuracy) }} %</td>
<td>{{ "%.1f"|format(run.accuracies[:2][-1]) }} %</td><td>{{ "%.0f"|format(run.step_ms) }}</td>
<td>{{ "%.0f"|format(run.memory_mb) }} MB</td></tr>
{% endfor -%}
</table></div>
<p><img src="accuracy.png" alt="Validation accuracy by epoch for each head"></p>
<p>Through MMPretrain (<code>configs/demo/resnet18_svdpade_textures.py</code>, <code>tools/train.py</code>):
{{ "%.1f"|format(facts.mmpretrain_accuracy) }} % validation accuracy.</p>
<h2>Where the scores come from</h2>
<p>Pictures whose halves show two textures; the contribution map of each class. Red speaks for the class, blue against
it, and the values sum to the score without its bias.</p>
<p><img src="explanations.png" alt="Contribution maps of both classes of a mosaic for each head"></p>
<p>Share of the positive energy of the maps in the half that shows the class (by chance: 50 %):</p>
<div class="scroll"><table>
<tr><th>head</th>{% for method in methods %}<th>{{ method }}</th>{% endfor %}</tr>
{% for head in heads -%}
<tr><td>{{ head }}</td>
{% for method in methods %}<td>{{ "%.0f"|format(100 * shares[head, method]) }} %</td>{% endfor %}</tr>
{% endfor -%}
</table></div>
<p>{{ "%.0f"|format(facts.seconds) }} s on {{ facts.cores }} CPU cores, PyTorch {{ facts.torch }}.
The numbers are in <a href="numbers.json">numbers.json</a>.</p>
</body>
</html>
"""


def accuracy_curves(runs: list[Run], path: Path) -> None:
    """Validation accuracy by epoch, one line per head."""
    figure, axes = _figure(figsize=(7, 3.6))
    for run, marker in zip(runs, "os^vDP*", strict=False):
        axes.plot(range(1, len(run.accuracies) + 1), run.accuracies, marker=marker, label=run.head)
    axes.set(xlabel="epoch", ylabel="validation accuracy, %", ylim=(0, 102))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    _save(figure, path)


def explanation_grid(rows: list[list[Any]], path: Path) -> None:
    """A row per head: the picture and the maps of its two classes, each row on one colour scale."""
    from .textures import CLASSES

    figure, grid = _figure(len(rows), 3, figsize=(7.5, 2.6 * len(rows)), squeeze=False)
    for axes, (head, picture, *explanations) in zip(grid, rows, strict=True):
        limit = max(colour_limit(explanation.map) for explanation in explanations)
        shown = [picture] + [explanation.overlay(limit) for explanation in explanations]
        titles = [head] + [f"{CLASSES[e.target]}: p = {e.probability:.2f}" for e in explanations]
        for cell, image, title in zip(axes, shown, titles, strict=True):
            cell.imshow(image)
            cell.set_title(title, fontsize=10)
            cell.axis("off")
    _save(figure, path)


def write_page(path: Path, runs: list[Run], localisations: list[Any], facts: dict[str, Any]) -> None:
    """``index.html`` beside the pictures it shows; it opens offline."""
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(PAGE)
    html = page.render(
        runs=runs,
        facts=facts,
        heads=list(dict.fromkeys(entry.head for entry in localisations)),
        methods=list(dict.fromkeys(entry.method for entry in localisations)),
        shares={(entry.head, entry.method): entry.mean for entry in localisations},
    )
    write_atomically(path, lambda file: file.write(html.encode()))


def _figure(*args: Any, **kwargs: Any) -> Any:
    pyplot = require_extra("matplotlib.pyplot", "demo")
    pyplot.switch_backend("agg")
    return pyplot.subplots(*args, layout="constrained", **kwargs)


def _save(figure: Any, path: Path) -> None:
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=130))
    require_extra("matplotlib.pyplot", "demo").close(figure)
