"""Plots and the page of the demo."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from covpool_plugins.errors import require_extra
from covpool_plugins.explain import Explanation
from covpool_plugins.explain.overlay import colour_limit
from covpool_plugins.files import write_atomically
from covpool_plugins.pictures import Picture

from .demo_training import DemoRun
from .figures import new_figure, save_figure
from .photographs import TEXTURES

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
{% macro table(header, rows) -%}
<div class="scroll"><table>
<tr>{% for cell in header %}<th>{{ cell }}</th>{% endfor %}</tr>
{% for row in rows -%}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor -%}
</table></div>
{%- endmacro -%}
<h1>Second-order pooling on three textures</h1>
<p>The same small ResNet, trained from the same weights on crops of scikit-image's photographs of brick, grass and
gravel (training and validation crops come from disjoint halves of each photograph), with three heads.</p>
{{ table(*accuracies) }}
<p><img src="accuracy.png" alt="Validation accuracy by epoch for each head"></p>
<p>Through MMPretrain (<code>configs/demo/resnet18_svdpade_textures.py</code>, <code>tools/train.py</code>):
{{ "%.1f"|format(facts.mmpretrain_accuracy) }} % validation accuracy.</p>
<h2>Where the scores come from</h2>
<p>Pictures whose halves show two textures; the contribution map of each class. Red speaks for the class, blue against
it, and the values sum to the score without its bias.</p>
<p><img src="explanations.png" alt="Contribution maps of both classes of a mosaic for each head"></p>
<p>Share of the positive energy of the maps in the half that shows the class (by chance: 50 %):</p>
{{ table(*shares) }}
<p>{{ "%.0f"|format(facts.seconds) }} s on {{ facts.cores }} CPU cores, PyTorch {{ facts.torch }}.
The numbers are in <a href="numbers.json">numbers.json</a>.</p>
</body>
</html>
"""
Table = tuple[Sequence[str], Sequence[Sequence[str]]]  # header and rows


def accuracy_curves(runs: Sequence[DemoRun], path: Path) -> None:
    """Validation accuracy by epoch, one line per head."""
    figure = new_figure(7, 3.6)
    axes = figure.subplots()
    for run, marker in zip(runs, "os^vDP*", strict=False):
        axes.plot(range(1, len(run.accuracies) + 1), run.accuracies, marker=marker, label=run.head)
    axes.set(xlabel="epoch", ylabel="validation accuracy, %", ylim=(0, 102))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    save_figure(figure, path)


def explanation_grid(rows: Sequence[tuple[str, Picture, list[Explanation]]], path: Path) -> None:
    """A row per head: the picture and the maps of its two classes, each row on one colour scale."""
    figure = new_figure(7.5, 2.6 * len(rows))
    for axes, (head, picture, explanations) in zip(figure.subplots(len(rows), 3, squeeze=False), rows, strict=True):
        limit = max(colour_limit(explanation.map) for explanation in explanations)
        images = [picture, *(explanation.overlay(limit) for explanation in explanations)]
        titles = [head, *(f"{TEXTURES[e.target]}: p = {e.probability:.2f}" for e in explanations)]
        for cell, image, title in zip(axes, images, titles, strict=True):
            cell.imshow(image)
            cell.set_title(title, fontsize=10)
            cell.axis("off")
    save_figure(figure, path)


def write_page(path: Path, accuracies: Table, shares: Table, facts: dict[str, Any]) -> None:
    """``index.html`` beside the pictures it shows; it opens offline."""
    jinja2 = require_extra("jinja2", "demo")
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(PAGE)
    html = page.render(accuracies=accuracies, shares=shares, facts=facts)
    write_atomically(path, lambda file: file.write(html.encode()))
