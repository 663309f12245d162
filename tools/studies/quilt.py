"""The picture of the README: a quilt of three textures, and where in it a network sees each of them.

The network is one that the demo has trained. The quilt is cut from the halves of the photographs that no network was
trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from covpool_plugins.command_line import Parser, run_tool
from covpool_plugins.explain import ModelView, explain
from covpool_plugins.explain.overlay import colour_limit
from covpool_plugins.files import check_file
from covpool_plugins.pictures import Picture

from .demo import HEADS
from .demo_training import DemoRecipe, build
from .figures import new_figure, save_figure
from .photographs import TEXTURES, random_crop, shipped_halves

PATCH = 112
# Every texture once in each row and column.
LAYOUT = (("brick", "grass", "gravel"), ("gravel", "brick", "grass"), ("grass", "gravel", "brick"))


def quilt(seed: int = 0) -> Picture:
    """Nine patches of the textures."""
    generator = np.random.default_rng(seed)
    picture = Image.new("RGB", (PATCH * len(LAYOUT[0]), PATCH * len(LAYOUT)))
    for row, names in enumerate(LAYOUT):
        for column, name in enumerate(names):
            patch = random_crop(shipped_halves(name)["val"], PATCH, generator)
            picture.paste(patch, (column * PATCH, row * PATCH))
    return picture


def trained_view(checkpoint: Path, head: str, picture: Picture) -> ModelView:
    """A network of the demo, which sees the picture whole."""
    model: Any = build(DemoRecipe(checkpoint.parent / "data"), head, HEADS[head])
    model.load_state_dict(torch.load(checkpoint, weights_only=True))
    size = (3, picture.height, picture.width)
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": size, "crop_pct": 1.0}
    return ModelView.of(model.eval())


def draw(view: ModelView, picture: Picture, path: Path) -> None:
    """The picture, and the contribution map of each class on one colour scale."""
    explanations = [explain(view, picture, "contribution", target) for target in range(len(TEXTURES))]
    limit = max(colour_limit(explanation.map) for explanation in explanations)
    shown = {"what the network sees": picture}
    shown |= {TEXTURES[explanation.target]: explanation.overlay(limit, picture.width) for explanation in explanations}
    figure = new_figure(2.4 * len(shown), 2.65)
    for axis, (title, image) in zip(figure.subplots(1, len(shown)), shown.items(), strict=True):
        axis.imshow(image)
        axis.set_title(title, fontsize=12)
        axis.axis("off")
    save_figure(figure, path)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = Parser(
        "Explain a quilt of three textures by a network that the demo has trained.",
        "PYTHONPATH=tools python -m studies.quilt --demo out/demo --out docs/pictures/quilt.png",
        prog="quilt",
    )
    parser.add_argument("--demo", type=Path, default=Path("out/demo"), help="folder that the demo wrote (out/demo)")
    parser.add_argument("--head", choices=HEADS, default="svdpade", metavar="NAME", help="of the network (svdpade)")
    parser.add_argument("--out", type=Path, default=Path("out/quilt.png"), help="the picture (out/quilt.png)")
    options = parser.parse_args(arguments)
    check_file(options.out, (".png",))
    picture = quilt()
    draw(trained_view(options.demo / f"{options.head}.pth", options.head, picture), picture, options.out)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    run_tool(main)
