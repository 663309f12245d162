"""``tools/explain.py``: what it writes, and how it refuses."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from support.explanations import SECOND_ORDER

from covpool_plugins.command_line import run_tool
from covpool_plugins.errors import OptionError
from covpool_plugins.explain import ModelView, explain, list_explanations
from covpool_plugins.explain.batch import find_pictures, unique_stems

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


@pytest.mark.slow
def test_every_method_for_two_pictures_of_one_name(tool, picture: Path, tmp_path: Path, capsys) -> None:
    twin = tmp_path / "noise.jpg"
    Image.open(picture).rotate(90).save(twin)
    out = tmp_path / "out"
    arguments = ["--model", SMALL, "--num-classes", "7", "--image", str(picture), str(twin), "--out", str(out)]
    budget = ["--masks", "20", "--iterations", "3", "--deletion-steps", "1"]
    tool.main([*arguments, *budget, "--target-class", "6", "--method", "all"])
    methods = [method for method in list_explanations() if method not in SECOND_ORDER]
    expected = {f"noise-{i}_{m}.{suffix}" for i in (1, 2) for m in methods for suffix in ("png", "npz")}
    assert {path.name for path in out.iterdir()} == expected | {"index.html", "metrics.json"}
    printed = capsys.readouterr()
    assert "completeness gap" in printed.out.splitlines()[0]
    assert printed.err.count("n/a: ") == len(SECOND_ORDER)
    rows = json.loads((out / "metrics.json").read_text())
    assert len(rows) == 2 * len(list_explanations())
    assert all(0 <= row["deletion"] <= 1 for row in rows if row["method"] == "gradient")
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
def test_no_picture_overwrites_another(names: list[str]) -> None:
    stems = unique_stems([Path(name) for name in names])
    assert len({stem.casefold() for stem in stems}) == len(names)
    for name, stem in zip(names, stems, strict=True):
        assert stem.startswith(Path(name).stem)


def test_a_grey_model(tool, picture: Path, tmp_path: Path) -> None:
    arguments = ["--model", "resnet18_svdpade", "--model-kwargs", "in_chans=1", "reduce_channels=8"]
    tool.main([*arguments, "--image", str(picture), "--out", str(tmp_path / "o"), "--deletion-steps", "0"])
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


@pytest.mark.slow
def test_second_order_models_and_their_options(tool, picture: Path, tmp_path: Path, capsys) -> None:
    arguments = ["--model", "resnet18_svdpade", "--model-kwargs", "reduce_channels=16", "--image", str(picture)]
    arguments += ["--method", "contribution", "grad_cam", "--layer", "layer3", "--target", "3", "--deletion-steps", "0"]
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
    (tmp_path / "empty").mkdir()
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    torch.save(timm.create_model(SMALL, num_classes=4).state_dict(), tmp_path / "four.pth")
    model, image = ["--model", SMALL], ["--image", str(picture)]
    return {
        "missing picture": ([*model, "--image", str(tmp_path / "no.png")], "no.png: No such file or directory"),
        "one missing of two": ([*model, *image, str(tmp_path / "no.png")], "no.png: No such file or directory"),
        "folder without pictures": ([*model, "--image", str(tmp_path / "empty")], "empty is a folder without pictures"),
        "pattern without pictures": ([*model, "--image", str(tmp_path / "*.gif")], "no file fits"),
        "two models, one checkpoint": (
            [*model, *model, *image, "--checkpoint", "a.pth"],
            "2 models need 2 checkpoints",
        ),
        "no pictures": (model, "--image"),
        "versus too large": ([*model, *image, "--versus", "1000"], "got 1000"),
        "versus itself": ([*model, *image, "--target", "3", "--versus", "3"], "another class"),
        "too few names": ([*model, *image, "--classes", str(tmp_path / "names.txt")], "2 names"),
        "no names": ([*model, *image, "--classes", str(tmp_path / "no.txt")], "no.txt"),
        "option twice": (
            [*model, *image, "--method", "rise", "--masks", "3", "--option", "masks=5"],
            "--option masks and --masks are the same",
        ),
        "option out of range": (
            [*model, *image, "--method", "contribution", "rise", "--masks", "-1"],
            "rise: masks must be a positive integer, got -1",
        ),
        "list out of range": (
            [*model, *image, "--method", "gradient", "extremal_perturbation", "--option", "areas=5"],
            "areas must be a list of numbers in (0, 1), got 5",
        ),
        "no classes": ([*model, *image, "--num-classes", "0"], "--num-classes must be at least 1, got 0"),
        "seed too large": ([*model, *image, "--seed", str(2**70)], "--seed must be an integer from 0 to"),
        "picture as names": ([*model, *image, "--classes", str(picture)], "not a text of names"),
        "folder that is a file": (
            [*model, *image, "--out", str(tmp_path / "names.txt")],
            "names.txt is there and is no folder",
        ),
        "nothing but n/a": (
            [*model, *image, "--method", "democratic_weights"],
            "democratic_weights: not applicable",
        ),
        "useless option": ([*model, *image, "--option", "speed=3"], "--option speed: none of the methods"),
        "negative steps": ([*model, *image, "--deletion-steps", "-1"], "got -1"),
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
        "useless layer": (
            [*model, *image, "--method", "gradient", "--layer", "layer4"],
            "--layer: none of the methods gradient takes it",
        ),
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
        "model and config": ([*model, "--config", "a.py", *image], "cannot be mixed"),
        "neither": (image, "one of the arguments --model --config is required"),
    }


def test_bad_input_is_one_line_and_status_2(tool, picture: Path, tmp_path: Path, monkeypatch, capsys, subtests) -> None:
    for name, (arguments, message) in bad_calls(tmp_path, picture).items():
        with subtests.test(name):
            monkeypatch.setattr(sys, "argv", ["explain.py", "--out", str(tmp_path / "out"), *arguments])
            capsys.readouterr()
            with pytest.raises(SystemExit) as caught:
                run_tool(tool.main)
            said = [line for line in capsys.readouterr().err.splitlines() if "no --checkpoint" not in line]
            assert caught.value.code == 2 and len(said) == 1
            assert message in said[0]
            assert not (tmp_path / "out").exists()


def test_as_a_program(tmp_path: Path) -> None:
    command = [sys.executable, str(TOOL), "--model", SMALL, "--image", "missing.png", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and not (tmp_path / "out").exists()
    assert "missing.png: No such file or directory" in done.stderr and "Traceback" not in done.stderr


def test_find_pictures(picture: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("b.jpg", "a.PNG", "notes.txt"):
        (folder / name).write_bytes(picture.read_bytes())
    inside = [folder / "a.PNG", folder / "b.jpg"]
    assert find_pictures([folder]) == inside
    assert find_pictures([str(folder / "*.jpg"), folder, picture]) == [inside[1], inside[0], picture]
    assert find_pictures([str(tmp_path / "**" / "*.PNG")]) == [inside[0]]
    odd = tmp_path / "a[1].png"
    odd.write_bytes(picture.read_bytes())
    assert find_pictures([odd]) == [odd]


def test_heads_side_by_side(tool, picture: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("brick\ngrass\ngravel\n")
    arguments = [
        "--model",
        "resnet18_svdpade",
        "--model",
        "resnet18_gap",
        "--num-classes",
        "3",
        "--image",
        str(picture),
    ]
    arguments += [
        "--method",
        "contribution",
        "eigen",
        "--classes",
        str(tmp_path / "names.txt"),
        "--deletion-steps",
        "0",
    ]
    for out in ("first", "second"):
        tool.main([*arguments, "--target", "1", "--versus", "2", "--out", str(tmp_path / out)])
    names = {path.name for path in (tmp_path / "first").iterdir()}
    assert names == {
        *(f"noise_resnet18_{head}_contribution.{suffix}" for head in ("svdpade", "gap") for suffix in ("png", "npz")),
        *(f"noise_resnet18_svdpade_eigen.{suffix}" for suffix in ("png", "npz")),
        "noise_resnet18_svdpade_eigen_panel.png",
        "noise_contribution_montage.png",
        "noise_eigen_montage.png",
        "index.html",
        "metrics.json",
    }
    for name in names:  # the same command, the same files
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name


def test_the_layers_are_listed(tool, capsys) -> None:
    tool.main(["--model", "resnet18_svdpade", "--list-layers"])
    assert capsys.readouterr().out.split()[-2:] == ["layer4.1", "layer4"]


@pytest.mark.parametrize("method", ["contribution", "gradient", "linear_approx", "eigen", "integrated_head"])
def test_versus_is_a_difference(method: str, picture: Path) -> None:
    """Of linear methods the maps are subtracted too; of all, the probability stays what it is."""
    view = ModelView.of(timm.create_model("resnet18_svdpade", num_classes=5, reduce_channels=16))
    classes = ((3, None), (1, None), (3, 1))
    first, second, both = (explain(view, picture, method, target, versus=other) for target, other in classes)
    assert both.probability == pytest.approx(first.probability, rel=1e-5)
    assert "versus 1" in both.caption()[0]
    if method != "gradient":  # which is a magnitude
        np.testing.assert_allclose(both.map, first.map - second.map, rtol=1e-3, atol=1e-3 * np.abs(both.map).max())
    again = explain(view, picture, method, 3)
    np.testing.assert_array_equal(again.map, first.map)


@pytest.fixture
def interrupted(monkeypatch) -> None:
    """Ctrl-C during the second explanation."""
    calls = []

    def interrupt(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return explain(*arguments, **options)

    monkeypatch.setattr("covpool_plugins.explain.batch.explain", interrupt)


def test_an_interrupted_run_leaves_whole_files(tool, picture: Path, tmp_path: Path, monkeypatch, interrupted) -> None:
    arguments = ["explain.py", "--model", SMALL, "--image", str(picture), "--method", "contribution", "gradient"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--out", str(tmp_path / "out"), "--deletion-steps", "0"])
    with pytest.raises(SystemExit) as caught:
        run_tool(tool.main)
    assert caught.value.code == 130
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "noise_contribution.npz",
        "noise_contribution.png",
    ]
    np.load(tmp_path / "out" / "noise_contribution.npz")


WITHOUT_TORCHRAY = """
import sys, runpy
sys.modules["torchray"] = None
sys.argv = ["explain.py", *sys.argv[2:]]
runpy.run_path({tool!r}, run_name="__main__")
"""


def test_what_ends_early_has_a_page_of_what_is_done(tool, picture: Path, tmp_path: Path, interrupted) -> None:
    shutil.copy(picture, tmp_path / "second.png")
    arguments = ["--model", SMALL, "--image", str(picture), str(tmp_path / "second.png"), "--deletion-steps", "0"]
    with pytest.raises(KeyboardInterrupt):
        tool.main([*arguments, "--out", str(tmp_path / "out")])
    (row,) = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert row["image"] == picture.name and "data:image/png" in (tmp_path / "out" / "index.html").read_text()


def test_the_top_class_versus_itself_is_left_out(tool, picture: Path, tmp_path: Path, capsys) -> None:
    common = ["--model", SMALL, "--num-classes", "2", "--image", str(picture), "--deletion-steps", "0"]
    for versus in ("0", "1"):
        out = ["--out", str(tmp_path / versus), "--versus", versus, "--method", "contribution"]
        with contextlib.suppress(OptionError):
            tool.main([*common, *out])
    assert sum((tmp_path / versus / "metrics.json").exists() for versus in ("0", "1")) == 1


@pytest.mark.slow
def test_without_torchray(picture: Path, tmp_path: Path) -> None:
    """The closed forms and the gradient go on; the others are n/a, and asked for by name they say what to install."""
    program = tmp_path / "program.py"
    program.write_text(WITHOUT_TORCHRAY.format(tool=str(TOOL)))
    arguments = ["--model", "resnet18_svdpade", "--image", str(picture), "--model-kwargs", "reduce_channels=8"]
    arguments += ["--iterations", "2", "--deletion-steps", "0", "--num-classes", "3"]
    command = [sys.executable, str(program), "--", *arguments, "--out", str(tmp_path / "out")]
    done = subprocess.run([*command, "--method", "all"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "out" / "metrics.json").read_text())
    works = {row["method"] for row in rows if "not_applicable" not in row}
    assert {"contribution", "eigen", "energy", "channel_pairs", "gradient", "integrated_head"} <= works
    assert {row["method"] for row in rows} - works >= {"rise", "grad_cam", "deconvnet", "extremal_perturbation"}
    command.remove("--iterations")
    command.remove("2")
    done = subprocess.run([*command, "--method", "grad_cam"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "covpool_plugins[explain]" in done.stderr


def test_sanity(tool, picture: Path, tmp_path: Path, capsys) -> None:
    arguments = ["--model", "resnet18_svdpade", "--model-kwargs", "reduce_channels=8", "--num-classes", "3", "--sanity"]
    tool.main([*arguments, "--image", str(picture), "--out", str(tmp_path / "out"), "--deletion-steps", "0"])
    (row,) = json.loads((tmp_path / "out" / "sanity.json").read_text())
    assert len(row["correlations"].split()) >= 3
    assert row["verdict"] == "depends on the weights"
    assert "Cascading randomisation" in (tmp_path / "out" / "index.html").read_text()
    assert "Cascading randomisation" in capsys.readouterr().out


def test_pointing(tool, picture: Path, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "annotated"
    (folder / "pictures").mkdir(parents=True)
    (folder / "pictures" / "noise.png").write_bytes(picture.read_bytes())
    boxes = dict(
        images=[dict(id=1, file_name="noise.png")],
        categories=[dict(id=7, name="cat"), dict(id=9, name="dog")],
        annotations=[dict(image_id=1, category_id=9, bbox=[0, 0, 200, 180])],
    )
    (folder / "annotations.json").write_text(json.dumps(boxes))
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    arguments = ["--model", "resnet18_svdpade", "--model-kwargs", "reduce_channels=8", "--num-classes", "2"]
    arguments += ["--classes", str(tmp_path / "names.txt"), "--pointing", str(folder)]
    tool.main([*arguments, "--out", str(tmp_path / "out")])
    (row,) = json.loads((tmp_path / "out" / "pointing.json").read_text())
    assert (row["hits"], row["misses"], row["energy"]) == ("1", "0", "1.000")
    assert "Pointing game" in (tmp_path / "out" / "index.html").read_text()
