"""Picture files, read completely or refused in one line."""

from __future__ import annotations

import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import OptionError, one_line

Picture = Image.Image
# Pillow knows more, of which some start other programs (EPS) or raise what is no error of a picture.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MOST_PIXELS = 120_000_000  # a camera of 108 megapixels has fewer; a decoded pixel takes 4 bytes, or 8 for a while
TILE_WIDTH, TILE_LENGTH = 322, 323  # tags of TIFF


def check_picture(path: Path | str) -> None:
    """Raise as :func:`read_picture` does, for what shows before the pixels are decoded: file, format and size."""
    with opened_picture(path):
        pass


def read_picture(path: Path | str, upright: bool = True) -> Picture:
    """An RGB picture from a file, completely read.

    Args:
        path: the file.
        upright: turn it as its camera says (EXIF); annotations count the pixels as they are stored.

    Raises:
        ValueError: if the file is missing, no picture, cut short, too large or of unknown brightness; the message is
            one line with the path.

    Examples:
        >>> from PIL import Image
        >>> Image.new("L", (8, 4)).save("grey.png")
        >>> read_picture("grey.png").size, read_picture("grey.png").mode
        ((8, 4), 'RGB')
    """
    with opened_picture(path) as opened:
        if upright:
            ImageOps.exif_transpose(opened, in_place=True)
        opened.load()
        picture = to_eight_bits(opened)
        return picture if picture.mode == "RGB" else picture.convert("RGB")  # which copies


@contextmanager
def opened_picture(path: Path | str) -> Iterator[Picture]:
    """The picture of a file; what goes wrong here or within becomes one line with the path."""
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):
            raise OptionError("no regular file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the size is checked here
            with Image.open(path, formats=FORMATS) as opened:
                for width, height in (opened.size, _tile(opened)):
                    if width * height > MOST_PIXELS:
                        raise OptionError(f"a picture of {width}x{height} pixels, more than {MOST_PIXELS}")
                yield opened
    except OptionError as error:
        raise OptionError(f"{path}: {error}") from None
    except UnidentifiedImageError:
        raise ValueError(f"{path}: not a picture that can be read ({', '.join(FORMATS)})") from None
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or one_line(error)}") from None
    except Exception as error:  # Pillow's decoders raise anything for a damaged file
        raise ValueError(f"{path}: not a picture that can be read ({one_line(error)[:100]})") from None


def _tile(opened: Picture) -> tuple[int, int]:
    """Width and height of the tiles of a TIFF, which are decoded whole; (0, 0) for other pictures."""
    tags = opened.tag_v2 if opened.format == "TIFF" else {}  # type: ignore[attr-defined]
    return tags.get(TILE_WIDTH, 0), tags.get(TILE_LENGTH, 0)


def to_eight_bits(picture: Picture) -> Picture:
    """The picture, if need be from 16 bits a channel to 8; Pillow itself would clip them.

    Raises:
        OptionError: for a picture of 32 bits (``I`` or ``F``), whose white is not known, or one without pixels.
    """
    if 0 in picture.size:
        raise OptionError(f"a picture of {picture.width}x{picture.height} pixels has nothing to explain")
    if picture.mode in ("I", "F"):
        raise OptionError(f"a picture of mode {picture.mode!r} (32 bits) has no known white; save it with 8 or 16 bits")
    if picture.mode.startswith("I;16"):
        return Image.fromarray(((np.asarray(picture).astype(np.uint32) + 128) // 257).astype(np.uint8))
    return picture
