"""Style transfer: the statistics are the style's, the decoder learns, the tool writes what it says."""

import runpy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from studies.style_transfer import Settings, Stylist, _features, open_picture, statistics_errors

from covpool_plugins.command_line import run_tool
from covpool_plugins.errors import OptionError, UnknownNameError

TOOL = Path(__file__).parents[2] / "tools" / "stylize.py"
SMALL = Settings(model="test_resnet", stages=(0,), steps=3, size=48, patch=32, batch=2)


@pytest.fixture(scope="module")
def stylist():
    return Stylist(open_picture("astronaut", 48), open_picture("chelsea", 48), SMALL)


def test_the_statistics_are_those_of_the_style(stylist):
    for method, bound in [("exact", 1e-6), ("newton_schulz", 1e-4), ("mpa", 0.2)]:
        transfer = stylist.transfer(method)
        assert transfer.mean_error < 1e-6 and transfer.covariance_error < bound
        assert transfer.picture.size[0] >= 48
    X = torch.randn(1, 4, 30, 30, dtype=torch.float64)
    assert statistics_errors(X, X) == (0, 0)
    assert statistics_errors(2 * X, X) == pytest.approx((1, 3))


def test_the_decoder_learns(stylist):
    trained = Stylist(stylist.content, stylist.style, replace(SMALL, steps=60))
    assert trained.reconstruction[0] > stylist.reconstruction[0] + 3


def test_alpha_0_gives_the_decoded_content_the_same_for_the_same_seed(stylist):
    settings = replace(SMALL, alpha=0.0)
    first, second = (Stylist(stylist.content, stylist.style, settings).transfer().picture for _ in range(2))
    assert np.array_equal(np.asarray(first), np.asarray(second))
    with torch.no_grad():
        decoded = stylist.decoders[0](_features(stylist.encoders[0], stylist.content)).clamp(0, 1)[0]
    assert np.abs(np.asarray(first) / 255 - decoded.permute(1, 2, 0).numpy()).max() < 2 / 255


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(steps=0), "steps"),
        (dict(size=0), "size"),
        (dict(alpha=1.5), "alpha"),
        (dict(stages=()), "at least one"),
        (dict(stages=(-1,)), "stages"),
        (dict(seed=-1), "seed"),
    ],
)
def test_settings_out_of_range(arguments, message):
    with pytest.raises(OptionError, match=message):
        Settings(**arguments)


def test_pictures_and_models_that_are_not_there(tmp_path):
    with pytest.raises(UnknownNameError, match="astronaut"):
        open_picture("astronout", 32)
    (tmp_path / "text.png").write_text("text")
    with pytest.raises(ValueError, match=r"text\.png"):
        open_picture(tmp_path / "text.png", 32)
    picture = open_picture("astronaut", 32)
    with pytest.raises(UnknownNameError, match="timm model"):
        Stylist(picture, picture, Settings(model="resnet0", steps=1))


@pytest.fixture
def stylize(tmp_path, monkeypatch, capsys):
    """A function from options of the tool to its exit status, and what it wrote to both streams."""

    def run(*options):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["stylize.py", "--steps", "2", *options])
        with pytest.raises(SystemExit) as ended:
            run_tool(runpy.run_path(str(TOOL), run_name="imported")["main"])
        return ended.value.code, *capsys.readouterr()

    return run


def test_the_tool(tmp_path, stylize):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "mine.png")
    arguments = ("--content", "mine.png", "--model", "test_resnet", "--stage", "0", "--size", "40", "--out", "out")
    status, printed, _ = stylize(*arguments)
    assert status == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["exact.png", "mpa.png", "newton_schulz.png"]
    assert "| method | error of the mean |" in printed and "| mpa | " in printed and "dB" in printed


@pytest.mark.parametrize(
    "options, message",
    [
        (["--model", "vit_tiny_patch16_224"], "stage 0 of 'vit_tiny_patch16_224' at 48 pixels: Input height"),
        (["--stage", "9"], "stage must be one of 'resnet18', which has fewer, got 9"),
        (["--out", "file/there"], "file is there and is no folder"),
    ],
)
def test_bad_options_are_one_line(options, message, tmp_path, stylize):
    (tmp_path / "file").touch()
    status, _, errors = stylize("--size", "48", *options)
    lines = [line for line in errors.splitlines() if "it/s" not in line and "training" not in line]
    assert status == 2 and len(lines) == 1 and message in lines[0]
