"""tools/train.py and tools/test.py: a run from its first epoch to a tested checkpoint, and bad input."""

import json
import os
import runpy
import sys
from pathlib import Path

import mmengine
import pytest
import torch
from mmengine.config import Config
from mmpretrain.registry import MODELS
from support.small_configs import small_config, validated
from support.small_runs import load, train

from covpool_plugins.errors import OptionError
from covpool_plugins.mmpretrain_plugin import runs

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "demo" / "resnet18_svdpade_textures.py"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A config and the folder with the checkpoints of its first two epochs."""
    folder = tmp_path_factory.mktemp("small")
    config = small_config(folder / "config.py")
    train(config, folder / "run", options=["train_cfg.max_epochs=2"])
    return config, folder / "run"


def test_train_resume_test(small, tmp_path, run_tool):
    config, run = small
    resumed_dir = tmp_path / "resumed"
    assert load(run / "epoch_2.pth")["meta"]["iter"] == 6
    resume = ["--resume", run / "epoch_1.pth", "--work-dir", resumed_dir, "--cfg-options", "train_cfg.max_epochs=2"]
    assert run_tool("train", config, *resume) == (0, "")
    assert sorted(path.name for path in resumed_dir.glob("*.pth")) == ["epoch_2.pth"]
    resumed = load(resumed_dir / "epoch_2.pth")
    assert resumed["meta"]["iter"] == 6
    assert len(resumed["message_hub"]["log_scalars"]["train/loss"].data[0]) == 6
    weights = load(run / "epoch_1.pth")["state_dict"]
    assert any(not torch.equal(weights[name], value) for name, value in resumed["state_dict"].items())

    out = tmp_path / "metrics" / "top1.json"
    assert run_tool("test", config, resumed_dir / "epoch_2.pth", "--out", out, "--work-dir", tmp_path) == (0, "")
    assert json.loads(out.read_text()) == validated(resumed_dir)
    assert [path.name for path in out.parent.iterdir()] == ["top1.json"]

    # Without a name --resume takes the latest.
    assert run_tool("train", config, "--work-dir", resumed_dir, "--resume") == (0, "")
    assert load(resumed_dir / "epoch_3.pth")["meta"]["iter"] == 9


def test_mirror_images_are_averaged(textures, tmp_path, run_tool):
    """As the scores that the plain test and the one of mirror images give, with hooks that look into the model."""
    scores, checkpoint = {}, tmp_path / "weights.pth"
    model = MODELS.build(dict(Config.fromfile(CONFIG).model, _scope_="mmpretrain"))
    torch.save(dict(state_dict=model.state_dict()), checkpoint)
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
        arguments = [checkpoint, "--work-dir", tmp_path, "--cfg-options", f"data_root={textures}"]
        assert run_tool("test", config, *tta, *arguments) == (0, "")
        predictions = mmengine.load(tmp_path / f"{name}.pkl")
        scores[name] = torch.stack([prediction["pred_score"] for prediction in predictions])
    assert not torch.allclose(scores["plain"], scores["mirrored"])
    torch.testing.assert_close(scores["both"], (scores["plain"] + scores["mirrored"]) / 2)


def test_data_root_moves_every_data_set(textures):
    cfg = runs.load_config(CONFIG, [f"data_root={textures}", "model.neck.pool=isqrt", "model.neck.iterations=3"])
    loaders = [cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader]
    assert [loader.dataset.data_root for loader in loaders] == [str(textures)] * 3
    assert (cfg.model.neck.pool, cfg.model.neck.iterations) == ("isqrt", 3)
    cfg = runs.load_config(CONFIG, ["val_dataloader.dataset.data_root=elsewhere", f"data_root={textures}"])
    assert (cfg.train_dataloader.dataset.data_root, cfg.val_dataloader.dataset.data_root) == (
        str(textures),
        "elsewhere",
    )


@pytest.mark.parametrize(
    "name, text",
    [("missing.py", None), ("syntax.py", "model = dict("), ("base.py", "_base_ = 'no.py'"), ("x.py", "x = 1")],
)
def test_bad_config_files(name, text, tmp_path, refused):
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    for command in (["train", path], ["test", path, "epoch_1.pth"]):
        assert ("no.py" if name == "base.py" else name) in refused(*command)


BAD_OPTIONS = {
    "model.neck.pool=svdpad": "unknown pool 'svdpad'; available: svdpade",
    "model.backbone.type=ResNettt": "config.py: ResNettt is not in the mmpretrain::model registry",
    "model.nekc=isqrt": "config.py: ImageClassifier.__init__() got an unexpected keyword argument 'nekc'",
    "train_cfg.max_epoch=1": "config.py: EpochBasedTrainLoop.__init__() got an unexpected keyword argument 'max_epoch'",
    "compile.backend=indctor": "config.py: Invalid backend: 'indctor'",
    "model.head.num_classes=1": "2 classes (a, b), the model has 1; set model.head.num_classes=2",
    "model.head.in_channels=7": "the neck gives 21 numbers per image, model.head.in_channels is 7",
    "modle.neck.pool=isqrt": "unknown config key 'modle'; available: model",
    "model.neck.pool": "KEY=VALUE, got 'model.neck.pool'",
    "custom_hooks=[dict(begin=1,end=2)]": "--cfg-options cannot read 'custom_hooks=[dict(begin=1,end=2)]'; values are ",
    "load_from=nowhere.pth": "nowhere.pth",
}


@pytest.mark.parametrize("option, expected", BAD_OPTIONS.items())
def test_bad_options(option, expected, tmp_path, refused):
    config = small_config(tmp_path / "config.py")
    options = ["--cfg-options", "train_cfg.max_epochs=3", option]
    assert expected in refused("train", config, "--work-dir", tmp_path, *options)
    assert list(tmp_path.glob("*.pth")) == []


def test_data_that_are_not_there(textures, tmp_path, refused):
    arguments = ["train", CONFIG, "--work-dir", tmp_path, "--cfg-options"]
    assert str(tmp_path / "nowhere") in refused(*arguments, f"data_root={tmp_path / 'nowhere'}")
    (tmp_path / "list.txt").write_text("no.png 1\n" * 6)
    options = [f"data_root={textures}", f"train_dataloader.dataset.ann_file={tmp_path / 'list.txt'}"]
    message = refused(*arguments, *options, "train_dataloader.num_workers=1")
    assert "no.png" in message and "Traceback" not in message


def test_a_bug_in_a_run_keeps_its_traceback(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("a bug")

    config = small_config(tmp_path / "config.py")
    with monkeypatch.context() as patch, pytest.raises(OptionError, match=r"config\.py: a bug"):
        patch.setattr("mmengine.runner.EpochBasedTrainLoop.__init__", fail)  # before there are data
        train(config, tmp_path)
    monkeypatch.setattr("mmpretrain.models.ImageClassifier.train_step", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        train(config, tmp_path)


def test_where_the_metrics_cannot_go_is_said_first(tmp_path, refused):
    arguments = ["test", CONFIG, tmp_path / "no.pth", "--work-dir", tmp_path, "--out"]
    assert f"{tmp_path} is a folder; name a file" in refused(*arguments, tmp_path)
    (tmp_path / "file").write_text("")
    assert f"{tmp_path / 'file'}: " in refused(*arguments, tmp_path / "file" / "metrics.json")


@pytest.mark.skipif(torch.cuda.is_available(), reason="is allowed there")
def test_mixed_precision_needs_a_gpu(tmp_path, refused):
    assert "--amp needs a GPU" in refused("train", CONFIG, "--work-dir", tmp_path, "--amp")


def test_the_learning_rate_is_scaled_and_nothing_validated(tmp_path, run_tool, refused):
    config = small_config(tmp_path / "config.py", auto_scale_lr=dict(base_batch_size=8))
    options = [
        "--work-dir",
        tmp_path / "run",
        "--auto-scale-lr",
        "--no-validate",
        "--cfg-options",
        "train_cfg.max_epochs=1",
    ]
    assert run_tool("train", config, *options) == (0, "")
    (optimizer,) = load(tmp_path / "run" / "epoch_1.pth")["optimizer"]["param_groups"]
    assert optimizer["lr"] == pytest.approx(0.1 * 4 / 8)  # of batches of four
    (log,) = (tmp_path / "run").glob("*/vis_data/scalars.json")
    assert "accuracy" not in log.read_text()
    plain = small_config(tmp_path / "plain.py")
    assert "--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=" in refused("train", plain, "--auto-scale-lr")


class RunsCode:
    def __reduce__(self):
        return os.system, ("touch ran",)


def damage(kind, checkpoint):
    """What the refusal of the damaged checkpoint says."""
    if kind == "code":
        checkpoint["message_hub"]["extra"] = RunsCode()
        return "posix.system"
    if kind == "config to execute":
        checkpoint["meta"]["config"] = "import os; os.system('touch ran')"
        return "meta['config']"
    if kind == "weights alone":
        del checkpoint["message_hub"]
        return "holds no run to resume"
    checkpoint["state_dict"]["head.fc.weight"] = torch.zeros(3, 10)
    return "size mismatch for head.fc.weight"


@pytest.mark.parametrize("kind", ["code", "config to execute", "weights alone", "other model"])
def test_bad_checkpoints(kind, small, textures, tmp_path, run_tool, refused, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (config, run), path = small, tmp_path / "checkpoint.pth"
    checkpoint = load(run / "epoch_1.pth")
    expected = damage(kind, checkpoint)
    torch.save(checkpoint, path)
    assert expected in refused("train", config, "--resume", path, "--work-dir", tmp_path)
    if kind in ("config to execute", "weights alone"):  # a test looks at the weights alone
        assert run_tool("test", config, path, "--work-dir", tmp_path) == (0, "")
    else:
        assert expected in refused("test", config, path, "--work-dir", tmp_path)
    if kind == "code":
        pretrained = ["model.backbone.init_cfg.type=Pretrained", f"model.backbone.init_cfg.checkpoint={path}"]
        options = ["--cfg-options", f"data_root={textures}", *pretrained]
        assert expected in refused("train", CONFIG, "--work-dir", tmp_path, *options)
    assert not (tmp_path / "ran").exists()


def test_missing_checkpoints(small, tmp_path, refused):
    for command in (["train", small[0], "--resume"], ["test", small[0]]):
        assert "does not exist" in refused(*command, tmp_path / "no.pth", "--work-dir", tmp_path)


@pytest.mark.parametrize("tool", ["train", "test"])
def test_help_ends_with_an_example_that_exists(tool, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [tool, "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(ROOT / "tools" / f"{tool}.py"), run_name="__main__")
    example = capsys.readouterr().out.split("example:")[1].split()
    assert example[:2] == ["python", f"tools/{tool}.py"]
    assert (ROOT / example[2]).is_file()
