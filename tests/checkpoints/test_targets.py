"""What is written, that it is written at once or not at all, and the command line."""

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from support.checkpoints import save_original

from covpool_plugins.checkpoints import TARGETS, KeyReport, load_original, summary, write
from covpool_plugins.checkpoints.targets import report_text
from covpool_plugins.command_line import run_tool
from covpool_plugins.errors import OptionError, ShapeError, UnknownNameError

TOOL = Path(__file__).parents[2] / "tools" / "convert.py"
NAME = "pisvd__resnet18__zcanormsvdpi__c100"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return save_original(NAME, tmp_path_factory.mktemp("original"))


@pytest.fixture(scope="module")
def converted(original):
    return load_original(original)


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("target", TARGETS)
def test_a_folder_that_is_there_is_kept(target, converted, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("precious")
    with pytest.raises(OptionError, match="--force"):
        write(converted, target, out)
    assert files(tmp_path) == ["out", "out/mine.txt"]
    with pytest.raises(OptionError, match=r"mine\.txt"):  # which nobody can write again
        write(converted, target, out, force=True)
    assert files(tmp_path) == ["out", "out/mine.txt"]
    (out / "mine.txt").unlink()
    write(converted, target, out)
    before = files(tmp_path)
    write(converted, target, out, force=True)  # what a conversion has written
    assert files(tmp_path) == before
    (out / "log.csv").write_text("mine")
    with pytest.raises(OptionError, match=r"log\.csv"):
        write(converted, "timm", out, force=True)


def test_only_a_manifest_of_our_own_allows_to_replace(converted, tmp_path):
    """A stranger's folder may say that the user's file is one of ours."""
    for name, text in {
        "conversion.md": "Files:\n\n- `thesis.tex`\n- `conversion.json`\n",
        "conversion.json": json.dumps({"thesis.tex": 3, "conversion.md": 0, "../outside": 1, "": 0}),
    }.items():
        out = tmp_path / name / "out"
        out.mkdir(parents=True)
        (out / "thesis.tex").write_text("years of work")
        (out / name).write_text(text)
        with pytest.raises(OptionError, match="no earlier call"):
            write(converted, "timm", out, force=True)
        assert (out / "thesis.tex").read_text() == "years of work"
    for damaged in ("[1]", "{", "{" * 100_000, '{"a": {}}'):
        (out / "conversion.json").write_text(damaged)
        with pytest.raises(OptionError):
            write(converted, "timm", out, force=True)
    link = tmp_path / "link"
    write(converted, "timm", link)
    (link / "config.json").unlink()
    (link / "config.json").symlink_to(out / "thesis.tex")
    with pytest.raises(OptionError, match=r"config\.json"):
        write(converted, "timm", link, force=True)


@pytest.fixture(scope="module")
def timm_folder(converted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("folder") / "timm"
    write(converted, "timm", folder)
    return folder


RECORDS = {
    "file_name": [
        "../outside.pth",
        "/tmp/outside.pth",
        "a/b.pth",
        "",
        "..",
        "a\nb.pth",
        3,
        None,
        "a" * 300,
        "conversion.md",
    ],
    "container": [3, ["net"]],
    "plain": [None, [1]],
    "settings": [3],
    "keys": [None, 3, [3], [[3]], [["a", "b", "c", False, []]], [["a", "b", None, False, [-1]]], [["a"]]]
    + [[["a", "fc.bias", None, False, [100], change]] for change in ("upper", 3, ["lower"], {})],
}


@pytest.mark.parametrize("field", RECORDS)
def test_damaged_records(field, timm_folder, tmp_path):
    """Names in ``original.json`` are no paths, and whatever else is wrong is one line."""
    folder = shutil.copytree(timm_folder, tmp_path / "timm", copy_function=os.link)
    record = json.loads((folder / "original.json").read_text())
    for value in RECORDS[field]:
        (folder / "original.json").unlink()
        (folder / "original.json").write_text(json.dumps({**record, field: value}))
        with pytest.raises(OptionError) as error:
            load_original(folder)
        assert "\n" not in str(error.value)
    bias = ["a", "fc.bias", None, False, [100]]
    for rows in (
        [["bn1.nothing", "bn1.nothing", None, False, [3], None]],
        [["a", "bn1.weight", 1 << 40, False, [3], None]],
        [[*bias, "lower"]],
        [["a", "bn1.weight", 0, False, [], "unbiased"]],
        [[*bias, None], ["a", "fc.weight", None, False, [100, 512], None]],  # as rows of one tensor
    ):
        (folder / "original.json").write_text(json.dumps({**record, "keys": rows}))
        with pytest.raises(OptionError, match="does not fit"):
            write(load_original(folder), "original", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_record_makes_no_more_than_the_weights(timm_folder, tmp_path):
    """Each part is cloned: 16 MB of rows would take gigabytes."""
    folder = shutil.copytree(timm_folder, tmp_path / "timm")
    record = json.loads((folder / "original.json").read_text())
    key, tensor = max(load_original(folder).state_dict.items(), key=lambda item: item[1].nbytes)
    rows = [[f"{i}", key, 0, False, [tensor[0].numel()], None] for i in range(20 * len(tensor))]
    (folder / "original.json").write_text(json.dumps({**record, "keys": rows}))
    with pytest.raises(OptionError, match="more tensors than there are weights"):
        write(load_original(folder), "original", tmp_path / "out")
    assert not (tmp_path / "out").exists()


DESCRIPTIONS = {
    "architecture": [None, 3, "nothing_like_it", "local-dir:/tmp", ["resnet18"], "resnet18"],
    "num_classes": [None, "3", -1, 1 << 40, 3, True],
    "model_args": [{"whiten": 3}, {"norm_kwargs": {"groups": 5}}, {"whiten": "layer9"}],
    "pretrained_cfg": [
        *({"mean": value} for value in ("a", [1, 2], 0.5, [])),
        *({"crop_pct": value} for value in (-1, 0, 1e-320, [1, 1])),
        *({"std": value} for value in ([10**9] * 3, [0] * 3)),
        {"interpolation": 3},
    ],
}


@pytest.mark.parametrize("field", DESCRIPTIONS)
def test_damaged_descriptions(field, timm_folder, tmp_path):
    folder = shutil.copytree(timm_folder, tmp_path / "timm", copy_function=os.link)
    config = json.loads((folder / "config.json").read_text())
    for value in DESCRIPTIONS[field]:
        (folder / "config.json").unlink()
        (folder / "config.json").write_text(json.dumps({**config, field: value}))
        with pytest.raises((OptionError, ShapeError, UnknownNameError)) as error:
            load_original(folder)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a 'quote", 'a "quote', "a\nline", "a\\slash", "{{ fileDirname }}"])
def test_folders_that_no_config_can_name(name, converted, tmp_path):
    """MMEngine writes the folder's name into the text of the config, which is Python."""
    with pytest.raises(OptionError, match="letter"):
        write(converted, "mmpretrain", tmp_path / name)
    assert files(tmp_path) == []


FULL_DISK = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
sys.path.insert(0, sys.argv.pop(1))
import convert
from covpool_plugins.command_line import run_tool
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)
run_tool(convert.main)
"""


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("size", [0, 100, 100_000])
def test_a_full_disk(target, size, timm_folder, tmp_path):
    """One line and nothing half-written, wherever the disk ends."""
    arguments = [str(TOOL.parent), str(size), str(timm_folder), "--to", target, "--out", str(tmp_path / "out")]
    ran = subprocess.run([sys.executable, "-c", FULL_DISK, *arguments], capture_output=True, text=True)
    assert ran.returncode == 2, ran.stderr
    assert "Traceback" not in ran.stderr
    assert files(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("force", [False, True])
def test_four_conversions_into_one_folder(force, timm_folder, tmp_path):
    command = [sys.executable, str(TOOL), str(timm_folder), "--to", "mmpretrain", "--out", str(tmp_path / "out")]
    command += ["--force"] * force
    running = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in range(4)
    ]
    ended = [(process.communicate()[1], process.returncode) for process in running]
    assert all(code == 0 or (code == 2 and "Traceback" not in said) for said, code in ended)
    assert any(code == 0 for _, code in ended)
    assert files(tmp_path) == [
        "out",
        *(f"out/{name}" for name in sorted(path.name for path in (tmp_path / "out").iterdir())),
    ]
    sizes = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir() if path.name in sizes} == sizes


def test_keys_with_control_characters(converted):
    """They come from a file and go to a terminal."""
    odd = replace(converted, notes=["\x1b[31mred\n"], source="a|b`c", keys=[KeyReport("\x1b[2J", None, (1,), "x")])
    assert all(value.isprintable() for _, value in summary(odd))
    assert all(line.isprintable() for line in report_text(odd, []).splitlines())


def test_odd_places(converted, tmp_path, monkeypatch):
    """The working directory is left alone, a link is followed."""
    monkeypatch.chdir(tmp_path)
    for place in (".", "", str(tmp_path.parent)):
        with pytest.raises(OptionError):
            write(converted, "timm", place)
    assert files(tmp_path) == []
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "model")
    write(converted, "timm", tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert "model.safetensors" in files(tmp_path / "disk" / "model")


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_is_left_of_a_write_that_fails(target, converted, tmp_path, monkeypatch):
    out = tmp_path / "deep" / "out"

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("covpool_plugins.checkpoints.targets.report_text", fail)
    with pytest.raises(OSError, match="space"):
        write(converted, target, out)
    assert files(tmp_path) == ["deep"]


def test_a_file_in_the_way(converted, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(OptionError, match="no folder"):
        write(converted, "timm", tmp_path / "out", force=True)


def test_timm_is_not_said_to_have_made_the_weights(converted, tmp_path):
    write(converted, "timm", tmp_path / "out")
    text = (tmp_path / "out" / "config.json").read_text()
    assert all(word not in text for word in ("origin_url", "license", "paper_ids", "test_input_size"))


def test_an_unknown_target(converted, tmp_path):
    with pytest.raises(UnknownNameError, match="mmpretrain"):
        write(converted, "onnx", tmp_path / "out")


@pytest.mark.slow
def test_only_what_was_converted_has_an_original(tmp_path):
    model = timm.create_model("resnet18_isqrt", num_classes=3)
    from covpool_plugins.timm_plugin import save_for_hub

    save_for_hub(model, tmp_path / "hub")
    converted = load_original(tmp_path / "hub")
    with pytest.raises(OptionError, match="not converted"):
        write(converted, "original", tmp_path / "out")
    write(converted, "mmpretrain", tmp_path / "out")
    assert files(tmp_path / "out") == ["conversion.json", "conversion.md", "resnet18_isqrt.pth", "resnet18_isqrt.py"]


def test_damaged_folders(converted, tmp_path):
    write(converted, "timm", tmp_path / "timm")
    (tmp_path / "timm" / "config.json").write_text("{")
    with pytest.raises(OptionError, match=r"config\.json"):
        load_original(tmp_path / "timm")
    with pytest.raises(OptionError, match="no folder of weights"):
        load_original(tmp_path)


@pytest.fixture
def run(capsys, monkeypatch):
    """Status, output and error of the tool, in this process."""
    tool = runpy.run_path(str(TOOL))

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [str(TOOL), *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            run_tool(tool["main"])
        written = capsys.readouterr()
        return stopped.value.code, written.out, written.err

    return run


def test_command_line(run, original, tmp_path):
    status, output, error = run(original, "--to", "timm", "--out", tmp_path / "timm")
    assert status == 0, error
    assert "resnet18_cifar_zca" in output
    assert "ZCANormPIunstable" in output  # the guess is reported
    status, _, error = run(original, "--to", "timm", "--out", tmp_path / "timm")
    assert status == 2
    assert error.count("\n") == 1
    status, _, error = run(tmp_path / "timm", "--to", "original", "--out", tmp_path / "original")
    assert status == 0, error
    first = torch.load(original, weights_only=True)["net"]
    second = torch.load(tmp_path / "original" / original.name, weights_only=True)["net"]
    assert list(first) == list(second)
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["{tmp}/nothing.pth"], "No such file"),
        (["{tmp}/page.pth", "--to", "timm", "--out", "{tmp}/out"], "is text"),
        (["{original}", "--to", "timm"], "--out"),
        (["{original}", "--to", "onnx", "--out", "{tmp}/out"], "invalid choice"),
        (["{original}", "--head", "svdpade", "--arch", "vgg16"], "--arch vgg16"),
    ],
)
def test_bad_input(arguments, message, run, original, tmp_path):
    (tmp_path / "page.pth").write_text("<html>not found</html>")
    status, _, error = run(*(argument.format(tmp=tmp_path, original=original) for argument in arguments))
    assert status == 2
    assert message in error
    assert error.count("\n") == 1
    assert files(tmp_path) == ["page.pth"]


@pytest.mark.slow
def test_killed_at_any_moment(original, tmp_path):
    """The folder is there, whole, or not at all."""
    command = [sys.executable, str(TOOL), str(original), "--to", "timm", "--out", str(tmp_path / "out")]
    for delay in (2.0, 3.0, 4.0, 4.5, 5.0, 5.5, 6.0):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        if (tmp_path / "out").exists():
            timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
            break


@pytest.mark.slow
def test_original_weights_without_conversion_say_how(original, tmp_path):
    with pytest.raises((OptionError, RuntimeError), match=r"convert\.py"):
        timm.create_model(
            "resnet18_isqrt", checkpoint_path=str(save_original("fmpn__resnet18__MPNCOV__finetune", tmp_path))
        )
