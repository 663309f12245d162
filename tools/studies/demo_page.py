"""The text of the demo's page, and its pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from covpool_plugins.explain import Explanation
from covpool_plugins.pictures import Picture

from .figures import new_figure, save_figure

PAGE = """<h1>Second-order pooling on a pretrained network</h1>
<p>The task: {{ facts.classes }} kinds of surfaces, told from small crops of colour photographs whose colours are
changed at random. Each kind is cut into {{ facts.parts }} blocks. A network is tested on one block and trained on the
others; the first block of each kind was for trying learning rates and is not counted. Differences are to
<code>gap</code>, average pooling, with 95 % intervals over the blocks.</p>
{{ table(*accuracies) }}
<p><img src="accuracy.png" alt="Differences of accuracy with intervals"></p>
<ul>
<li>The network is <code>{{ facts.front }}</code>: the first stages of a network that was trained on ImageNet, with 40
channels. Its head is swapped by one line,
<code>create_model("{{ facts.front }}", "svdpade")</code>. The last row is the whole network as it comes.</li>
<li>The stage is one where second-order pooling is ahead; at the end of the whole network it need not be
(<code>docs/measurements.md</code>).</li>
<li><em>frozen</em>: a linear classifier on the vectors of the head, nothing else is trained. <em>pictures</em>: from
there the whole network is fine-tuned (learning rate {{ facts.chosen }}). <em>crops</em>: the same for parts of the
pictures.</li>
<li>An interval that holds zero tells no difference. The blocks share training pictures, so the intervals are a
guide.</li>
</ul>
<h2>Where the scores come from</h2>
<p>A photograph, and the contribution map of each class in it. Red speaks for the class, blue against it, and the
values sum to the score without its bias; each map has a colour scale of its own. The networks have been trained on
crops of five of six blocks of the building, the trees and a part of the sky, never on the photograph as a whole.</p>
<p><img src="explanations.jpg" alt="Contribution maps of three classes in a photograph for each head"></p>
<h2>MMPretrain</h2>
<p>With the config <code>configs/demo/resnet18_svdpade_textures.py</code> and <code>tools/train.py</code> a small
network learns to tell brick, grass and gravel from the start: {{ "%.1f"|format(facts.mmpretrain_accuracy) }} %
validation accuracy.</p>
<p>{{ "%.0f"|format(facts.seconds) }} s on {{ facts.cores }} CPU cores, PyTorch {{ facts.torch }}. The numbers are in
<a href="numbers.json">numbers.json</a>.</p>"""
FULL_COLOUR = 97.5  # per cent of a map's values are paler


def draw_maps(picture: Picture, maps: Mapping[str, Sequence[Explanation]], names: Sequence[str], path: Path) -> None:
    """A row per head: the picture and the maps of its classes."""
    height = 2.75 * picture.height / picture.width
    figure = new_figure(2.75 * (1 + len(names)), (height + 0.3) * len(maps))
    grid = figure.subplots(len(maps), 1 + len(names), squeeze=False)
    for axes, (head, explanations) in zip(grid, maps.items(), strict=True):
        limits = [float(np.percentile(np.abs(explanation.map), FULL_COLOUR)) for explanation in explanations]
        images = [picture, *(e.overlay(limit) for e, limit in zip(explanations, limits, strict=True))]
        titles = [head if len(maps) > 1 else "photograph", *names]
        for cell, image, title in zip(axes, images, titles, strict=True):
            cell.imshow(image)
            cell.set_title(title, fontsize=12 if len(maps) == 1 else 10)
            cell.axis("off")
    save_figure(figure, path)
