"""The pointing game: geometry, counting, and what has no map."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.explanations import AVERAGE, CHEAP, mmpretrain_config

from covpool_plugins.errors import OptionError, ShapeError
from covpool_plugins.explain import ModelView, load_mmpretrain_model
from covpool_plugins.explain.annotations import read_annotations
from covpool_plugins.explain.methods import EXPLANATIONS, Explanation, ExplanationMethod
from covpool_plugins.explain.model_view import ForwardPass
from covpool_plugins.explain.pointing import (
    Pointing,
    energy_inside,
    mean_accuracy,
    peak,
    pointing_game,
    points_at,
    seen_region,
)

SIDE = 32


def region(height: int, width: int, top: int, left: int, bottom: int, right: int) -> np.ndarray:
    inside = np.zeros((height, width), bool)
    inside[top:bottom, left:right] = True
    return inside


@pytest.fixture
def view(small_net) -> ModelView:
    return ModelView.of(small_net())


@pytest.fixture
def cropping(small_net) -> ModelView:
    """A network that sees the inner 32 x 32 of what is resized to a shorter side of 64."""
    net = small_net()
    net.pretrained_cfg = {**net.pretrained_cfg, "crop_pct": 0.5}
    return ModelView.of(net)


@pytest.mark.parametrize("size", [(64, 64), (128, 160), (32, 32)])
@pytest.mark.parametrize("corner", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_a_corner_of_what_is_seen_stays_in_its_corner(
    corner: tuple, size: tuple[int, int], cropping: ModelView
) -> None:
    """The quarter of a picture comes to be the quarter of the input, the outer part of it cropped."""
    (row, column), (height, width) = corner, size
    top, left = row * height // 2, column * width // 2
    seen = seen_region(region(height, width, top, left, top + height // 2, left + width // 2), cropping.preprocessing)
    expected = region(SIDE, SIDE, 16 * row, 16 * column, 16 * row + 16, 16 * column + 16)
    assert seen.dtype == bool and np.mean(seen != expected) < 0.02


def test_what_is_small_is_still_seen_and_what_is_cropped_away_is_not(view: ModelView, cropping: ModelView) -> None:
    """A pixel of a picture of 128 x 128 is a sixteenth of one of the input."""
    rows, columns = np.nonzero(seen_region(region(128, 128, 40, 80, 42, 82), view.preprocessing))
    assert 1 <= len(rows) <= 4 and abs(rows.mean() - 10) < 1 and abs(columns.mean() - 20) < 1
    assert not seen_region(region(64, 64, 0, 0, 12, 64), cropping.preprocessing).any()


def test_geometry_of_mmpretrain(tmp_path: Path) -> None:
    pytest.importorskip("mmpretrain")
    view = ModelView.of(load_mmpretrain_model(mmpretrain_config(tmp_path, **AVERAGE, to_rgb=False)))
    seen = seen_region(region(96, 144, 0, 0, 48, 72), view.preprocessing)
    assert np.mean(seen != region(SIDE, SIDE, 0, 0, 16, 16)) < 0.02


def test_the_peak_is_where_the_overlay_has_it() -> None:
    """Smoothing prefers many to one."""
    row, column = peak(region(4, 8, 1, 6, 2, 7) * 1.0, (40, 160))
    assert 10 <= row < 20 and 120 <= column < 140
    map = 0.8 * region(32, 32, 16, 16, 24, 24)
    map[2, 2] = 1
    assert peak(map, (32, 32)) == (2, 2)
    assert all(16 <= place < 24 for place in peak(map, (32, 32), smooth=0.1))


@pytest.mark.parametrize("tolerance", [1, 4, 15])
def test_hits_are_those_of_torchray(tolerance: int) -> None:
    generator = np.random.default_rng(0)
    torchray = pytest.importorskip("torchray.benchmark.pointing_game").PointingGame(1, tolerance)
    hits = []
    for _ in range(60):
        top, left = generator.integers(0, 30, 2)
        inside = region(40, 40, top, left, top + 10, left + 10)
        map = generator.random((40, 40))
        row, column = peak(map, (40, 40))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            expected = torchray.evaluate(torch.from_numpy(inside), (column, row)) == 1
        hits.append(points_at(map, inside, tolerance))
        assert hits[-1] == expected
    assert set(hits) == {True, False}


def test_without_tolerance_inside_is_inside() -> None:
    map, beside = region(8, 8, 3, 3, 4, 4) * 1.0, region(8, 8, 4, 3, 5, 4)
    assert points_at(map, map > 0) and not points_at(map, beside) and points_at(map, beside, tolerance=2)


@pytest.mark.parametrize(
    ("map", "expected"),
    [
        (np.eye(2), 0.5),
        (np.array([[3.0, 1.0], [-9, 0]]), 0.75),
        (np.ones((3, 3)), 0.25),
        (-np.eye(2), None),
        (np.array([[np.nan, 1]]), None),
        (np.array([[np.inf, 1]]), None),
    ],
)
def test_energy(map: np.ndarray, expected: float | None) -> None:
    """In the upper left quarter; cells of the map that lie across its edge count in part."""
    energy = energy_inside(map, region(12, 12, 0, 0, 6, 6))
    assert energy == (expected if expected is None else pytest.approx(expected))
    with pytest.raises(ShapeError, match=r"a map must be a matrix \(H, W\), got shape \(3,\)"):
        energy_inside(np.ones(3), np.ones((2, 2), bool))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures; class 0 is upper left in both, class 3 lower right in the first."""
    (tmp_path / "pictures").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), dtype=np.uint8)
    for name, values in zip("ab", pixels, strict=True):
        Image.fromarray(values).save(tmp_path / "pictures" / f"{name}.png")
    annotate(tmp_path, (0, 0, [0, 0, 16, 16]), (0, 3, [16, 16, 16, 16]), (1, 0, [0, 0, 16, 16]))
    return tmp_path


