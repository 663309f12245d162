"""tools/train.py and tools/test.py: a run from its first epoch to a tested checkpoint, and bad input."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.error import URLError

import mmengine
import pytest
import torch

from covpool_plugins.errors import OptionError
from covpool_plugins.mmpretrain_plugin import runner

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "demo" / "resnet18_svdpade_textures.py"
SMALL = ["train_dataloader.batch_size=6", "train_cfg.max_epochs=2", "default_hooks.checkpoint.max_keep_ckpts=-1"]


def load(path):
    with runner.weights_only_checkpoints():
        return torch.load(path)


@pytest.fixture(scope="module")
def trained(textures, tmp_path_factory):
    """Work folder of two epochs, trained by a shell command."""
    work_dir = tmp_path_factory.mktemp("work")
    command = [sys.executable, ROOT / "tools" / "train.py", CONFIG, "--work-dir", work_dir]
    command += ["--cfg-options", f"data_root={textures}", *SMALL]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert result.returncode == 0, result.stderr
    return work_dir


def test_train_resume_test(trained, textures, tmp_path, run_tool):
    full, options = load(trained / "epoch_2.pth"), [f"data_root={textures}", *SMALL]
    assert full["meta"]["epoch"] == 2 and full["meta"]["iter"] == 6

    resumed_dir = tmp_path / "resumed"
    first = ["--resume", trained / "epoch_1.pth", "--work-dir", resumed_dir, "--cfg-options", *options]
    assert run_tool("train", CONFIG, *first) == (0, "")
    assert sorted(path.name for path in resumed_dir.glob("*.pth")) == ["epoch_2.pth"]
    resumed = load(resumed_dir / "epoch_2.pth")
    assert resumed["meta"]["iter"] == 6
    assert len(resumed["message_hub"]["log_scalars"]["train/loss"].data[0]) == 6
    weights = load(trained / "epoch_1.pth")["state_dict"]
    assert any(not torch.equal(weights[name], value) for name, value in resumed["state_dict"].items())

    out = tmp_path / "metrics" / "top1.json"
    test = [resumed_dir / "epoch_2.pth", "--out", out, "--work-dir", tmp_path, "--cfg-options", *options]
    assert run_tool("test", CONFIG, *test) == (0, "")
    (log,) = resumed_dir.glob("*/vis_data/scalars.json")
    validated = json.loads(log.read_text().splitlines()[-1])
    assert json.loads(out.read_text()) == {"accuracy/top1": validated["accuracy/top1"]}
    assert [path.name for path in out.parent.iterdir()] == ["top1.json"]


def test_resume_without_a_name_takes_the_latest(trained, textures, run_tool, tmp_path):
    for name in ("epoch_1.pth", "epoch_2.pth"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    (tmp_path / "last_checkpoint").write_text(str(tmp_path / "epoch_2.pth"))
    options = [f"data_root={textures}", *SMALL, "train_cfg.max_epochs=3"]
    assert run_tool("train", CONFIG, "--work-dir", tmp_path, "--resume", "--cfg-options", *options) == (0, "")
    assert load(tmp_path / "epoch_3.pth")["meta"]["iter"] == 9


def test_mirror_images_are_averaged(trained, textures, tmp_path, run_tool):
    """As the scores that the plain test and the one of mirror images give, with hooks that look into the model."""
    scores = {}
    mirror = "dict(type='RandomFlip', prob=1.0), "
    for name, flip, tta in [("plain", "", []), ("mirrored", mirror, []), ("both", "", ["--tta"])]:
        config = tmp_path / f"{name}.py"
        config.write_text(f"""
