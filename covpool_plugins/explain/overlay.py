"""Maps laid over pictures, matrices drawn as heat maps, captions; the eigen panel, and several heads side by side."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..errors import OptionError, require_extra
from ..pictures import Picture

if TYPE_CHECKING:
    from .explanation import Explanation

CLIP_PERCENTILE = 99.5
DIVERGING, SEQUENTIAL = "RdBu_r", "inferno"
MARGIN = 6
LARGEST_FONT, SMALLEST_FONT = 14, 9
SIDE = 320  # of a picture in a panel, in pixels
CELL = 3.2  # of a picture in a panel, in inches
DOTS_PER_INCH = 110
MOST_COLUMNS = 5
CHARACTERS, LINE = 50, 0.16  # of the small print below a picture: a line's length, and its height in inches
FOR, AGAINST, BEFORE, AFTER = "#b2182b", "#2166ac", "#4d4d4d", "#e08214"


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


def eigen_panel(explanation: Explanation) -> Picture:
    """What the eigenvalues of a covariance add to a class score, as one picture.

    Above: the spectrum before and after normalisation with both condition numbers; the share σ_k of every eigenvalue
    and their cumulative sum; the picture, and the map of all shares. Below: the maps of the bands of eigenvalues with
    their shares, each on its own colour scale, because small eigenvalues would be pale on a common one.

    Args:
        explanation: of the method ``eigen``.

    Raises:
        OptionError: for another method.
        MissingExtraError: without matplotlib.

    Examples:
        >>> model = covpool_plugins.create_model("test_resnet", num_classes=3, reduce_channels=8)
        >>> eigen_panel(explain(model, torch.randn(1, 3, 64, 64), "eigen")).mode
        'RGB'
    """
    if not {"eigenvalues", "normalized", "sigma", "bands", "band_edges"} <= explanation.extras.keys():
        raise OptionError(f"eigen_panel draws explanations of the method 'eigen', got {explanation.method!r}")
    extras, bands, edges = explanation.extras, explanation.extras["bands"], explanation.extras["band_edges"]
    cell = CELL * explanation.image.height / explanation.image.width
    figure = _figure(CELL * max(4, len(bands)), 2 * cell + 1.9)
    upper, lower = figure.subfigures(2, 1)
    axes = upper.subplots(1, 4)
    _spectrum(axes[0], extras["eigenvalues"], extras["normalized"])
    _shares(axes[1], extras["sigma"], explanation.completeness_target or 0.0, edges)
    _show(axes[2], explanation.image, "what the network saw")
    _show_band(axes[3], explanation, explanation.map, f"all {len(extras['sigma'])} eigenvalues")
    below = np.atleast_1d(lower.subplots(1, len(bands)))
    for axis, band, (first, last) in zip(below, bands, pairwise(edges), strict=True):
        _show_band(axis, explanation, band, f"eigenvalues {first + 1} to {last}")
    figure.suptitle(" · ".join(explanation.caption()), fontsize=11)
    return _rendered(figure)


def montage(explanations: Sequence[tuple[str, Explanation | str]]) -> Picture:
    """Several heads side by side, on one colour scale.

    Args:
        explanations: labels with explanations by one method, or with the reason why there is none, which is shown as
            "n/a".

    Raises:
        OptionError: for no explanation at all, or methods whose values do not share a scale.
        MissingExtraError: without matplotlib.

    Examples:
        >>> model = covpool_plugins.create_model("test_resnet", num_classes=3, reduce_channels=8)
        >>> montage([("svdpade", explain(model, torch.randn(1, 3, 64, 64))), ("gap", "not trained")]).mode
        'RGB'
    """
    shown = [explanation for _, explanation in explanations if not isinstance(explanation, str)]
    if not shown:
        raise OptionError("montage needs at least one explanation, got none")
    first, methods = shown[0], sorted({explanation.method for explanation in shown})
    if len(methods) > 1:
        raise OptionError(f"montage has one colour scale for one method, got {', '.join(methods)}")
    limit = max(colour_limit(explanation.shown) for explanation in shown)
    cells = []
    for label, explanation in explanations:
        if isinstance(explanation, str):
            cells.append((label, Image.new("RGB", first.image.size, "#eeeeee"), f"n/a: {explanation}"))
        else:
            caption = "\n".join(explanation.caption(limit)).removeprefix(explanation.method).lstrip(", ")
            cells.append((label, explanation.overlay(limit, SIDE), caption))
    most_lines = max(len(_wrapped(caption)) for _, _, caption in cells)
    columns = min(MOST_COLUMNS, len(cells))
    rows = -(-len(cells) // columns)
    height, width = first.map.shape if first.space == "matrix" else (first.image.height, first.image.width)
    figure = _figure(columns * CELL, rows * (CELL * height / width + 0.35 + LINE * most_lines) + 0.3)
    sign = "±" if first.signed else ""
    scale = "" if first.space == "picture" else f", full colour at {sign}{limit:.2g}"
    figure.suptitle(first.method + scale, fontsize=11)
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axis, (label, picture, caption) in zip(axes, cells, strict=False):
        _show(axis, picture, label, caption)
    for axis in axes[len(cells) :]:
        axis.set_axis_off()
    return _rendered(figure)


def _figure(width: float, height: float) -> Any:
    figures = require_extra("matplotlib.figure", "explain")
    return figures.Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout="constrained")


def _rendered(figure: Any) -> Picture:
    canvas = require_extra("matplotlib.backends.backend_agg", "explain").FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _spectrum(axis: Any, before: np.ndarray, after: np.ndarray) -> None:
    for values, colour, name in ((before, BEFORE, "covariance"), (after, AFTER, "normalised")):
        positive = values[values > 0]
        condition = positive.max(initial=0.0) / positive.min(initial=np.inf)
        axis.plot(1 + np.flatnonzero(values > 0), positive, ".-", color=colour, label=f"{name}, κ = {condition:.2g}")
    axis.set(yscale="log", xlabel="k")
    axis.set_title("eigenvalues", fontsize=10)
    axis.legend(fontsize=9)
    axis.grid(alpha=0.3)


def _shares(axis: Any, sigma: np.ndarray, whole: float, edges: np.ndarray) -> None:
    k = np.arange(1, len(sigma) + 1)
    axis.bar(k, sigma, width=0.9, color=np.where(sigma >= 0, FOR, AGAINST))
    axis.plot(k, sigma.cumsum(), color="black", linewidth=1.2, label="sum of the first k")
    axis.axhline(0, color="black", linewidth=0.6)
    for edge in edges[1:-1]:
        axis.axvline(edge + 0.5, color="grey", linewidth=0.8, linestyle=":")
    axis.set_xlabel("k")
    axis.set_title("share σ of each eigenvalue in the score", fontsize=10)
    axis.legend(fontsize=9)
    if whole:
        percent = axis.secondary_yaxis("right", functions=(lambda v: 100 * v / whole, lambda v: v * whole / 100))
        percent.set_ylabel("% of score - bias", fontsize=9)


def _show_band(axis: Any, explanation: Explanation, values: np.ndarray, title: str) -> None:
    limit = colour_limit(values)
    picture = overlay(at_least(explanation.image, SIDE), values, explanation.signed, limit)
    scale = f"full colour at {'±' if explanation.signed else ''}{limit:.2g}"
    _show(axis, picture, title, f"{balance(values)} = {values.sum():+.3g}\n{scale}")


def _show(axis: Any, picture: Picture, title: str, caption: str = "") -> None:
    axis.imshow(np.asarray(picture), interpolation="bicubic")
    axis.set_title(title, fontsize=10)
    axis.set(xticks=[], yticks=[], anchor="N")  # what is spare goes below the caption
    axis.set_xlabel("\n".join(_wrapped(caption)), fontsize=8)


def _wrapped(caption: str) -> list[str]:
    return [part for line in caption.splitlines() for part in textwrap.wrap(line, CHARACTERS)]
