"""Pictures, files and inputs of an explanation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from support.explanations import CHEAP
from torch import Tensor

from covpool_plugins.errors import NotApplicableError, OptionError, ShapeError, UnknownNameError
from covpool_plugins.explain import (
    Explanation,
    ModelView,
    explain,
    explanation_options,
    list_explanations,
    read_picture,
)
from covpool_plugins.explain.model_view import token_grid
from covpool_plugins.explain.overlay import colour_limit, with_caption

# Methods with the option ``layer``.
LAYERED = [name for name in list_explanations() if "layer" in explanation_options(name)]


def explanation(values: np.ndarray, signed: bool = True, **fields: Any) -> Explanation:
    """Over a picture of 60 x 40 pixels, dark on the left."""
    ramp = Image.fromarray(np.tile(np.linspace(0, 255, 60).astype(np.uint8), (40, 1))).convert("RGB")
    return Explanation(values, signed, method="contribution", target=1, probability=0.5, image=ramp, **fields)


def colours(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture).astype(int)


@pytest.mark.parametrize("signed", [True, False])
def test_overlay_has_the_size_of_the_picture_and_is_grey_where_the_map_is_zero(signed: bool) -> None:
    picture = explanation(np.zeros((4, 6)), signed).overlay()
    assert picture.size == (60, 40) and picture.mode == "RGB"
    pixels = colours(picture)
    assert (np.ptp(pixels, axis=2) <= 1).all() and pixels[0, -1, 0] > pixels[0, 0, 0] + 100


def test_overlay_colours_by_sign_and_strength() -> None:
    values = np.zeros((4, 6))
    values[0, 0], values[0, 5], values[3, 0] = 1.0, -1.0, 0.5
    drawn = (colours(explanation(shown).overlay()) for shown in (values, -values))
    redness, other = (pixels[..., 0] - pixels[..., 2] for pixels in drawn)
    assert redness[2, 2] > 100 and redness[2, 57] < -80 and 30 < redness[37, 2] < redness[2, 2]
    assert other[2, 2] < 0
    weak = explanation(np.full((4, 6), 0.1), False)
    own, shared = (colours(weak.overlay(limit)) for limit in (None, 1.0))
    assert np.ptp(own, axis=2).mean() > 3 * np.ptp(shared, axis=2).mean()


def test_one_extreme_value_does_not_wash_out_the_rest() -> None:
    values = np.ones((40, 40))
    values[0, 0] = 1000.0
    assert colour_limit(values) == 1.0
    assert colour_limit(np.zeros((3, 3))) == 0.0


def test_a_relative_map_is_drawn_from_its_smallest_value_on() -> None:
    values = np.array([[0.90, 0.91], [0.92, 0.98]])
    relative, absolute = (explanation(values, False, relative=flag) for flag in (True, False))
    spread = [np.ptp(np.ptp(colours(drawn.overlay()), axis=2)) for drawn in (relative, absolute)]
    assert spread[0] > 150 and spread[1] < 100
    assert "values from 0.9, without colour, to 0.98" in relative.caption()


def test_a_failed_write_leaves_the_old_file(small_net, image: Tensor, tmp_path: Path, monkeypatch) -> None:
    explanation = explain(small_net(), image, "contribution")
    (tmp_path / "cat.png").write_bytes(b"old")
    monkeypatch.setattr(Image.Image, "save", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        explanation.save(tmp_path, "cat")
    assert (tmp_path / "cat.png").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_files_pictures_and_arrays_are_what_the_network_sees(small_net, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    picture, view = Image.fromarray(pixels), ModelView.of(small_net())
    picture.save(tmp_path / "a.png")
    x = view.preprocessing(picture)
    expected = (torch.from_numpy(pixels[4, 5]) / 255 - torch.tensor([0.5, 0.4, 0.3])) / torch.tensor([0.2, 0.25, 0.3])
    torch.testing.assert_close(x[0, :, 4, 5], expected)
    np.testing.assert_array_equal(np.asarray(view.preprocessing.picture(x)), pixels)
    opaque = np.concatenate([pixels, np.full((32, 32, 1), 255, np.uint8)], axis=2)
    chw = torch.from_numpy(pixels).movedim(-1, 0)
    images = [x, tmp_path / "a.png", str(tmp_path / "a.png"), picture, pixels, pixels / 255, opaque, chw, chw[None]]
    first, *others = explain(view, images, "gradient", 0)
    for other in others:
        np.testing.assert_array_equal(other.map, first.map)
    grey = pixels[:, :, :1]
    for same in (grey[:, :, 0], grey, grey / 255, torch.from_numpy(grey).movedim(-1, 0)):
        expected = explain(view, Image.fromarray(grey[:, :, 0]), "gradient", 0).map
        np.testing.assert_array_equal(explain(view, same, "gradient", 0).map, expected)


def test_lists_and_batches_of_images_and_classes(small_net, image: Tensor) -> None:
    view = ModelView.of(small_net(), class_names=["cat", "dog", "eel", "fox", "gnu"])
    batch = torch.cat([image, image.flip(3)])
    alone = [explain(view, x[None], target=1).map for x in batch]
    for images in (batch, list(batch), [x[None] for x in batch]):
        for expected, explanation in zip(alone, explain(view, images, target="dog"), strict=True):
            np.testing.assert_array_equal(explanation.map, expected)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    assert len(explain(view, pixels)) == 2
    assert [e.target for e in explain(view, batch, target=["eel", -1])] == [2, 4]
    several = explain(view, image, target=["eel", 0, None])
    assert [e.target for e in several[:2]] == [2, 0] and len(several) == 3
    assert "class eel versus gnu" in explain(view, image, target="eel", versus="gnu").caption()[0]


def test_pixels_that_are_taken_for_a_normalised_input_are_warned_of(small_net) -> None:
    with pytest.warns(UserWarning, match=r"all values of the tensor lie in \[0, 1\]"):
        explain(small_net(), torch.rand(1, 3, 32, 32))


def test_targets_are_integers_of_any_kind_and_by_default_the_top_class(small_net, image: Tensor) -> None:
    net = small_net()
    for target in (np.int64(2), torch.tensor(2)):
        explanation = explain(net, image, target=target)
        assert explanation.target == 2 and type(explanation.target) is int
    with torch.no_grad():
        net.head.fc.bias[4] += 50
    explanation = explain(net, image)
    assert explanation.target == 4 and explanation.method == "contribution" and explanation.probability > 0.999


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled(suffix: str, tmp_path: Path) -> None:
    values = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    path = tmp_path / f"deep.{suffix}"
    Image.fromarray(values).save(path)
    pixels = np.asarray(read_picture(path))
    np.testing.assert_array_equal(pixels, np.repeat(np.arange(256).reshape(16, 16, 1), 3, axis=2))


class Rearranged(torch.nn.Module):
    """A network for colour whose first convolution takes 12 channels."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        net.stem[0] = torch.nn.Sequential(torch.nn.PixelUnshuffle(2), torch.nn.Conv2d(12, 12, 2, stride=2))
        self.net, self.head, self.pretrained_cfg = net, net.head, net.pretrained_cfg

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def test_rearranged_pixels_are_still_colour(small_net, image: Tensor) -> None:
    assert explain(Rearranged(small_net()).eval(), image).map.shape == (8, 8)


