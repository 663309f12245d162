"""Put a picture in the style of another one by whitening and colouring the features of a timm backbone."""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image
from studies.style_transfer import SHIPPED, Settings, Stylist, Transfer, open_picture
from tqdm import tqdm

from covpool_plugins.command_line import Parser, markdown_table, positive_integer, run_tool
from covpool_plugins.files import check_folder, write_atomically
from covpool_plugins.linalg import list_methods

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
    transfers = {method: stylist.transfer(method) for method in dict.fromkeys(arguments.method)}
    for method, transfer in transfers.items():
        _save(transfer.picture, arguments.out / f"{method}.png")
    print(_table(transfers))
    for stage, decibel in stylist.reconstruction.items():
        print(f"stage {stage}: the decoder gives the content back at {decibel:.1f} dB, which bounds the sharpness")
    print("\n".join(f"wrote {arguments.out / f'{method}.png'}" for method in transfers))


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__ or "", EXAMPLE)
    shipped = ", ".join(SHIPPED)
    parser.add_argument("--content", default="astronaut", help=f"picture, or one that scikit-image ships: {shipped}")
    parser.add_argument("--style", default="immunohistochemistry", help="picture, likewise")
    methods = list_methods("inv_sqrtm")
    defaults = ["exact", "mpa", "newton_schulz"]
    parser.add_argument("--method", nargs="+", choices=methods, default=defaults, help="of the roots")
    parser.add_argument("--model", default="resnet18", help="timm backbone for pictures of any size (resnet18)")
    parser.add_argument("--pretrained", action="store_true", help="with timm's weights, which are downloaded")
    parser.add_argument("--stage", nargs="+", type=int, default=[0], help="of the backbone, from 0; deepest first (0)")
    parser.add_argument("--steps", type=positive_integer, default=300, help="of the decoder's training (300)")
    parser.add_argument("--size", type=positive_integer, default=256, help="shorter side of the pictures (256)")
    parser.add_argument("--alpha", type=float, default=1.0, help="how much of the style, 0 to 1 (1)")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (0)")
    parser.add_argument("--out", type=Path, default=Path("out/style"), help="folder (out/style)")
    return parser.parse_args(argv)


def _save(picture: Image.Image, path: Path) -> None:
    write_atomically(path, lambda file: picture.save(file, format="PNG"))


def _table(transfers: dict[str, Transfer]) -> str:
    header = ("method", "error of the mean", "error of the covariance", "ms")
    rows = [
        (method, f"{transfer.mean_error:.1e}", f"{transfer.covariance_error:.1e}", f"{transfer.milliseconds:.1f}")
        for method, transfer in transfers.items()
    ]
    return markdown_table(header, rows)


if __name__ == "__main__":
    run_tool(main)
