"""Maps laid over pictures, matrices drawn as heat maps, and captions."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..errors import require_extra
from ..pictures import Picture

CLIP_PERCENTILE = 99.5
DIVERGING, SEQUENTIAL = "RdBu_r", "inferno"
MARGIN = 6
LARGEST_FONT, SMALLEST_FONT = 14, 9


def overlay(image: Picture, values: np.ndarray, signed: bool, limit: float | None = None) -> Picture:
    """A grey picture with a map in colour, the more opaque the larger its magnitude.

    Args:
        image: RGB picture of any size.
        values: map (H, W) of any size; it is enlarged to that of the picture.
        signed: red for positive and blue for negative values; otherwise one sequential scale.
        limit: the magnitude of full colour, for one scale on several pictures; the default is the map's own.
    """
    colormap = require_extra("matplotlib", "explain").colormaps[DIVERGING if signed else SEQUENTIAL]
    limit = colour_limit(values) if limit is None else limit
    strength = np.clip(enlarge(values / limit if limit > 0 else np.zeros_like(values), image.size), -1, 1)
    magnitude = np.abs(strength) if signed else np.clip(strength, 0, 1)
    # Opacity tells the magnitude, so the pale middle of the diverging scale is left out.
    colour = colormap(0.5 + np.sign(strength) * (0.25 + 0.18 * magnitude) if signed else magnitude)[..., :3]
    grey = np.asarray(image.convert("L"), dtype=np.float64)[..., None] / 255
    base = 0.15 + 0.75 * grey
    opacity = 0.9 * magnitude[..., None] ** 0.8
    return Image.fromarray(np.uint8(np.round(255 * (opacity * colour + (1 - opacity) * base))))


def heat_map(values: np.ndarray, signed: bool, smallest_side: int = 1, limit: float | None = None) -> Picture:
    """A matrix in colour, every entry a square of pixels.

    Args:
        values: the matrix (n, m).
        signed: red for positive and blue for negative values; otherwise one sequential scale.
        smallest_side: entries are enlarged until no side of the picture is shorter.
        limit: the magnitude of full colour; the default is the matrix's own.
    """
    colormap = require_extra("matplotlib", "explain").colormaps[DIVERGING if signed else SEQUENTIAL]
    limit = colour_limit(values) if limit is None else limit
    strength = np.clip(values / limit if limit > 0 else np.zeros_like(values), -1, 1)
    # The ends of the diverging scale are almost black, so that they look less red and blue than what is beside them.
    colours = colormap(0.5 + 0.43 * strength if signed else strength)[..., :3]
    drawn = Image.fromarray(np.uint8(np.round(255 * colours)))
    factor = -(-smallest_side // min(drawn.size))
    return drawn.resize((factor * drawn.width, factor * drawn.height), Image.Resampling.NEAREST)


def at_least(picture: Picture, smallest_side: int) -> Picture:
    """The picture, enlarged where a side is shorter."""
    factor = max(1.0, smallest_side / min(picture.size))
    size = (round(factor * picture.width), round(factor * picture.height))
    return picture.resize(size, Image.Resampling.BICUBIC)


def balance(values: np.ndarray) -> str:
    """The sums of the positive and of the negative values."""
    return f"{values.clip(min=0).sum():+.3g} for, {values.clip(max=0).sum():+.3g} against"


def colour_limit(values: np.ndarray) -> float:
    """The 99.5th percentile of the magnitude: single extreme values do not wash out the rest."""
    magnitude = np.abs(values)
    limit = float(np.percentile(magnitude, CLIP_PERCENTILE))
    return limit if limit > 0 else float(magnitude.max(initial=0.0))


def enlarge(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map (H, W) brought to ``size`` = (width, height) by bicubic interpolation."""
    return np.asarray(Image.fromarray(values.astype(np.float32)).resize(size, Image.Resampling.BICUBIC))


def with_caption(picture: Picture, lines: list[str]) -> Picture:
    """The picture with lines of text below it; where it is narrow the text shrinks, then breaks."""
    width = picture.width - 2 * MARGIN
    font = ImageFont.load_default(LARGEST_FONT)
    longest = max(font.getlength(line) for line in lines)
    font_size = min(LARGEST_FONT, max(SMALLEST_FONT, int(LARGEST_FONT * width / max(longest, 1))))
    font = ImageFont.load_default(font_size)
    lines = [part for line in lines for part in _broken(line, font, width)]
    line_height = round(1.35 * font_size)
    captioned = Image.new("RGB", (picture.width, picture.height + len(lines) * line_height + 2 * MARGIN), "white")
    captioned.paste(picture)
    draw = ImageDraw.Draw(captioned)
    for row, line in enumerate(lines):
        draw.text((MARGIN, picture.height + MARGIN + row * line_height), line, fill="black", font=font)
    return captioned


def _broken(line: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """The line in parts that fit, broken between words; a word that is too long by itself stays whole."""
    parts = [""]
    for word in line.split(" "):
        longer = f"{parts[-1]} {word}".lstrip(" ")
        if parts[-1] and font.getlength(longer) > width:
            parts.append(word)
        else:
            parts[-1] = longer
    return parts
