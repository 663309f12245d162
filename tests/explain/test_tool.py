"""``tools/explain.py``: what it writes, and how it refuses."""

from __future__ import annotations

import importlib.util
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from covpool_plugins.command_line import run_tool
from covpool_plugins.explain import list_methods

TOOL = Path(__file__).parents[2] / "tools" / "explain.py"
SMALL = "test_resnet"  # the smallest of timm's, with average pooling


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("explain_tool", TOOL)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    path = tmp_path / "in" / "noise.png"
    path.parent.mkdir()
    Image.fromarray(pixels).resize((200, 180)).save(path)
    return path


def test_every_method_for_two_pictures_of_one_name(tool, picture: Path, tmp_path: Path, capsys) -> None:
    twin = tmp_path / "noise.jpg"
    Image.open(picture).rotate(90).save(twin)
    out = tmp_path / "out"
    arguments = ["--model", SMALL, "--num-classes", "7", "--image", str(picture), str(twin), "--out", str(out)]
    tool.main([*arguments, "--target-class", "6", "--method", *list_methods()])
    expected = {f"noise-{i}_{m}.{suffix}" for i in (1, 2) for m in list_methods() for suffix in ("png", "npz")}
    assert {path.name for path in out.iterdir()} == expected
    printed = capsys.readouterr().out
    assert printed.count("wrote ") == len(expected) and "completeness gap" in printed.splitlines()[0]
    for name in expected:
        if name.endswith(".npz"):
            assert int(np.load(out / name)["target"]) == 6
    assert not np.array_equal(*(np.load(out / f"noise-{i}_gradient.npz")["map"] for i in (1, 2)))


@pytest.mark.parametrize(
    "names",
    [
        ["d1/a.png", "d2/a.png", "a-1.png"],
        ["a-1.png", "d1/a.png", "d2/a.png", "d3/a-3.png"],
        ["a.png", "a-1.png", "a.png", "a-1.png", "a-3.png"],
        ["a.png", "A.png", "a-2.png"],
    ],
    ids=" ".join,
)
def test_no_picture_overwrites_another(tool, names: list[str]) -> None:
    stems = tool._stems([Path(name) for name in names])
    assert len({stem.casefold() for stem in stems}) == len(names)
    for name, stem in zip(names, stems, strict=True):
        assert stem.startswith(Path(name).stem)