def test_half_precision_models_are_explained_in_float32(small_net, image: Tensor) -> None:
    expected = explain(small_net(), image, "contribution", 1).map
    map = explain(small_net().bfloat16(), image, "contribution", 1).map
    assert np.corrcoef(map.ravel(), expected.ravel())[0, 1] > 0.99


BAD_INPUT = [
    (dict(target=5), OptionError, "target must be a class from 0 to 4, got 5"),
    (dict(target=-6), OptionError, "from 0 to 4, got -6"),
    (dict(target="cat"), OptionError, "from 0 to 4, got 'cat'; names need class_names"),
    (dict(target="cat", class_names=list("abcde")), UnknownNameError, "unknown class 'cat'; available: c, a, b, d, e"),
    (dict(class_names=["cat"]), OptionError, "class_names has 1 names, the model has 5 classes"),
    (
        dict(target="a", class_names=list("abcda")),
        OptionError,
        "target 'a' is the name of the classes 0, 4; give a num",
    ),
    (dict(class_names=range(5)), OptionError, r"class_names must be a list of names, got range\(0, 5\)"),
    (dict(class_names="abcde"), OptionError, "class_names must be a list of names, got 'abcde'"),
    (dict(target=[]), OptionError, "one for each of 0 images, got 0"),
    (dict(image=[torch.zeros(3, 32, 32)] * 2, target=[0]), OptionError, "one for each of 2 images, got 1"),
    (dict(image=[]), OptionError, "an empty list"),
    (dict(target=True), OptionError, "from 0 to 4, got True"),
    (dict(method="gradcam"), UnknownNameError, "unknown explanation method 'gradcam'; available: grad_cam"),
    (dict(method="gradient", layer="stage1"), OptionError, "'gradient' has no option 'layer'"),
    *((dict(method=method, layer="stage3"), UnknownNameError, "unknown layer 'stage3'; ava") for method in LAYERED),
    *(
        (dict(method=method, layer=["stage1"]), OptionError, f"{method}: layer must be the name of")
        for method in LAYERED
    ),
    (dict(grad="none"), OptionError, "grad must be one of exact, training, got 'none'"),
    (dict(image=np.zeros((8, 8), dtype=np.int64)), ShapeError, r"of uint8 or floats in \[0, 1\], got int64 \(8, 8\)"),
    (dict(image=np.zeros((8, 8, 2), dtype=np.uint8)), ShapeError, r"got uint8 \(8, 8, 2\)"),
    (dict(image=np.zeros((0, 0, 3), dtype=np.uint8)), ShapeError, r"got uint8 \(0, 0, 3\)"),
    (dict(image=np.full((8, 8), 255.0)), ShapeError, r"must lie in \[0, 1\], got 255 to 255"),
    (dict(image=np.full((8, 8), np.nan)), ShapeError, r"must lie in \[0, 1\], got nan"),
    (dict(image=torch.zeros(1, 3, 0, 8)), ShapeError, r"\(1, 3, H, W\) .* \(1, 3, 0, 8\)"),
    (dict(image=torch.zeros(2, 4, 8, 8)), ShapeError, r"\(4, 8, 8\)"),
    (dict(image=torch.zeros(3, 8, 8, dtype=torch.int64)), ShapeError, "int64"),
    (dict(image=Image.new("RGB", (0, 4))), OptionError, "0x4 pixels"),
    (dict(image=Image.new("F", (8, 8))), OptionError, "mode 'F'"),
    (dict(image=Image.new("I", (8, 8))), OptionError, "mode 'I'"),
    (dict(image=None), OptionError, "a file, a picture, an array or a tensor, got NoneType"),
    (dict(image="missing.png"), ValueError, "missing.png: No such file"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD_INPUT)
def test_bad_input_is_named(call: dict, error: type[Exception], message: str, small_net, image: Tensor) -> None:
    with pytest.raises(error, match=message):
        explain(small_net(), **(dict(image=image) | call))


@pytest.mark.parametrize("other", [dict(grad="training"), dict(activation="sigmoid"), dict(class_names=list("abcde"))])
def test_a_view_takes_no_options_of_a_model(other: dict, small_net, image: Tensor) -> None:
    with pytest.raises(OptionError, match="a view has its own"):
        explain(ModelView.of(small_net()), image, **other)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (torch.nn.Conv2d(3, 4, 3), "Conv2d has no class scores"),
        (torch.nn.ReLU(), "ReLU has no weights, and so no class scores"),
        (torch.nn.Linear(3, 2), r"Linear does not take an input \(1, 3, 224, 224\): mat1"),
        (torch.nn.Bilinear(3, 3, 2), r"Bilinear does not take an input .*missing 1 required"),
        (timm.create_model("test_resnet", num_classes=0), "no class scores"),
        (timm.create_model("test_resnet", in_chans=4), "1 or 3 input channels can be explained, this takes 4"),
        (timm.create_model("test_vit", in_chans=4), "1 or 3 input channels can be explained, this takes 4"),
    ],
)
def test_models_that_cannot_be_explained(model: torch.nn.Module, message: str, image: Tensor) -> None:
    with pytest.raises(OptionError, match=message):
        explain(model, image)