_base_ = {str(CONFIG)!r}
pipeline = [dict(type='LoadImageFromFile'), dict(type='CenterCrop', crop_size=64), {flip}dict(type='PackInputs')]
test_dataloader = dict(dataset=dict(pipeline=pipeline))
custom_hooks = [
    dict(type='covpool_plugins.SwitchMethodHook', begin=1, method='isqrt'),
    dict(type='EMAHook', momentum=0.3),
]
test_evaluator = dict(_delete_=True, type='mmengine.DumpResults', out_file_path={str(tmp_path / name)!r} + '.pkl')
""")
        arguments = [trained / "epoch_2.pth", "--work-dir", tmp_path, "--cfg-options", f"data_root={textures}"]
        assert run_tool("test", config, *tta, *arguments) == (0, "")
        predictions = mmengine.load(tmp_path / f"{name}.pkl")
        scores[name] = torch.stack([one["pred_score"] for one in predictions])
    assert not torch.allclose(scores["plain"], scores["mirrored"])
    torch.testing.assert_close(scores["both"], (scores["plain"] + scores["mirrored"]) / 2)


def test_data_root_moves_every_data_set(textures):
    cfg = runner.load_config(CONFIG, [f"data_root={textures}", "model.neck.pool=isqrt", "model.neck.iterations=3"])
    loaders = [cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader]
    assert [loader.dataset.data_root for loader in loaders] == [str(textures)] * 3
    assert (cfg.model.neck.pool, cfg.model.neck.iterations) == ("isqrt", 3)
    cfg = runner.load_config(CONFIG, ["val_dataloader.dataset.data_root=elsewhere", f"data_root={textures}"])
    assert (cfg.train_dataloader.dataset.data_root, cfg.val_dataloader.dataset.data_root) == (
        str(textures),
        "elsewhere",
    )


class RunsCode:
    def __reduce__(self):
        return os.system, ("touch ran",)


BAD_FILES = {
    "missing.py": None,
    "syntax.py": "model = dict(",
    "base.py": "_base_ = './nowhere.py'",
    "nothing.py": "x = 1",
}


@pytest.mark.parametrize("name, text", BAD_FILES.items())
def test_bad_config_files(name, text, tmp_path, run_tool):
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    for command in (["train", path], ["test", path, "epoch_1.pth"]):
        status, said = run_tool(*command)
        assert status == 2 and said.count("\n") == 1
        assert ("nowhere.py" if name == "base.py" else name) in said


# The option, and what is said of it after its key and value.
BAD_OPTIONS = {
    "model.neck.pool=svdpad": "='svdpad': unknown pool 'svdpad'; available: svdpade",
    "model.neck.iteration=3": "=3: pool 'svdpade' has no option 'iteration'; its options: ",
    "model.neck.in_channels=64": "=64: svdpade pool: expected NCHW with in_channels=64, got shape (6, 128, 8, 8)",
    "model.neck.reduce_channels=-16": "=-16: reduce_channels must be a positive integer or None",
    "model.head.in_channels=100": "=100: SecondOrderClsHead: the neck gives 528 numbers per image",
    "model.neck.type=covpool_plugins.CovarancePooling": (
        "='covpool_plugins.CovarancePooling': unknown model 'covpool_plugins.CovarancePooling'; "
        "available: covpool_plugins.CovariancePooling"
    ),
    "model.backbone.type=ResNettt": "='ResNettt': unknown model 'ResNettt'; available: ResNet",
    "model.backbone.depth=19": "=19: invalid depth 19",
    "model.nekc=isqrt": "='isqrt': unknown option of ImageClassifier 'nekc'; available: neck",
    "optim_wrapper.optimizer.type=SGDD": "='SGDD': unknown optimizer 'SGDD'; available: SGD",
    "optim_wrapper.optimizer.rate=1": "=1: unknown option of SGD 'rate'; available: ",
    "optim_wrapper.type=Wrapper": "='Wrapper': unknown optimizer wrapper 'Wrapper'; available: OptimWrapper",
    "param_scheduler.milestone=1": "=1: unknown option of MultiStepLR 'milestone'; available: milestones",
    "train_cfg.max_epoch=1": "=1: unknown key 'max_epoch'; available: max_epochs",
    "default_hooks.checkpoint.intervall=1": "=1: unknown key 'intervall'; available: interval",
    "train_dataloader.batch_size=0": "=0: batch_size should be a positive integer value",
    "train_dataloader.sampler.shufle=True": "=True: unknown option of DefaultSampler 'shufle'; available: shuffle",
    "train_dataloader.dataset.pipeline.1.type=Crop": "='Crop': unknown transform 'Crop'; available: ",
    "train_dataloader.dataset.data_prefix=trian": "='trian': {textures}/trian: No such file or directory",
    "train_dataloader.dataset.ann_file=list.txt": "='list.txt': {textures}/list.txt: No such file or directory",
    "train_dataloader.dataset.data_root=nowhere": "='nowhere': no such folder",
    "val_dataloader.dataset.data_root=nowhere": "='nowhere': no such folder",
    "val_evaluator.type=Acuracy": "='Acuracy': unknown metric 'Acuracy'; available: Accuracy",
    "compile.backend=indctor": "='indctor': Invalid backend",
}
# Those that are said in other words.
BAD_WORDS = {
    "model.head.num_classes=2": "3 classes (brick, grass, gravel), the model has 2; set model.head.num_classes=3",
    "modle.neck.pool=isqrt": "unknown config key 'modle'; available: model",
    "model.neck.pool": "KEY=VALUE, got 'model.neck.pool'",
    "custom_hooks=[dict(begin=1,end=2)]": "--cfg-options cannot read 'custom_hooks=[dict(begin=1,end=2)]'; values are ",
    "data_root=nowhere": "train_dataloader.dataset.data_root='nowhere': no such folder",
    "load_from=nowhere.pth": "nowhere.pth",
}


# Each starts a tool, which takes a second.
@pytest.mark.parametrize(
    "option, message",
    [
        pytest.param(option, message, marks=() if number % 3 == 0 else pytest.mark.slow)
        for number, (option, message) in enumerate([*BAD_OPTIONS.items(), *BAD_WORDS.items()])
    ],
)
def test_bad_options(option, message, textures, tmp_path, run_tool):
    options = ["--cfg-options", f"data_root={textures}", *SMALL, option]
    status, said = run_tool("train", CONFIG, "--work-dir", tmp_path, *options)
    assert status == 2 and said.count("\n") == 1
    if option in BAD_OPTIONS:
        message = f"{CONFIG}: {option.split('=')[0]}{message.format(textures=textures)}"
    assert message in said


BAD_HOOKS = {
    "dict(type='covpool_plugins.SwitchMethodHook', begin=-1, method='exact')": "custom_hooks.0.begin=-1: ",
    "dict(type='covpool_plugins.SwitchMethodHook', begin=1, method='exat')": "custom_hooks.0.method='exat': unknown",
    "dict(type='covpool_plugins.SwitchMethodHook', begin=1, method='isqrt', options=dict(iteration=3))": (
        "custom_hooks.0.options.iteration=3: "
    ),
    "dict(type='covpool_plugins.SwitchMethodHook', begin=1, method='exact', neck='nekc')": (
        "custom_hooks.0.neck='nekc': the model has no 'nekc'; its parts: data_preprocessor, backbone, neck, head"
    ),
    "dict(type='EMAHook', momentum=0.1), dict(type='SwitchHook', priority='LOW')": "custom_hooks.1.type='SwitchHook': ",
}


@pytest.mark.parametrize("hooks, message", BAD_HOOKS.items())
def test_bad_hooks(hooks, message, textures, tmp_path, run_tool):
    path = tmp_path / "config.py"
    path.write_text(f"_base_ = {str(CONFIG)!r}\ncustom_hooks = [{hooks}]\n")
    status, said = run_tool("train", path, "--work-dir", tmp_path, "--cfg-options", f"data_root={textures}", *SMALL)
    assert status == 2 and said.count("\n") == 1
    assert f"{path}: {message}" in said


def test_the_test_set_is_blamed_in_a_test(trained, textures, tmp_path, run_tool):
    """And not the validation set, which is the same."""
    options = ["--cfg-options", "data_root=nowhere", "--work-dir", tmp_path]
    status, said = run_tool("test", CONFIG, trained / "epoch_1.pth", *options)
    assert status == 2 and "test_dataloader.dataset.data_root='nowhere': no such folder" in said


def copied(textures, tmp_path, name, content):
    """The data with one picture replaced."""
    root = tmp_path / "data"
    shutil.copytree(textures, root)
    (root / name).write_bytes(content)
    return root


@pytest.mark.parametrize(
    "content, name, workers",
    [
        (b"", "train/grass/3.png", 0),
        pytest.param(b"", "val/brick/2.png", 0, marks=pytest.mark.slow),
        pytest.param(b"no picture", "train/grass/3.png", 0, marks=pytest.mark.slow),
        pytest.param(b"no picture", "train/grass/3.png", 1, marks=pytest.mark.slow),
    ],
)
def test_an_unreadable_picture_is_named(content, name, workers, textures, tmp_path, run_tool):
    options = [f"data_root={copied(textures, tmp_path, name, content)}", *SMALL, "train_cfg.max_epochs=1"]
    options.append(f"train_dataloader.num_workers={workers}")
    status, said = run_tool("train", CONFIG, "--work-dir", tmp_path / "work", "--cfg-options", *options)
    assert status == 2 and said.count("\n") == 1
    assert f"{name}: not a picture that can be read" in said


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_missing_picture_and_a_label_out_of_range_are_named(workers, textures, tmp_path, run_tool):
    options = [*SMALL, "train_dataloader.dataset.ann_file=list.txt", "train_dataloader.dataset.data_prefix=''"]
    options += [f"data_root={textures}", f"train_dataloader.num_workers={workers}"]
    for line, message in {
        "train/no.png 1": "train/no.png",
        "train/brick/0.png 7": "label 7, model.head.num_classes is 3",
    }.items():
        (tmp_path / "list.txt").write_text(f"{line}\n" * 6)
        status, said = run_tool(
            "train",
            CONFIG,
            "--work-dir",
            tmp_path / "work",
            "--cfg-options",
            *options,
            f"train_dataloader.dataset.ann_file={tmp_path / 'list.txt'}",
        )
        assert status == 2 and said.count("\n") == 1
        assert message in said and "Traceback" not in said


def test_weights_that_cannot_be_fetched_are_named(textures, tmp_path, run_tool, monkeypatch):
    def no_network(*args, **kwargs):
        raise URLError("Name or service not known")

    monkeypatch.setattr("mmengine.runner.checkpoint.load_url", no_network)
    pretrained = "model.backbone.init_cfg"
    options = [f"{pretrained}.type=Pretrained", f"{pretrained}.checkpoint=https://example.com/weights.pth"]
    options = ["--cfg-options", f"data_root={textures}", *SMALL, *options]
    status, said = run_tool("train", CONFIG, "--work-dir", tmp_path, *options)
    assert status == 2 and said.count("\n") == 1
    assert f"{pretrained}.checkpoint='https://example.com/weights.pth': <urlopen error Name or service" in said


def test_a_bug_in_a_run_keeps_its_traceback(textures, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("a bug")

    monkeypatch.setattr(runner.Runner, "train", lambda self: (self.call_hook("before_run"), fail())[1])
    with pytest.raises(OptionError, match="a bug"):  # before there are data
        runner.train(CONFIG, work_dir=tmp_path, options=[f"data_root={textures}", *SMALL])
    monkeypatch.undo()
    monkeypatch.setattr("mmpretrain.models.ImageClassifier.train_step", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        runner.train(CONFIG, work_dir=tmp_path, options=[f"data_root={textures}", *SMALL])


@pytest.mark.parametrize("out, message", [("", "is a folder"), ("file/metrics.json", "is no folder")])
def test_where_the_metrics_cannot_go_is_said_first(out, message, tmp_path, run_tool):
    (tmp_path / "file").write_text("")
    status, said = run_tool("test", CONFIG, tmp_path / "no.pth", "--work-dir", tmp_path, "--out", tmp_path / out)
    assert status == 2 and said.count("\n") == 1
    assert message in said and str(tmp_path / out) in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="is allowed there")
def test_mixed_precision_needs_a_gpu(tmp_path, run_tool):
    status, said = run_tool("train", CONFIG, "--work-dir", tmp_path, "--amp")
    assert status == 2 and "--amp needs a GPU" in said


def damage(kind, good, path):
    """Write a checkpoint that is not to be loaded; returns what the refusal says."""
    if kind == "missing":
        return "does not exist"
    if kind == "cut":
        path.write_bytes(good.read_bytes()[:5000])
        return "damaged"
    if kind == "text":
        path.write_text("not a checkpoint")
        return "damaged"
    checkpoint = load(good)
    if kind == "code":
        checkpoint["message_hub"]["extra"] = RunsCode()
        message = "posix.system"
    elif kind == "config to execute":
        checkpoint["meta"]["config"] = "import os; os.system('touch ran')"
        message = "meta['config']"
    else:
        checkpoint["state_dict"]["head.fc.weight"] = torch.zeros(3, 10)
        message = "size mismatch for head.fc.weight"
    torch.save(checkpoint, path)
    return message


@pytest.mark.parametrize("tool", ["train", "test"])
@pytest.mark.parametrize("kind", ["missing", "cut", "text", "code", "config to execute", "other model"])
def test_bad_checkpoints(kind, tool, trained, textures, tmp_path, run_tool, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "checkpoint.pth"
    message = damage(kind, trained / "epoch_1.pth", path)
    checkpoint = ["--resume", path] if tool == "train" else [path]
    arguments = [CONFIG, *checkpoint, "--work-dir", tmp_path, "--cfg-options", f"data_root={textures}", *SMALL]
    status, said = run_tool(tool, *arguments)
    if tool == "test" and kind == "config to execute":
        assert (status, said) == (0, "")  # the text is not looked at
    else:
        assert status == 2 and said.count("\n") == 1
        assert message in said
    assert not (tmp_path / "ran").exists()


def test_no_code_runs_from_weights_that_a_config_names(trained, textures, tmp_path, run_tool, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "pretrained.pth"
    message = damage("code", trained / "epoch_1.pth", path)
    pretrained = ["model.backbone.init_cfg.type=Pretrained", f"model.backbone.init_cfg.checkpoint={path}"]
    options = ["--cfg-options", f"data_root={textures}", *SMALL, *pretrained]
    status, said = run_tool("train", CONFIG, "--work-dir", tmp_path, *options)
    assert status == 2 and said.count("\n") == 1
    assert message in said
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_of_weights_cannot_be_resumed(trained, tmp_path, run_tool):
    torch.save({"state_dict": load(trained / "epoch_1.pth")["state_dict"]}, tmp_path / "weights.pth")
    status, said = run_tool("train", CONFIG, "--resume", tmp_path / "weights.pth", "--work-dir", tmp_path)
    assert status == 2 and "holds no run to resume" in said


@pytest.mark.parametrize("tool", ["train", "test"])
def test_help_ends_with_an_example_that_exists(tool, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [tool, "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(ROOT / "tools" / f"{tool}.py"), run_name="__main__")
    example = capsys.readouterr().out.split("example:")[1].split()
    assert example[:2] == ["python", f"tools/{tool}.py"]
    assert (ROOT / example[2]).is_file()
