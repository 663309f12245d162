"""The picture of the README: a quilt of three textures, and what in it speaks for each of them.

The network is one that the demo has trained; the quilt is cut from the halves of the photographs that no network was
trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from covpool_plugins.command_line import Parser, run_tool
from covpool_plugins.errors import require_extra
from covpool_plugins.explain import ModelView, explain
from covpool_plugins.explain.overlay import colour_limit
from covpool_plugins.files import check_file

from .demo import HEADS
from .figures import save_figure
from .textures import CLASSES, half, random_crop
from .training import Recipe, build

PATCH = 112
# Every texture once in each row and column.
LAYOUT = (("brick", "grass", "gravel"), ("gravel", "brick", "grass"), ("grass", "gravel", "brick"))


def quilt(seed: int = 0) -> Image.Image:
    """Nine patches of the textures, from the halves of the photographs that are not trained on."""
    generator = np.random.default_rng(seed)
    picture = Image.new("RGB", (PATCH * len(LAYOUT[0]), PATCH * len(LAYOUT)))
    for row, names in enumerate(LAYOUT):
        for column, name in enumerate(names):
            patch = random_crop(half(name, "val"), PATCH, generator)
            picture.paste(patch, (column * PATCH, row * PATCH))
    return picture


def trained_view(checkpoint: Path, head: str, size: tuple[int, int]) -> ModelView:
    """A network of the demo, for pictures of ``size`` = (width, height)."""
    model = build(Recipe(checkpoint.parent / "data", num_classes=len(CLASSES)), head, HEADS[head])
    model.load_state_dict(torch.load(checkpoint, weights_only=True))
    description = {**model.pretrained_cfg, "input_size": (3, size[1], size[0]), "crop_pct": 1.0}  # type: ignore[dict-item]
    model.pretrained_cfg = description  # type: ignore[assignment]
    return ModelView.of(model.eval())


def draw(view: ModelView, picture: Image.Image, path: Path) -> None:
    """The picture and the contribution map of each class, on one colour scale."""
    explanations = [explain(view, picture, "contribution", target) for target in range(len(CLASSES))]
    limit = max(colour_limit(explanation.map) for explanation in explanations)
    shown = {"picture": picture} | {
        CLASSES[explanation.target]: explanation.overlay(limit, picture.width) for explanation in explanations
    }
    figures = require_extra("matplotlib.figure", "demo")
    figure = figures.Figure(figsize=(3 * len(shown), 3.3), layout="constrained")
    for axis, (title, image) in zip(figure.subplots(1, len(shown)), shown.items(), strict=True):
        axis.imshow(image)
        axis.set_title(title, fontsize=13)
        axis.axis("off")
    save_figure(figure, path)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = Parser(
        "Explain a quilt of three textures by a network that the demo has trained.",
        "python -m studies.quilt --demo out/demo --out docs/pictures/quilt.png",
        prog="quilt",
    )
    parser.add_argument("--demo", type=Path, default=Path("out/demo"), help="folder that the demo wrote (out/demo)")
    parser.add_argument("--head", choices=HEADS, default="svdpade", metavar="NAME", help="of the network (svdpade)")
    parser.add_argument("--out", type=Path, default=Path("out/quilt.png"), help="the picture (out/quilt.png)")
    options = parser.parse_args(arguments)
    check_file(options.out)
    picture = quilt()
    draw(trained_view(options.demo / f"{options.head}.pth", options.head, picture.size), picture, options.out)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    run_tool(main)