@pytest.mark.fast_for("test_vit")
@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "test_vit"])
def test_scores_that_are_no_single_linear_layer_of_a_pool(name: str) -> None:
    """Two classifiers, or tokens without a pool: what needs no more than scores works, the rest says why not."""
    view = ModelView.of(timm.create_model(name, num_classes=4))
    x = torch.randn(1, 3, *view.preprocessing.input_size)
    for method in ("gradient", "rise", "maximal_image"):
        map = explain(view, x, method, target=1, **CHEAP.get(method, {}))
        assert np.isfinite(map.map).all() and np.ptp(map.map) > 0
    for method in ("contribution", "eigen", "channel_pairs"):
        with pytest.raises(NotApplicableError):
            explain(view, x, method, target=1)


def test_scores_and_maps_that_are_not_finite(small_net, image: Tensor) -> None:
    net = small_net()
    net.stage1[0].conv.weight.data[:] = torch.nan
    with pytest.raises(NotApplicableError, match="class scores for this picture are not finite"):
        explain(net, image, "gradient", target=1)


@pytest.mark.parametrize("masks", [1, 2])
def test_pixels_that_no_mask_has_shown(masks: int, small_net, image: Tensor) -> None:
    assert np.isfinite(explain(small_net(), image, "rise", target=1, masks=masks).map).all()


