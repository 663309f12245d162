"""Put a picture in the style of another one by whitening and colouring the features of a timm backbone."""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from covpool_plugins.command_line import Parser, run_tool
from covpool_plugins.files import check_folder, write_atomically
from covpool_plugins.linalg import list_methods
from covpool_plugins.timm_plugin.style_transfer import SHIPPED, Settings, Stylist, Transfer, open_picture

EXAMPLE = "python tools/stylize.py --content photo.jpg --style painting.jpg --out out/style"


def main(argv: list[str] | None = None) -> None:
    arguments = parse(argv)
    check_folder(arguments.out)
    settings = Settings(
        arguments.model,
        arguments.pretrained,
        tuple(arguments.stage),
        arguments.steps,
        arguments.size,
        alpha=arguments.alpha,
        seed=arguments.seed,
    )
    content, style = (open_picture(name, arguments.size) for name in (arguments.content, arguments.style))
    with tqdm(total=arguments.steps * len(arguments.stage), desc="training the decoder", disable=None) as bar:
        stylist = Stylist(content, style, settings, bar.update)
    rows = [(method, stylist.transfer(method)) for method in dict.fromkeys(arguments.method)]
    for method, found in rows:
        _save(found.picture, arguments.out / f"{method}.png")
    print(_table(rows))
    for stage, decibel in stylist.reconstruction.items():
        print(f"stage {stage}: the decoder gives the content back at {decibel:.1f} dB, which bounds the sharpness")
    print("\n".join(f"wrote {arguments.out / f'{method}.png'}" for method, _ in rows))


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__ or "", EXAMPLE)
    shipped = ", ".join(SHIPPED)
    parser.add_argument("--content", default="astronaut", help=f"picture, or one that scikit-image ships: {shipped}")
    parser.add_argument("--style", default="immunohistochemistry", help="picture, likewise")
    known = list_methods("inv_sqrtm")
    parser.add_argument("--method", nargs="+", choices=known, default=["exact", "mpa", "newton_schulz"], help="roots")
    parser.add_argument("--model", default="resnet18", help="timm backbone for pictures of any size (resnet18)")
    parser.add_argument("--pretrained", action="store_true", help="with timm's weights, which are downloaded")
    parser.add_argument("--stage", nargs="+", type=int, default=[0], help="of the backbone, from 0; deepest first (0)")
    parser.add_argument("--steps", type=int, default=300, help="of the decoder's training (300)")
    parser.add_argument("--size", type=int, default=256, help="shorter side of the pictures (256)")
    parser.add_argument("--alpha", type=float, default=1.0, help="how much of the style, 0 to 1 (1)")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (0)")
    parser.add_argument("--out", type=Path, default=Path("out/style"), help="folder (out/style)")
    return parser.parse_args(argv)


def _save(picture: Image.Image, path: Path) -> None:
    write_atomically(path, lambda file: picture.save(file, format="PNG"))


def _table(rows: list[tuple[str, Transfer]]) -> str:
    lines = [f"{'method':16} {'mean':>9} {'covariance':>11} {'ms':>8}   distances from the style's, relative"]
    for method, found in rows:
        lines.append(f"{method:16} {found.mean_error:9.1e} {found.covariance_error:11.1e} {found.milliseconds:8.1f}")
    return "\n".join(lines)


if __name__ == "__main__":
    run_tool(main)