def annotate(folder: Path, *boxes: tuple[int, int, list[int]]) -> None:
    content = {
        "images": [{"id": i, "file_name": f"{name}.png"} for i, name in enumerate("ab")],
        "categories": [{"id": i, "name": str(i)} for i in range(6)],
        "annotations": [dict(image_id=i, category_id=c, bbox=box) for i, c, box in boxes],
    }
    (folder / "annotations.json").write_text(json.dumps(content))


def upper_left(
    view: ModelView, passed: ForwardPass, target: int, *, scale: float = 1.0, other: float = 0.25
) -> Explanation:
    map = torch.zeros(8, 8)
    map[1, 1], map[6, 6] = scale, other
    return Explanation(map, signed=True)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [(2, 0, 0, 0.8), (0, 1, 0, 0.2)]),
        ({"scale": -1.0, "other": -1.0}, [(0, 2, 2, None), (0, 1, 1, None)]),
        ({"scale": float("nan")}, [(0, 0, 0, None)] * 2),
    ],
)
def test_hits_misses_and_energy(options: dict, expected: list, folder: Path, view: ModelView, monkeypatch) -> None:
    row = ExplanationMethod(upper_left, scale=lambda *_: None, other=lambda *_: None)
    monkeypatch.setitem(EXPLANATIONS._entries, "upper_left", row)
    rows = pointing_game(view, read_annotations(folder), {"upper_left": options}, tolerance=0)
    assert [row.target for row in rows] == [0, 3]
    for row, (*counts, energy) in zip(rows, expected, strict=True):
        assert [row.hits, row.misses, row.pointless] == counts and ("not finite" in row.note) == (sum(counts) == 0)
        assert row.energy == (energy and pytest.approx(energy))
        assert row.accuracy == (row.hits / (row.hits + row.misses) if sum(counts) else None)


@pytest.mark.fast_for("contribution", "channel_pairs", "maximal_image", "democratic_weights")
@pytest.mark.parametrize("method", EXPLANATIONS)
def test_every_method_plays_or_says_why_not(method: str, folder: Path, view: ModelView) -> None:
    rows = pointing_game(view, read_annotations(folder), {method: CHEAP.get(method, {})})
    assert [row.target for row in rows] == [0, 3]
    for row, maps in zip(rows, (2, 1), strict=True):
        assert row.hits + row.misses == (0 if row.note else maps)
        assert (row.accuracy is None) == bool(row.note)
        assert len(row.energies) == row.hits + row.misses - row.pointless


def test_objects_outside_of_what_is_seen_and_classes_that_the_model_does_not_have(folder: Path, cropping) -> None:
    annotate(folder, (0, 0, [0, 0, 16, 16]), (0, 3, [0, 0, 6, 6]), (1, 0, [0, 0, 16, 16]))
    rows = pointing_game(cropping, read_annotations(folder), ["contribution"])
    assert [(row.target, row.hits + row.misses) for row in rows] == [(0, 2)]
    annotate(folder, (0, 5, [0, 0, 16, 16]))
    with pytest.raises(ValueError, match=r"a.png: target must be a class from 0 to 4, got 5"):
        pointing_game(cropping, read_annotations(folder), ["contribution"])


def test_means_are_over_the_classes_that_there_are() -> None:
    rows = [Pointing("rise", 0, 9, 1), Pointing("rise", 4, 1, 1), Pointing("rise", 5, note="n/a"), Pointing("eigen", 0)]
    assert mean_accuracy(rows) == {"rise": pytest.approx(0.7), "eigen": None}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(tolerance=-1), "tolerance must be an integer >= 0, got -1"),
        (dict(smooth=2), r"smooth must be a number in \[0, 1\], got 2"),
        (dict(methods={"rise": {"masks": 0}}), "rise: masks must be a positive integer, got 0"),
    ],
)
def test_bad_input(options: dict, message: str, folder: Path, view: ModelView) -> None:
    with pytest.raises(OptionError, match=message):
        pointing_game(view, read_annotations(folder), **dict(methods=["contribution"]) | options)
