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
from support.explanations import NARROW, SECOND_ORDER

from covpool_plugins.command_line import run_tool
from covpool_plugins.errors import OptionError
from covpool_plugins.explain import explain, list_explanations
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


@pytest.mark.parametrize("names", ["d1/a d2/a a-1", "a-1 d1/a d2/a d3/a-3", "a a-1 a a-1 a-3", "a A a-2", "a b"])
def test_no_picture_overwrites_another(names: str) -> None:
    stems = unique_stems([Path(f"{name}.png") for name in names.split()])
    assert len({stem.casefold() for stem in stems}) == len(stems)
    assert all(stem.startswith(name.partition("/")[2] or name) for name, stem in zip(names.split(), stems, strict=True))


def test_a_grey_model(tool, picture: Path, tmp_path: Path) -> None:
    tool.main(
        [
            "--model",
            "resnet18_svdpade",
            *NARROW,
            "in_chans=1",
            "--deletion-steps",
            "0",
            "--image",
            str(picture),
            "--out",
            str(tmp_path / "o"),
        ]
    )
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
    tool.main([*arguments, "--checkpoint", str(path), "--deletion-steps", "0"])
    saved = np.load(tmp_path / "noise_contribution.npz")
    assert int(saved["target"]) == 2 and float(saved["probability"]) > 0.99
    assert np.isclose(saved["contributions"].sum(), saved["completeness_target"], rtol=1e-4, atol=0)


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


def bad_calls(tmp_path: Path, picture: Path) -> list[tuple[str, str]]:
    """Arguments and the message; MODEL, IMAGE and HERE stand for a good model, a good picture and the folder."""
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "cut.png").write_bytes(picture.read_bytes()[:3000])
    (tmp_path / "stranger.pth").write_bytes(pickle.dumps({"fc.weight": Stranger()}, protocol=2))
    (tmp_path / "text.safetensors").write_text("nothing")
    (tmp_path / "empty.py").write_text("x = 1")
    (tmp_path / "broken.py").write_text("model = dict(type='NoSuchClassifier')")
    (tmp_path / "empty").mkdir()
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    torch.save(timm.create_model(SMALL, num_classes=4).state_dict(), tmp_path / "four.pth")
    return [
        ("MODEL --image HERE/no.png", "no.png: No such file or directory"),
        ("MODEL IMAGE HERE/no.png", "no.png: No such file or directory"),
        ("MODEL --image HERE/empty", "empty is a folder without pictures"),
        ("MODEL --image HERE/*.gif", "no file fits"),
        ("MODEL --image HERE/text.png", "text.png: not a picture"),
        ("MODEL --image HERE/cut.png", "cut.png: "),
        ("MODEL", "--image"),
        ("IMAGE", "one of the arguments --model --config is required"),
        ("MODEL MODEL IMAGE --checkpoint a.pth", "2 models need 2 checkpoints"),
        ("MODEL --config a.py IMAGE", "cannot be mixed"),
        ("MODEL IMAGE --versus 1000", "got 1000"),
        ("MODEL IMAGE --target 3 --versus 3", "another class"),
        ("MODEL IMAGE --target 1000", "from 0 to 999, got 1000"),
        ("MODEL IMAGE --target -1", "got -1"),
        ("MODEL IMAGE --classes HERE/names.txt", "2 names"),
        ("MODEL IMAGE --classes HERE/no.txt", "no.txt"),
        ("MODEL IMAGE --classes HERE/in/noise.png", "not a text of names"),
        ("MODEL IMAGE --method rise --masks 3 --option masks=5", "--option masks and --masks are the same"),
        ("MODEL IMAGE --method contribution rise --masks -1", "rise: masks must be a positive integer, got -1"),
        (
            "MODEL IMAGE --method gradient extremal_perturbation --option areas=5",
            "areas must be a list of numbers in (0, 1), got 5",
        ),
        ("MODEL IMAGE --option speed=3", "--option speed: none of the methods"),
        ("MODEL IMAGE --method gradient --layer layer4", "--layer: none of the methods gradient takes it"),
        ("MODEL IMAGE --method grad_cam --layer layer9", "unknown layer 'layer9'"),
        ("MODEL IMAGE --method contribution gradcam", "unknown explanation method 'gradcam'"),
        ("MODEL IMAGE --method democratic_weights", "democratic_weights: not applicable"),
        ("MODEL IMAGE --num-classes 0", "--num-classes: must be an integer >= 1, got '0'"),
        ("MODEL IMAGE --seed 1180591620717411303424", "--seed must be an integer from 0 to"),
        ("MODEL IMAGE --deletion-steps -1", "got -1"),
        ("MODEL IMAGE --out HERE/names.txt", "names.txt is there and is no folder"),
        ("MODEL IMAGE --device abacus", "abacus"),
        ("--model resnet18_svdpad IMAGE", "'resnet18_svdpad'; available: resnet18_svdpade"),
        ("--model resnet18_svdpade --model-kwargs steps=3 IMAGE", "steps"),
        ("MODEL IMAGE --model-kwargs in_chans=4", "1 or 3 input channels"),
        ("MODEL IMAGE --model-kwargs reduce_channels", "expected KEY=VALUE, got 'reduce_channels'"),
        ("MODEL IMAGE --model-kwargs =3", "expected KEY=VALUE, got '=3'"),
        ("MODEL IMAGE --model-kwargs num_classes=3", "num_classes has an option of its own"),
        ("MODEL IMAGE --checkpoint HERE/no.pth", "no.pth: No such file"),
        ("MODEL IMAGE --checkpoint HERE/stranger.pth", "stranger.pth"),
        ("MODEL IMAGE --checkpoint HERE/text.safetensors", "text.safetensors"),
        ("MODEL IMAGE --checkpoint HERE/four.pth", "(4, 96) instead of (1000, 96)"),
        ("--config HERE/no.py IMAGE", "no.py: No such file"),
        ("--config HERE/broken.py IMAGE", "NoSuchClassifier"),
        ("--config HERE/empty.py IMAGE", "empty.py: the config has no model"),
    ]


