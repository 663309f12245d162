"""The task "materials": textures of eleven materials out of the game 0 A.D., as a folder of classes.

The pictures are licensed CC BY-SA 3.0 (Wildfire Games) and no part of this repository. Debian's package has them:

    apt-get download 0ad-data && dpkg -x 0ad-data_*.deb unpacked
    PYTHONPATH=tools python -m studies.materials --archive unpacked/usr/share/games/0ad/mods/public/public.zip

``materials.csv`` names 421 textures of 0ad-data 0.0.26, their materials and their families. The materials were told
from the names and checked by eye: what shows two materials, or another than its name says, was left out; roads, which
are paved, count as paving. Many textures are others in another colour, also under other names: a family is those whose
high-passed grey values correlate by more than 0.4 with one another's. It has to stay together in one fold.
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from tqdm import tqdm

from covpool_plugins.command_line import Parser, positive_integer, run_tool
from covpool_plugins.errors import OptionError, one_line
from covpool_plugins.files import write_atomically

TABLE = Path(__file__).with_name("materials.csv")
FOLDER = "art/textures/terrain/types/"
# What `tools/probe.py` and `tools/compare.py` tell the family of a picture by, as --groups.
GROUPS = "(.+)--"


class Texture(NamedTuple):
    """A row of the table: the material, the family that it must not be separated from, the file in the archive."""

    material: str
    family: str
    file: str


def textures() -> list[Texture]:
    """The table, by material."""
    with open(TABLE, newline="") as file:
        return [Texture(**row) for row in csv.DictReader(file)]


def unpack(archive: Path, out: Path, size: int) -> Path:
    """Write OUT/<material>/<family>--<number>.jpg for every texture of the table, ``size`` pixels wide and high.

    Raises:
        OptionError: for an archive that is none, or lacks a texture.
    """
    try:
        with zipfile.ZipFile(archive) as zipped:
            for number, texture in enumerate(tqdm(textures(), desc="unpack", unit="texture", disable=None)):
                with Image.open(io.BytesIO(zipped.read(FOLDER + texture.file)), formats=("DDS",)) as opened:
                    picture = opened.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)
                path = out / texture.material / f"{texture.family}--{number:03d}.jpg"
                write_atomically(path, partial(picture.save, format="JPEG", quality=92))
    except KeyError as error:
        raise OptionError(f"{archive}: {error.args[0]}; it is not that of 0ad-data 0.0.26") from None
    except zipfile.BadZipFile as error:
        raise OptionError(f"{archive} is no zip archive ({one_line(error)})") from None
    return out


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    example = "PYTHONPATH=tools python -m studies.materials --archive public.zip --out out/materials"
    parser = Parser(
        "Unpack the textures of the task 'materials' from 0ad-data's public.zip.", example, prog="materials"
    )
    parser.add_argument("--archive", type=Path, required=True, metavar="FILE", help="public.zip of 0ad-data")
    parser.add_argument("--out", type=Path, default=Path("out/materials"), help="the folder (out/materials)")
    parser.add_argument("--size", type=positive_integer, default=256, metavar="N", help="pixels a side (256)")
    options = parser.parse_args(arguments)
    unpack(options.archive, options.out, options.size)
    print(f"wrote {len(textures())} pictures to {options.out}; families: --groups '{GROUPS}'")


if __name__ == "__main__":
    run_tool(main)
