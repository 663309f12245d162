"""Do maps point at the object? The pointing game and the share of a map's energy inside of what is annotated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from tqdm import tqdm

from ..checks import check_integer, check_number
from ..errors import NotApplicableError, OptionError, ShapeError
from .annotations import AnnotatedPicture, read_annotations
from .images import Preprocessing, gaussian
from .methods import explain_over_picture, with_options
from .model_view import ModelView
from .overlay import enlarge

TOLERANCE = 15
# What is left of a region after cropping and resizing: below this of full brightness it is the filter's ringing.
LEAST_SEEN = 0.1


@dataclass
class Pointing:
    """How often the maps of a method point at the objects of a class.

    Args:
        method: name of the explanation method.
        target: the class.
        hits: maps whose maximum lies at the object.
        misses: maps whose maximum does not, and those of ``pointless``.
        pointless: maps without a value above zero.
        energies: of the other maps, the share of the positive values inside the object.
        note: why there are no maps.

    Examples:
        >>> Pointing("rise", 0, hits=3, misses=1).accuracy
        0.75
    """

    method: str
    target: int
    hits: int = 0
    misses: int = 0
    pointless: int = 0
    energies: list[float] = field(default_factory=list, repr=False)
    note: str = ""

    @property
    def accuracy(self) -> float | None:
        """Hits among all maps, or ``None`` where there are none."""
        return self.hits / (self.hits + self.misses) if self.hits + self.misses else None

    @property
    def energy(self) -> float | None:
        """Mean share of the energy inside, or ``None`` where there is none."""
        return float(np.mean(self.energies)) if self.energies else None

    def add(self, map: np.ndarray, region: np.ndarray, tolerance: int, smooth: float) -> None:
        """Count a map, see :func:`energy_inside` and :func:`points_at`."""
        energy = energy_inside(map, region)
        hit = energy is not None and points_at(map, region, tolerance, smooth)
        self.hits += hit
        self.misses += not hit
        self.pointless += energy is None
        self.energies += [] if energy is None else [energy]


def pointing_game(
    model: nn.Module | ModelView,
    pictures: Iterable[AnnotatedPicture],
    methods: Sequence[str] | Mapping[str, Mapping[str, Any]],
    *,
    tolerance: int = TOLERANCE,
    smooth: float = 0.0,
) -> list[Pointing]:
    """Explain every class in every picture, and count whose maximum lies at an object of that class.

    Masks and boxes go through the resizing and cropping of the network's own preprocessing. What lies outside of what
    the network saw does not count, neither as a hit nor as a miss.

    Args:
        model: the classifier, which is left as it is, or a view of it.
        pictures: of :func:`~covpool_plugins.explain.annotations.read_annotations`.
        methods: names of explanation methods, or a mapping from names to options.
        tolerance: how many pixels of the network's input the maximum may lie beside the object; the figure of the
            papers is 15.
        smooth: deviation of the Gaussian that maps are smoothed by before their maximum is taken, as a part of the
            input's longer side; TorchRay's authors take 0.02. The energy is that of the map as it is.

    Returns:
        For each method a row per class, in the order of the classes.

    Raises:
        UnknownNameError: for a method that does not exist.
        OptionError: for an option out of range, or a class that the model does not have.
        ValueError: for a picture, mask or box that cannot be read.

    Source: Zhang, Lin, Brandt, Shen & Sclaroff, "Top-down Neural Attention by Excitation Backprop", ECCV 2016; the
    energy: Wang et al., "Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural Networks", CVPRW 2020.

    Examples:
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> Image.new("RGB", (64, 64)).save("grey.png")
        >>> model = covpool_plugins.create_model("test_resnet", num_classes=3, reduce_channels=8)
        >>> pictures = [AnnotatedPicture(Path("grey.png"), [(2, (0, 0, 64, 64))])]
        >>> [row.target for row in pointing_game(model, pictures, ["contribution"])]
        [2]
    """
    check_integer("tolerance", tolerance, 0)
    check_number("smooth", smooth, "[0, 1]")
    options = with_options(methods)
    view = ModelView.of(model)
    rows: dict[tuple[str, int], Pointing] = {}
    for annotated in tqdm(list(pictures), desc="pointing game", unit="picture", disable=None, leave=False):
        picture, regions = annotated.read()
        passed = view.forward_pass(view.preprocessing(picture))
        for target, region in regions.items():
            try:
                view.class_number(target)
            except OptionError as error:
                raise OptionError(f"{annotated.path}: {error}") from None
            seen = seen_region(region, view.preprocessing)
            for method in options if seen.any() else ():
                row = rows.setdefault((method, target), Pointing(method, target))
                try:
                    explanation = explain_over_picture(view, passed, method, target, **options[method])
                except NotApplicableError as error:
                    row.note = str(error)
                else:
                    row.add(explanation.map, seen, tolerance, smooth)
    return [rows[key] for method in options for key in sorted(rows) if key[0] == method]


def mean_accuracy(rows: Sequence[Pointing]) -> dict[str, float | None]:
    """By method the mean of the accuracies of the classes, as the papers report it.

    Examples:
        >>> mean_accuracy([Pointing("rise", 0, hits=3, misses=1), Pointing("rise", 1, hits=1, misses=0)])
        {'rise': 0.875}
    """
    accuracies: dict[str, list[float]] = {row.method: [] for row in rows}
    for row in rows:
        accuracies[row.method] += [] if row.accuracy is None else [row.accuracy]
    return {method: float(np.mean(values)) if values else None for method, values in accuracies.items()}


def seen_region(region: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """A region of a picture (H, W), bool, as the network sees it: resized and cropped to the network's input.

    The region goes through the preprocessing as a black and white picture. A pixel belongs to it that is at least half
    as bright as the brightest; so something smaller than a pixel of the input remains.
    """
    shown = preprocessing.picture(preprocessing(Image.fromarray(255 * region.astype(np.uint8))))
    brightness = np.asarray(shown.convert("L")) / 255
    brightest = brightness.max()
    return brightness >= brightest / 2 if brightest >= LEAST_SEEN else np.zeros(brightness.shape, bool)


def peak(map: np.ndarray, size: tuple[int, int], smooth: float = 0.0) -> tuple[int, int]:
    """Row and column of the maximum of a map (h, w), enlarged to ``size`` = (height, width).

    Args:
        map: values of any scale.
        size: of the picture that the map lies over.
        smooth: deviation of a Gaussian, as a part of the longer side.
    """
    values = enlarge(map, (size[1], size[0]))
    if smooth > 0:
        # The edge is continued: beyond it there is no evidence of nothing.
        values = gaussian(torch.tensor(values)[None, None], smooth * max(size))[0, 0].numpy()
    row, column = np.unravel_index(int(values.argmax()), values.shape)
    return int(row), int(column)


def points_at(map: np.ndarray, region: np.ndarray, tolerance: int = 0, smooth: float = 0.0) -> bool:
    """Whether the maximum of a map lies in a region (H, W), bool, or less than ``tolerance`` pixels beside it.

    TorchRay's ``PointingGame`` agrees for a positive tolerance. It is not used because without one it counts no hit at
    all, and because its mean accuracy counts every class without a picture as a failure.
    """
    row, column = peak(map, region.shape, smooth)
    rows, columns = np.nonzero(region)
    nearest = ((rows - row) ** 2 + (columns - column) ** 2).min(initial=region.size**2)
    return bool(region[row, column] or nearest < tolerance**2)


def energy_inside(map: np.ndarray, region: np.ndarray) -> float | None:
    """The share of a map's positive values (h, w) that lies in a region (H, W), bool.

    Every position of the map is a rectangle of the region, of which the share that belongs to the region counts.
    ``None`` for a map with values that are not finite, or none above zero.

    Raises:
        ShapeError: for a map that is no matrix.
    """
    values = torch.as_tensor(map, dtype=torch.float64)
    if values.ndim != 2:
        raise ShapeError(f"a map must be a matrix (H, W), got shape {tuple(values.shape)}")
    inside, (height, width) = torch.as_tensor(region, dtype=torch.float64), values.shape
    energy = values.clamp(min=0)
    total = energy.sum()
    if not 0 < total < torch.inf:
        return None
    shares = nn.functional.adaptive_avg_pool2d(inside[None], (height, width))[0]
    return ((energy * shares).sum() / total).item()


def pointing_table(
    models: Mapping[str, ModelView], methods: Mapping[str, Mapping[str, Any]], folder: Path
) -> list[dict[str, str]]:
    """The game of every method of every model, each by its name, on an annotated folder, as rows of text.

    Raises:
        ValueError: for a folder that does not have the form, see :mod:`covpool_plugins.explain.annotations`.
    """
    rows = []
    for model, view in models.items():
        classes = pointing_game(view, read_annotations(folder, view.class_names or None), methods)
        for method in methods:
            own = [row for row in classes if row.method == method]
            energies = [energy for row in own for energy in row.energies]
            numbers = {
                "hits": str(sum(row.hits for row in own)),
                "misses": str(sum(row.misses for row in own)),
                "accuracy": _text(mean_accuracy(own).get(method)),
                "energy": _text(float(np.mean(energies)) if energies else None),
            }
            note = next((row.note for row in reversed(own) if row.note), "")
            rows.append({"model": model, "method": method, **numbers, "note": note})
    return rows


def _text(share: float | None) -> str:
    return "n/a" if share is None else f"{share:.3f}"