def test_bad_input_is_one_line_and_status_2(tool, picture: Path, tmp_path: Path, monkeypatch, capsys, subtests) -> None:
    words = {"MODEL": f"--model {SMALL}", "IMAGE": "--image HERE/in/noise.png", "HERE": str(tmp_path)}
    for call, message in bad_calls(tmp_path, picture):
        with subtests.test(call):
            for word, meaning in words.items():
                call = call.replace(word, meaning)
            monkeypatch.setattr(sys, "argv", ["explain.py", "--out", str(tmp_path / "out"), *call.split()])
            capsys.readouterr()
            with pytest.raises(SystemExit) as caught:
                run_tool(tool.main)
            errors = [line for line in capsys.readouterr().err.splitlines() if "no --checkpoint" not in line]
            assert caught.value.code == 2 and len(errors) == 1
            assert message in errors[0]
            assert not (tmp_path / "out").exists()


@pytest.mark.slow
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
    arguments = ["--model", "resnet18_svdpade", "--model", "resnet18_gap", *NARROW[:2], "--num-classes", "3"]
    arguments += ["--image", str(picture), "--classes", str(tmp_path / "names.txt"), "--deletion-steps", "0"]
    arguments += ["--target", "1", "--versus", "2"]
    tool.main([*arguments, "--method", "contribution", "eigen", "--out", str(tmp_path / "first")])
    tool.main([*arguments, "--method", "contribution", "--out", str(tmp_path / "second")])
    models = [
        f"noise_resnet18_{head}_contribution.{suffix}" for head in ("svdpade", "gap") for suffix in ("png", "npz")
    ]
    eigen = [f"noise_resnet18_svdpade_eigen{end}" for end in (".png", ".npz", "_panel.png")]
    montages = ["noise_contribution_montage.png", "noise_eigen_montage.png"]
    files = {path.name for path in (tmp_path / "first").iterdir()}
    assert files == {*models, *eigen, *montages, "index.html", "metrics.json"}
    for name in (*models, montages[0]):  # the same command, the same files
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name


def test_the_layers_are_listed(tool, capsys) -> None:
    tool.main(["--model", "resnet18_svdpade", *NARROW, "--list-layers"])
    assert capsys.readouterr().out.split()[-2:] == ["layer4.1", "layer4"]


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
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == ["noise_contribution.npz", "noise_contribution.png"]
    np.load(tmp_path / "out" / "noise_contribution.npz")


def test_what_ends_early_has_a_page_of_what_is_done(tool, picture: Path, tmp_path: Path, interrupted) -> None:
    shutil.copy(picture, tmp_path / "second.png")
    arguments = ["--model", SMALL, "--image", str(picture), str(tmp_path / "second.png"), "--deletion-steps", "0"]
    with pytest.raises(KeyboardInterrupt):
        tool.main([*arguments, "--out", str(tmp_path / "out")])
    (row,) = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert row["image"] == picture.name and "data:image/png" in (tmp_path / "out" / "index.html").read_text()


WITHOUT_TORCHRAY = """
import sys, runpy
sys.modules["torchray"] = None
sys.argv = ["explain.py", *sys.argv[2:]]
runpy.run_path({tool!r}, run_name="__main__")
"""


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
    arguments = ["--model", "resnet18_svdpade", *NARROW, "--num-classes", "3", "--sanity"]
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
    arguments = ["--model", "resnet18_svdpade", *NARROW, "--num-classes", "2"]
    arguments += ["--classes", str(tmp_path / "names.txt"), "--pointing", str(folder)]
    tool.main([*arguments, "--out", str(tmp_path / "out")])
    (row,) = json.loads((tmp_path / "out" / "pointing.json").read_text())
    assert (row["hits"], row["misses"], row["energy"]) == ("1", "0", "1.000")
    assert "Pointing game" in (tmp_path / "out" / "index.html").read_text()
