"""``tools/explain.py``: what it writes, and how it refuses; its page in a real browser, on a desk and on a phone."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from skimage import data
from support.explanations import NARROW, SECOND_ORDER

from covpool_plugins.command_line import run_tool
from covpool_plugins.errors import OptionError
from covpool_plugins.explain import list_explanations
from covpool_plugins.explain.__main__ import parse
from covpool_plugins.explain.methods import explain_input
from covpool_plugins.explain.report import distinct, find_pictures

TOOL = Path(__file__).parents[2] / "tools" / "explain.py"
BROWSER = Path(__file__).parents[1] / "support" / "browser.py"
SMALL = ["--model", "test_resnet"]  # the smallest of timm's, with average pooling
NARROW_SVDPADE = ["--model", "resnet18_svdpade", *NARROW]


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


@pytest.fixture
def run(tool, picture: Path, tmp_path: Path) -> Callable[..., Path]:
    """Explain the picture, without deletion curves, in a folder."""

    def call(*arguments: str, images: tuple[Path, ...] = (picture,), out: str = "out") -> Path:
        listed = ["--image", *map(str, images)] if images else []
        tool.main([*arguments, *listed, "--out", str(tmp_path / out), "--deletion-steps", "0"])
        return tmp_path / out

    return call


@pytest.mark.slow
def test_every_method_for_two_pictures_of_one_name(tool, picture: Path, tmp_path: Path, capsys) -> None:
    twin = tmp_path / "noise.jpg"
    Image.open(picture).rotate(90).save(twin)
    out = tmp_path / "out"
    arguments = [*SMALL, "--num-classes", "7", "--image", str(picture), str(twin), "--out", str(out)]
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
    assert all(int(np.load(path)["target"]) == 6 for path in out.glob("*.npz"))
    assert not np.array_equal(*(np.load(out / f"noise-{i}_gradient.npz")["map"] for i in (1, 2)))


@pytest.mark.parametrize("names", ["d1/a d2/a a-1", "a-1 d1/a d2/a d3/a-3", "a a-1 a a-1 a-3", "a A a-2", "a b"])
def test_no_picture_overwrites_another(names: str) -> None:
    stems = distinct([Path(name).name for name in names.split()])
    assert len({stem.casefold() for stem in stems}) == len(stems)
    assert all(stem.startswith(name.partition("/")[2] or name) for name, stem in zip(names.split(), stems, strict=True))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_checkpoints_are_loaded(suffix: str, run, tmp_path: Path) -> None:
    model = timm.create_model(SMALL[1], num_classes=4)
    with torch.no_grad():
        model.get_classifier().bias[2] += 30
    path = tmp_path / f"weights{suffix}"
    save_file(model.state_dict(), path) if suffix == ".safetensors" else torch.save(model.state_dict(), path)
    saved = np.load(run(*SMALL, "--num-classes", "4", "--checkpoint", str(path)) / "noise_contribution.npz")
    assert int(saved["target"]) == 2 and float(saved["probability"]) > 0.99
    assert np.isclose(saved["contributions"].sum(), saved["completeness_target"], rtol=1e-4, atol=0)


def test_models_and_their_options(run, tool, capsys) -> None:
    """A model of one channel, one layer for two methods, and a list of the layers."""
    out = run(*NARROW_SVDPADE, "in_chans=1", "--method", "contribution", "grad_cam", "--layer", "layer3")
    assert np.load(out / "noise_contribution.npz")["map"].shape == (7, 7)
    assert np.load(out / "noise_grad_cam.npz")["map"].shape == (14, 14)
    assert "layer3" in capsys.readouterr().out
    tool.main([*NARROW_SVDPADE, "--list-layers"])
    assert capsys.readouterr().out.split()[-2:] == ["layer4.1", "layer4"]


@pytest.mark.parametrize("content", ["cat\ndog\n", "\ufeffcat\r\ndog\r\n"])
def test_names_of_classes_are_text_of_any_editor(content: str, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes(content.encode())
    arguments = parse([*SMALL, "--list-layers", "--classes", str(tmp_path / "names.txt")])
    assert arguments.classes == ["cat", "dog"]


class Stranger:
    """Something that a checkpoint of weights does not hold."""


def bad_calls(tmp_path: Path, picture: Path) -> list[tuple[str, str]]:
    """Arguments and the message; MODEL, IMAGE and HERE stand for a good model, a good picture and the folder."""
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "stranger.pth").write_bytes(pickle.dumps({"fc.weight": Stranger()}, protocol=2))
    (tmp_path / "text.safetensors").write_text("nothing")
    (tmp_path / "empty.py").write_text("x = 1")
    (tmp_path / "broken.py").write_text("model = dict(type='NoSuchClassifier')")
    (tmp_path / "empty").mkdir()
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    torch.save(timm.create_model(SMALL[1], num_classes=4).state_dict(), tmp_path / "four.pth")
    return [
        ("MODEL IMAGE HERE/no.png", "no.png: No such file or directory"),
        ("MODEL --image HERE/empty", "empty is a folder without pictures"),
        ("MODEL --image HERE/*.gif", "no file fits"),
        ("MODEL --image HERE/text.png", "text.png: not a picture"),
        ("MODEL", "--image"),
        ("IMAGE", "one of the arguments --model --config is required"),
        ("MODEL MODEL IMAGE --checkpoint a.pth", "2 models need 2 checkpoints"),
        ("MODEL --config a.py IMAGE", "cannot be mixed"),
        ("MODEL IMAGE --versus 1000", "got 1000"),
        ("MODEL IMAGE --target 3 --versus 3", "another class"),
        ("MODEL IMAGE --target 1000", "from 0 to 999, got 1000"),
        ("MODEL IMAGE --classes HERE/names.txt", "class_names has 2 names"),
        ("MODEL IMAGE --classes HERE/no.txt", "no.txt"),
        ("MODEL IMAGE --classes HERE/in/noise.png", "not a text of names"),
        ("MODEL IMAGE --method rise --masks 3 --option masks=5", "--option masks and --masks are the same"),
        ("MODEL IMAGE --method contribution rise --masks -1", "rise: masks must be a positive integer, got -1"),
        ("MODEL IMAGE --option speed=3", "--option speed: none of the methods"),
        (
            "MODEL IMAGE --method gradient --layer layer4",
            "none of the methods gradient takes it; they take: no options",
        ),
        ("MODEL IMAGE --method rise --option versus=1", "--option versus: none of the methods rise takes it"),
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
    words = {"MODEL": " ".join(SMALL), "IMAGE": "--image HERE/in/noise.png", "HERE": str(tmp_path)}
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


def test_find_pictures(picture: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    odd = tmp_path / "a[1].png"
    for path in (odd, *(folder / name for name in ("b.jpg", "a.PNG", "notes.txt", "c.pdf"))):
        path.write_bytes(picture.read_bytes())
    inside = [folder / "a.PNG", folder / "b.jpg"]
    assert find_pictures([folder]) == inside
    assert find_pictures([str(folder / "*.jpg"), folder, picture]) == [inside[1], inside[0], picture]
    assert find_pictures([str(tmp_path / "**" / "*.PNG")]) == [inside[0]]
    assert find_pictures([odd]) == [odd]


def test_heads_side_by_side(run, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("brick\ngrass\ngravel\n")
    arguments = ["--model", "resnet18_svdpade", "--model", "resnet18_gap", *NARROW[:2], "--num-classes", "3"]
    arguments += ["--classes", str(tmp_path / "names.txt"), "--target", "1", "--versus", "2"]
    first = run(*arguments, "--method", "contribution", "eigen", out="first")
    second = run(*arguments, "--method", "contribution", out="second")
    models = [
        f"noise_resnet18_{head}_contribution.{suffix}" for head in ("svdpade", "gap") for suffix in ("png", "npz")
    ]
    eigen = [f"noise_resnet18_svdpade_eigen{end}" for end in (".png", ".npz", "_panel.png")]
    montages = ["noise_contribution_montage.png", "noise_eigen_montage.png"]
    assert {path.name for path in first.iterdir()} == {*models, *eigen, *montages, "index.html", "metrics.json"}
    for name in (*models, montages[0]):  # the same command, the same files
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


@pytest.fixture
def interrupted(monkeypatch) -> None:
    """Ctrl-C during the second explanation."""
    calls = []

    def interrupt(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return explain_input(*arguments, **options)

    monkeypatch.setattr("covpool_plugins.explain.report.explain_input", interrupt)


def test_an_interrupted_run_leaves_whole_files(run, tmp_path: Path, interrupted) -> None:
    with pytest.raises(SystemExit) as caught:
        run_tool(lambda: run(*SMALL, "--method", "contribution", "gradient"))
    assert caught.value.code == 130
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == ["noise_contribution.npz", "noise_contribution.png"]
    np.load(tmp_path / "out" / "noise_contribution.npz")


def test_what_ends_early_has_a_page_of_what_is_done(run, picture: Path, tmp_path: Path, interrupted) -> None:
    shutil.copy(picture, tmp_path / "second.png")
    with pytest.raises(KeyboardInterrupt):
        run(*SMALL, images=(picture, tmp_path / "second.png"))
    (row,) = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert row["image"] == picture.name and "data:image/webp" in (tmp_path / "out" / "index.html").read_text()


def test_an_interrupted_sanity_check_leaves_the_page(run, tmp_path: Path, monkeypatch) -> None:
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("covpool_plugins.explain.__main__.sanity_table", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(*SMALL, "--sanity")
    assert {"index.html", "metrics.json"} < {path.name for path in (tmp_path / "out").iterdir()}


def test_the_top_class_versus_itself_is_left_out(run, tmp_path: Path) -> None:
    for versus in ("0", "1"):
        with contextlib.suppress(OptionError):
            run(*SMALL, "--num-classes", "2", "--versus", versus, "--method", "contribution", out=versus)
    assert sum((tmp_path / versus / "metrics.json").exists() for versus in ("0", "1")) == 1


WITHOUT_TORCHRAY = """
import sys, runpy
sys.modules["torchray"] = None
sys.argv = ["explain.py", *sys.argv[2:]]
runpy.run_path({tool!r}, run_name="__main__")
"""


@pytest.mark.slow
def test_without_torchray(picture: Path, tmp_path: Path) -> None:
    """The closed forms and the gradient go on; the others are n/a, and asked for by name they say what to install."""
    program = tmp_path / "program.py"
    program.write_text(WITHOUT_TORCHRAY.format(tool=str(TOOL)))
    arguments = ["--model", "resnet18_svdpade", "--image", str(picture), "--model-kwargs", "reduce_channels=8"]
    arguments += ["--deletion-steps", "0", "--num-classes", "3", "--out", str(tmp_path / "out")]
    command = [sys.executable, str(program), "--", *arguments, "--method"]
    done = subprocess.run([*command, "all", "--iterations", "2"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "out" / "metrics.json").read_text())
    works = {row["method"] for row in rows if "not_applicable" not in row}
    assert {"contribution", "eigen", "energy", "channel_pairs", "gradient", "integrated_head"} <= works
    assert {row["method"] for row in rows} - works == {"extremal_perturbation", "democratic_weights"}
    done = subprocess.run([*command, "extremal_perturbation"], capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "covpool_plugins[explain]" in done.stderr


def test_sanity(run, capsys) -> None:
    out = run(*NARROW_SVDPADE, "--num-classes", "3", "--sanity")
    (row,) = json.loads((out / "sanity.json").read_text())
    assert len(row["correlations"].split()) >= 3 and row["verdict"] == "depends on the weights"
    assert "Cascading randomisation" in (out / "index.html").read_text()
    assert "Cascading randomisation" in capsys.readouterr().out


def test_pointing(run, picture: Path, tmp_path: Path) -> None:
    (tmp_path / "masks" / "dog").mkdir(parents=True)
    Image.new("L", (200, 180), 1).save(tmp_path / "masks" / "dog" / "noise.png")
    picture.parent.rename(tmp_path / "pictures")
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    classes = ["--num-classes", "2", "--classes", str(tmp_path / "names.txt")]
    out = run(*NARROW_SVDPADE, *classes, "--pointing", str(tmp_path), images=())
    (row,) = json.loads((out / "pointing.json").read_text())
    assert (row["hits"], row["misses"], row["energy"]) == ("1", "0", "1.000")
    assert "Pointing game" in (out / "index.html").read_text()


@pytest.fixture(scope="module")
def page(tool, tmp_path_factory) -> Path:
    """Two heads by two methods, of which one is not applicable."""
    folder = tmp_path_factory.mktemp("page")
    Image.fromarray(data.astronaut()).save(folder / "astro #1%.png")
    models = ["--model", "resnet18_svdpade", "--model", "resnet18_gap", *NARROW[:2], "--num-classes", "4"]
    arguments = ["--method", "contribution", "eigen", "--target", "1", "--deletion-steps", "0"]
    tool.main([*models, *arguments, "--image", str(folder / "astro #1%.png"), "--out", str(folder)])
    return folder / "index.html"


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_page(page: Path, width: int, tmp_path: Path) -> None:
    pytest.importorskip("PySide6.QtWebEngineCore", reason="needs the extra 'browser'")
    command = [sys.executable, str(BROWSER), str(page), str(width), str(tmp_path / "page.png")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    seen = json.loads(done.stdout)
    assert seen["console"] == [] and seen["requests"] == []
    assert len(seen["pictures"]) == 5  # the picture, two maps, a montage, a panel; the map of eigen is in the panel
    assert all(natural > 0 for natural, _ in seen["pictures"])
    assert all(0 < shown <= width for _, shown in seen["pictures"][:3])  # a phone scrolls over what is wide
    assert seen["page"] <= seen["window"] and seen["words"] > 200


def test_page_needs_no_network_and_links_to_full_sizes(page: Path) -> None:
    text = page.read_text()
    assert "://" not in text and text.count("data:image/webp") == 5 and len(text) < 300_000
    assert "n/a" in text and 'name="viewport"' in text and 'alt="astro #1%.png: contribution, class 1' in text
    links = re.findall(r'<a href="([^"]+)">', text)
    assert len(links) == 4 and all((page.parent / unquote(link)).is_file() for link in links)


def test_odd_values_are_one_line(tool, picture: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    base = [*SMALL, "--image", str(picture), "--out", str(tmp_path / "out")]
    deep = "[" * 3000 + "]" * 3000
    for odd in (["--option", f"masks={deep}", "--method", "rise"], ["--target", "9" * 5000], ["--method", "x" * 9000]):
        monkeypatch.setattr(sys, "argv", ["explain.py", *base, *odd])
        with pytest.raises(SystemExit) as caught:
            run_tool(tool.main)
        errors = capsys.readouterr().err.splitlines()
        assert caught.value.code == 2 and len(errors[-1]) < 1200


def test_names_that_no_file_can_have_are_refused_before_anything_is_computed(run, tmp_path: Path, picture) -> None:
    long = picture.with_name("n" * 240 + ".png")
    picture.rename(long)
    with pytest.raises(OptionError, match="is too long for its files"):
        run(*SMALL, images=(long,))
    odd = Path(str(tmp_path) + "/in/\udcff.png")
    long.rename(odd)
    with pytest.raises(OptionError, match="is not UTF-8"):
        run(*SMALL, images=(odd,))
    assert not (tmp_path / "out").exists()


def test_pictures_that_cannot_be_read_are_skipped_and_said(run, picture: Path, tmp_path: Path, capsys) -> None:
    (text := tmp_path / "text.png").write_text("nothing")
    (half := tmp_path / "half.png").write_bytes(picture.read_bytes()[:2000])
    out = run(*NARROW_SVDPADE, "--num-classes", "3", "--skip-unreadable", "--sanity", images=(text, half, picture))
    assert [row["image"] for row in json.loads((out / "sanity.json").read_text())] == ["noise.png"]
    assert [row["image"] for row in json.loads((out / "metrics.json").read_text())] == ["noise.png"]
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("skipped: ")]
    assert ["text.png" in lines[0], "half.png" in lines[1]] == [True, True]
    for images in ((text,), (half,)):
        with pytest.raises(OptionError, match="none of the pictures can be read"):
            run(*SMALL, "--skip-unreadable", images=images)


def test_models_are_called_by_their_labels(run, capsys) -> None:
    models = ["--model", "resnet18_svdpade", "--model", "resnet18_svdpade", *NARROW, "--num-classes", "2"]
    out = run(*models, "--label", "trained", "--label", "new one", "--target", "-1")
    files = {path.name for path in out.glob("*_contribution.png")}
    assert files == {"noise_trained_contribution.png", "noise_new_one_contribution.png"}
    assert "| trained |" in capsys.readouterr().out
    assert {row["target"] for row in json.loads((out / "metrics.json").read_text())} == {1}


def test_without_jinja_nothing_is_computed(run, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r"pip install 'covpool_plugins\[explain\]'"):
        run(*SMALL)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("redirect", "status"), [("| head -c 1", 141), (">&-", 0), ("> /dev/full", 2)])
@pytest.mark.slow
def test_output_that_cannot_be_written_ends_in_a_line(redirect: str, status: int, tmp_path: Path) -> None:
    command = f"{sys.executable} -m covpool_plugins.explain --model resnet18_svdpade --list-layers {redirect}"
    script = f"set -o pipefail; {command}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=TOOL.parents[1])
    lines = [line for line in done.stderr.splitlines() if "no --checkpoint" not in line]
    assert done.returncode in (status, 0) and len(lines) <= 1 and "Traceback" not in done.stderr
