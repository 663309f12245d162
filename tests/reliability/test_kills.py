"""kill -9 during training, conversion and explanation: no half-written file, and the same command goes on."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from support.kills import contents, run, run_and_kill
from support.small_configs import model_config, small_config
from support.small_runs import different

pytestmark = pytest.mark.slow


def holds(folder, *patterns):
    """A condition: the folder has a file of that pattern, at any depth."""
    return lambda: any(next(folder.rglob(pattern), None) is not None for pattern in patterns)


@pytest.fixture
def config(tmp_path):
    model = model_config("svdpade")
    model["backbone"] = dict(type="support.kills.HeavyBackbone")
    hooks = dict(
        logger=dict(type="LoggerHook", interval=1),
        checkpoint=dict(type="CheckpointHook", interval=1, max_keep_ckpts=1, save_best="accuracy/top1"),
    )
    return small_config(tmp_path / "small.py", augment=True, model=model, default_hooks=hooks)


def test_training(config, tmp_path):
    """Killed again and again, the run ends with the weights and the optimizer of one that never stopped."""
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    run("train", config, "--work-dir", undisturbed)
    arguments = ["train", config, "--work-dir", killed, "--resume"]
    moments = [
        (holds(killed, "scalars.json"), 0.0),
        (holds(killed, "*epoch_2.pth*"), 0.0),
        (holds(killed, "epoch_2.pth"), 0.17),
    ]
    for number, (when, delay) in enumerate(moments):
        assert run_and_kill(*arguments, when=when, delay=delay)
        files = contents(killed)
        assert number == 0 or any(name.startswith("epoch_") for name in files)
    run(*arguments)
    expected, files = contents(undisturbed), contents(killed)
    for part in ("state_dict", "optimizer"):
        assert different(expected["epoch_3.pth"][part], files["epoch_3.pth"][part]) == []
    assert sum(name.startswith("best_") for name in files) == 1


def test_conversion(tmp_path):
    checkpoint, undisturbed, killed = tmp_path / "resnet18.pth", tmp_path / "undisturbed", tmp_path / "in" / "killed"
    torch.manual_seed(0)
    torch.save(timm.create_model("resnet18").state_dict(), checkpoint)
    arguments = ["convert", checkpoint, "--to", "timm", "--force", "--out"]
    run(*arguments, undisturbed)
    expected = contents(undisturbed)
    moments = [
        (holds(killed.parent, ".killed.*"), 0.0),
        (holds(killed.parent, "*.safetensors*"), 0.0),
        (holds(killed.parent, ".killed.*/conversion.md"), 0.017),
    ]
    for when, delay in moments:
        run_and_kill(*arguments, killed, when=when, delay=delay)
        assert not killed.exists() or different(contents(killed), expected) == []
        for left in killed.parent.glob(".killed.*"):
            left.rename(tmp_path / f"left{left.name}")  # so that the next moment is one of the next run
    run(*arguments, killed)
    assert different(contents(killed), expected) == []


def test_explanation(tmp_path):
    generator = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (180, 200, 3), dtype=np.uint8)).save(tmp_path / "in" / f"{name}.png")
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    arguments = ["explain", "--model", "resnet18_cifar_svdpade", "--image", tmp_path / "in"]
    arguments += ["--method", "contribution", "eigen", "gradient", "--deletion-steps", "1", "--out"]
    run(*arguments, undisturbed)
    expected = contents(undisturbed)
    moments = [
        (holds(killed, "*.npz*"), 0.0),
        (holds(killed, "a_*.png"), 0.84),
    ]
    for when, delay in moments:
        run_and_kill(*arguments, killed, when=when, delay=delay)
        files = contents(killed)
        assert different(files, {name: expected[name] for name in files}) == []
        for path in killed.iterdir():
            path.unlink()
    run(*arguments, killed)
    assert different(contents(killed), expected) == []