def test_long_captions_are_broken() -> None:
    lines = ["contribution, class great white shark, white shark, man-eater, man-eating shark, p = 0.5"] * 2
    short, long = (with_caption(Image.new("RGB", (320, 20)), said) for said in (["p = 0.5"] * 2, lines))
    assert long.width == short.width and long.height > short.height
    margin = np.asarray(long.convert("L"))[20:, -6:]
    assert (margin == 255).all()


def test_pictures_are_turned_as_their_camera_says(tmp_path: Path) -> None:
    picture = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 12))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.png", exif=exif)
    assert read_picture(tmp_path / "turned.png").size == (4, 12)
    assert read_picture(tmp_path / "turned.png", upright=False).size == (12, 4)


def test_token_grid() -> None:
    assert token_grid(196, 224, 224) == (14, 14)
    assert token_grid(24, 64, 96) == (4, 6) and token_grid(6, 96, 64) == (3, 2)
    with pytest.raises(OptionError, match="197 tokens are not a grid"):
        token_grid(197, 224, 224)


# One row for each check of an option.
OUT_OF_RANGE = [
    ("rise", "masks", (0, 1.5, True), "a positive integer"),
    ("rise", "batch_size", (0,), "a positive integer"),
    ("rise", "seed", (-1,), "an integer >= 0"),
    ("maximal_image", "seed", (2**63,), f"at most {2**63 - 1}"),
    ("maximal_image", "jitter", (1.5,), "an integer >= 0"),
    ("inverse_image", "smoothness", (-0.5, np.nan), r"a number in \[0, inf\)"),
    ("inverse_image", "iterations", (0,), "a positive integer"),
    ("extremal_perturbation", "areas", ((), 0.1), r"a list of numbers in \(0, 1\)"),
    ("extremal_perturbation", "areas", ((0.1, 1.0), ("a tenth",)), r"a number in \(0, 1\)"),
    ("integrated_head", "points", (0,), "a positive integer"),
    ("eigen", "bands", (2.5,), "a positive integer"),
    ("channel_pairs", "strongest", (True,), "a positive integer"),
    ("contrastive_excitation_backprop", "versus", (5, -6, "cat"), "a class from 0 to 4"),
    ("contrastive_excitation_backprop", "versus", (1,), "another class than the target"),
]


@pytest.mark.parametrize(("method", "option", "values", "allowed"), OUT_OF_RANGE)
def test_options_out_of_range_are_named(
    method: str, option: str, values: tuple, allowed: str, small_net, image
) -> None:
    for value in values:
        with pytest.raises(OptionError, match=rf"^({method}: )?{option} must be {allowed}, got "):
            explain(small_net(), image, method, target=1, **{option: value})