def test_a_grey_model(tool, picture: Path, tmp_path: Path) -> None:
    arguments = ["--model", "resnet18_svdpade", "--model-kwargs", "in_chans=1", "reduce_channels=8"]
    tool.main([*arguments, "--image", str(picture), "--out", str(tmp_path / "o")])
    assert np.load(tmp_path / "o" / "noise_contribution.npz")["map"].shape == (7, 7)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_checkpoints_are_loaded(tool, suffix: str, picture: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = timm.create_model(SMALL, num_classes=4)
    with torch.no_grad():
        model.get_classifier().bias[2] += 30
    path = tmp_path / f"weights{suffix}"
    save_file(model.state_dict(), path) if suffix == ".safetensors" else torch.save(model.state_dict(), path)
    arguments = ["--model", SMALL, "--num-classes", "4", "--image", str(picture), "--out", str(tmp_path)]
    tool.main([*arguments, "--checkpoint", str(path)])
    found = np.load(tmp_path / "noise_contribution.npz")
    assert int(found["target"]) == 2 and float(found["probability"]) > 0.99
    assert np.isclose(found["contributions"].sum(), found["completeness_target"], rtol=1e-4, atol=0)


def test_second_order_models_and_their_options(tool, picture: Path, tmp_path: Path, capsys) -> None:
    arguments = ["--model", "resnet18_svdpade", "--model-kwargs", "reduce_channels=16", "--image", str(picture)]
    arguments += ["--method", "contribution", "grad_cam", "--layer", "layer3", "--target", "3"]
    tool.main([*arguments, "--out", str(tmp_path / "o")])
    assert np.load(tmp_path / "o" / "noise_contribution.npz")["map"].shape == (7, 7)
    assert np.load(tmp_path / "o" / "noise_grad_cam.npz")["map"].shape == (14, 14)
    assert "layer3" in capsys.readouterr().out


class Stranger:
    """Something that a checkpoint of weights does not hold."""


def bad_calls(tmp_path: Path, picture: Path) -> dict[str, tuple[list[str], str]]:
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "cut.png").write_bytes(picture.read_bytes()[:3000])
    (tmp_path / "stranger.pth").write_bytes(pickle.dumps({"fc.weight": Stranger()}, protocol=2))
    (tmp_path / "text.safetensors").write_text("nothing")
    (tmp_path / "empty.py").write_text("x = 1")
    (tmp_path / "broken.py").write_text("model = dict(type='NoSuchClassifier')")
    torch.save(timm.create_model(SMALL, num_classes=4).state_dict(), tmp_path / "four.pth")
    model, image = ["--model", SMALL], ["--image", str(picture)]
    return {
        "missing picture": ([*model, "--image", str(tmp_path / "no.png")], "no.png: No such file or directory"),
        "one missing of two": ([*model, *image, str(tmp_path / "no.png")], "no.png: No such file or directory"),
        "folder as picture": ([*model, "--image", str(tmp_path)], "Is a directory"),
        "text as picture": ([*model, "--image", str(tmp_path / "text.png")], "text.png: not a picture"),
        "cut picture": ([*model, "--image", str(tmp_path / "cut.png")], "cut.png: "),
        "target too large": ([*model, *image, "--target", "1000"], "from 0 to 999, got 1000"),
        "target below zero": ([*model, *image, "--target", "-1"], "got -1"),
        "unknown method": (
            [*model, *image, "--method", "contribution", "gradcam"],
            "unknown explanation method 'gradcam'",
        ),
        "unknown model": (["--model", "resnet18_svdpad", *image], "'resnet18_svdpad'; available: resnet18_svdpade"),
        "unknown layer": ([*model, *image, "--method", "grad_cam", "--layer", "layer9"], "unknown layer 'layer9'"),
        "useless layer": ([*model, *image, "--method", "gradient", "--layer", "layer4"], "takes a layer"),
        "unknown device": ([*model, *image, "--device", "abacus"], "abacus"),
        "unknown option": (["--model", "resnet18_svdpade", "--model-kwargs", "steps=3", *image], "steps"),
        "missing checkpoint": ([*model, *image, "--checkpoint", str(tmp_path / "no.pth")], "no.pth: No such file"),
        "more than weights": ([*model, *image, "--checkpoint", str(tmp_path / "stranger.pth")], "stranger.pth"),
        "no safetensors": ([*model, *image, "--checkpoint", str(tmp_path / "text.safetensors")], "text.safetensors"),
        "other classes": (
            [*model, *image, "--checkpoint", str(tmp_path / "four.pth")],
            "(4, 96) instead of (1000, 96)",
        ),
        "missing config": (["--config", str(tmp_path / "no.py"), *image], "no.py: No such file"),
        "broken config": (["--config", str(tmp_path / "broken.py"), *image], "NoSuchClassifier"),
        "config without a model": (
            ["--config", str(tmp_path / "empty.py"), *image],
            "empty.py: the config has no model",
        ),
        "key without a value": (
            [*model, *image, "--model-kwargs", "reduce_channels"],
            "expected KEY=VALUE, got 'reduce_channels'",
        ),
        "value without a key": ([*model, *image, "--model-kwargs", "=3"], "expected KEY=VALUE, got '=3'"),
        "option as key": ([*model, *image, "--model-kwargs", "num_classes=3"], "num_classes has an option of its own"),
        "four channels": ([*model, *image, "--model-kwargs", "in_chans=4"], "1 or 3 input channels"),
        "model and config": ([*model, "--config", "a.py", *image], "not allowed with"),
        "neither": (image, "one of the arguments --model --config is required"),
    }


def test_bad_input_is_one_line_and_status_2(tool, picture: Path, tmp_path: Path, monkeypatch, capsys, subtests) -> None:
    for name, (arguments, message) in bad_calls(tmp_path, picture).items():
        with subtests.test(name):
            monkeypatch.setattr(sys, "argv", ["explain.py", *arguments, "--out", str(tmp_path / "out")])
            capsys.readouterr()
            with pytest.raises(SystemExit) as caught:
                run_tool(tool.main)
            said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("no --checkpoint")]
            assert caught.value.code == 2 and len(said) == 1
            assert message in said[0]
            assert not (tmp_path / "out").exists()


def test_as_a_program(tmp_path: Path) -> None:
    command = [sys.executable, str(TOOL), "--model", SMALL, "--image", "missing.png", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and not (tmp_path / "out").exists()
    assert "missing.png: No such file or directory" in done.stderr and "Traceback" not in done.stderr
