"""Results as they are drawn: matrices, pictures, the eigen panel, heads side by side."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from covpool_plugins.errors import MissingExtraError, OptionError
from covpool_plugins.explain import Explanation, ModelView, explain
from covpool_plugins.explain.overlay import at_least, balance, eigen_panel, heat_map, montage


def colourful(picture: Image.Image) -> np.ndarray:
    """Which pixels are neither grey nor black nor white."""
    return np.ptp(np.asarray(picture.convert("RGB")).astype(int), axis=2) > 40


def flat(values: np.ndarray, method: str = "contribution", signed: bool = True, **extras: np.ndarray) -> Explanation:
    grey = Image.new("RGB", (60, 40), (128, 128, 128))
    return Explanation(values, signed, extras=extras, method=method, target=1, probability=0.5, image=grey)


def test_a_heat_map_has_one_square_for_each_entry() -> None:
    values = np.array([[1.0, -1.0, 0.0], [0.5, 0.0, 0.0]])
    picture = heat_map(values, signed=True, smallest_side=31)
    assert picture.size == (48, 32)
    pixels = np.asarray(picture).astype(int)
    blocks = pixels.reshape(2, 16, 3, 16, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()
    colours = blocks[:, 0, :, 0]
    redness, lightness = colours[..., 0] - colours[..., 2], colours.sum(-1)
    assert redness[0, 0] > 100 and redness[1, 0] > 100 and redness[0, 1] < -100 and abs(redness[1, 1]) < 5
    assert lightness[0, 0] + 100 < lightness[1, 0] < lightness[1, 1] - 100


def test_a_heat_map_shares_a_limit() -> None:
    values = np.eye(4)
    own, shared = (np.asarray(heat_map(values, True, limit=limit)).astype(int) for limit in (None, 10.0))
    assert np.ptp(own, axis=2).max() > 3 * np.ptp(shared, axis=2).max()
    assert not colourful(heat_map(np.zeros((3, 3)), True)).any()


def test_only_small_pictures_are_enlarged_and_the_balance_is_said() -> None:
    assert at_least(Image.new("RGB", (10, 20)), 32).size == (32, 64)
    assert at_least(Image.new("RGB", (40, 50)), 32).size == (40, 50)
    assert balance(np.array([[1.0, -0.25], [0.5, 0.0]])) == "+1.5 for, -0.25 against"


@pytest.mark.parametrize("method", ["contribution", "channel_pairs"])
def test_notebooks_show_what_is_saved(method: str, small_net, image: Tensor, tmp_path: Path) -> None:
    explanation = explain(small_net(), image, method, 0)
    png, npz = explanation.save(tmp_path, "a")
    saved = Image.open(png)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(explanation._repr_png_()))), np.asarray(saved))
    if method == "channel_pairs":  # a matrix is drawn by itself
        assert explanation.overlay().size == (12, 12) and explanation.overlay(smallest_side=100).size == (108, 108)
        assert saved.width == 324
        with np.load(npz) as arrays:
            assert set(arrays) >= {"map", "contributions", "pairs", "pair_shares"} and arrays["pairs"].dtype == np.int64


def test_extras_are_saved_under_their_names_and_numbers_are_shown(tmp_path: Path) -> None:
    explanation = flat(np.ones((2, 3)), bands=np.zeros((2, 2, 3)), some_number=np.array(0.125), map=np.zeros(7))
    with np.load(explanation.save(tmp_path, "a")[1]) as arrays:
        assert arrays["bands"].shape == (2, 2, 3) and arrays["some_number"] == 0.125
        np.testing.assert_array_equal(arrays["map"], np.ones((2, 3)))  # an extra cannot take the place of the map
    assert explanation.caption()[1:] == ["full colour at ±1", "some number 0.125"]


def test_eigen_panel(small_net, image: Tensor) -> None:
    """It follows the maps, and pyplot, which notebooks use, does not know of its figure."""
    view = ModelView.of(small_net())
    panels = [eigen_panel(explain(view, image, "eigen", target, bands=bands)) for target, bands in ((0, 4), (1, 1))]
    for panel in panels:
        assert panel.mode == "RGB" and panel.width >= 1200 and panel.height >= 700
        halves = colourful(panel)
        assert halves[: panel.height // 2].mean() > 0.01 and halves[panel.height // 2 :].mean() > 0.01
    upper = [np.asarray(panel)[: panels[0].height // 2] for panel in panels]
    assert (upper[0] != upper[1]).any(axis=2).mean() > 0.05
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


@pytest.mark.filterwarnings("error")
def test_eigen_panel_of_a_picture_without_features() -> None:
    none = np.zeros(0)
    extras = {"eigenvalues": none, "normalized": none, "sigma": none, "bands": np.zeros((1, 4, 6))}
    explanation = flat(np.zeros((4, 6)), "eigen", band_edges=np.array([0, 0]), **extras)
    assert not colourful(eigen_panel(explanation))[400:].any()
    with pytest.raises(OptionError, match="draws explanations of the method 'eigen', got 'contribution'"):
        eigen_panel(flat(np.zeros((4, 6))))


@pytest.mark.parametrize(("count", "columns", "rows"), [(3, 3, 1), (7, 5, 2)])
def test_a_montage_has_rows(count: int, columns: int, rows: int) -> None:
    several, single = (montage([(f"head {i}", flat(np.eye(4))) for i in range(n)]).size for n in (count, 1))
    assert several[0] == columns * single[0]
    assert several[1] > (rows - 0.3) * single[1]


def test_a_montage_has_one_scale() -> None:
    """A map of a tenth of the other's values is pale beside it and bright beside itself."""
    strong = np.zeros((4, 6))
    strong[1:3, 1:4] = 1.0
    beside_itself, beside_strong = (
        montage([("weak", flat(0.1 * strong)), ("other", flat(factor * strong))]) for factor in (0.1, 1.0)
    )
    assert beside_itself.size == beside_strong.size
    left = (slice(None), slice(0, beside_itself.width // 2))
    assert colourful(beside_itself)[left].mean() > 0.02 > 0.001 > colourful(beside_strong)[left].mean()
    assert colourful(beside_strong)[:, beside_itself.width // 2 :].mean() > 0.02


def test_a_montage_says_what_is_not_applicable() -> None:
    both = montage([("svdpade", flat(np.eye(4))), ("gap", "no root of a covariance")])
    right = np.asarray(both.convert("L"))[:, both.width // 2 :]
    assert not colourful(both)[:, both.width // 2 :].any() and (right < 150).mean() > 0.001


@pytest.mark.parametrize("numbers", [0, 1, 12])
def test_captions_of_a_montage_are_whole(numbers: int) -> None:
    """However many lines one has: white lies below the last, and dark letters not far above."""
    long = flat(np.eye(4), **{f"some_number_{i}": np.array(0.125) for i in range(numbers)})
    grey = np.asarray(montage([("short", flat(np.eye(4))), ("long", long)]).convert("L"))
    assert (grey[-3:] > 250).all() and (grey[-80:] < 100).any()


def test_a_montage_of_matrices_and_of_pictures(small_net, image: Tensor) -> None:
    for method, options in (("channel_pairs", {}), ("maximal_image", {"iterations": 2})):
        explanation = explain(small_net(), image, method, 0, **options)
        assert montage([("one", explanation), ("two", explanation)]).width > 600


def test_bad_montages() -> None:
    for none in ([], [("gap", "n/a")]):
        with pytest.raises(OptionError, match="at least one explanation, got none"):
            montage(none)
    with pytest.raises(OptionError, match="for one method, got contribution, energy"):
        montage([("a", flat(np.eye(3))), ("b", flat(np.eye(3), "energy"))])


def test_without_matplotlib_the_extra_is_named(monkeypatch, small_net, image: Tensor) -> None:
    explanation = explain(small_net(), image, "eigen", 0)
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "meta_path", [])
    with pytest.raises(MissingExtraError, match=r"pip install 'covpool_plugins\[explain\]'"):
        eigen_panel(explanation)
