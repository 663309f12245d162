"""Training, resuming and testing with the tools' functions: bit for bit what one run gives."""

import json

import pytest
import torch
from mmengine.hooks import Hook
from support.small_configs import seen, small_config, validated
from support.small_runs import different, load, test, train

from covpool_plugins.mmpretrain_plugin import runs
from covpool_plugins.mmpretrain_plugin.safe_checkpoints import load_or_resume

EMA = dict(type="EMAHook", momentum=0.3)
SWITCH = dict(type="covpool_plugins.SwitchMethodHook", begin=1, method="svdpade")
WARM_UP = dict(type="LinearLR", start_factor=0.1, by_epoch=False, end=4)
STEPS = [WARM_UP, dict(type="MultiStepLR", milestones=[2])]
COSINE = [WARM_UP, dict(type="CosineAnnealingLR", T_max=9, begin=1, by_epoch=True, convert_to_iter_based=True)]
ADAM = dict(optimizer=dict(type="AdamW", lr=0.01))


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    """A data loader that is collected while its persistent workers live waits so long for each of them."""
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)


def assert_same(first, second):
    """What training made, of all that checkpoints hold, is the same."""
    paths = different(load(first), load(second))
    assert [path for path in paths if not path.startswith(("meta.", "message_hub."))] == []


CYCLES = {
    "dropout": dict(pool="dropcov", hooks=[EMA], param_scheduler=STEPS),
    "switch": dict(hooks=[SWITCH, EMA], param_scheduler=COSINE, optim_wrapper=ADAM),
    "averaged buffers": dict(hooks=[SWITCH, dict(EMA, update_buffers=True)]),
    "workers": dict(pool="dropcov", workers=2),
    "persistent workers": dict(pool="dropcov", workers=2, persistent=True, hooks=[EMA]),
    "no seed": dict(pool="dropcov", workers=1, randomness=dict(seed=None)),
}


@pytest.mark.fast_for("switch", "persistent workers")
@pytest.mark.parametrize("name", CYCLES)
def test_a_resumed_run_ends_as_one_run(name, tmp_path):
    options = {"pool": "isqrt", "hooks": [], **CYCLES[name]}
    pool, hooks = options.pop("pool"), options.pop("hooks")
    config = small_config(tmp_path / "config.py", pool, *hooks, augment=True, **options)
    train(config, tmp_path / "full")
    train(config, tmp_path / "resumed", "--resume", tmp_path / "full" / "epoch_1.pth")
    assert_same(tmp_path / "full" / "epoch_3.pth", tmp_path / "resumed" / "epoch_3.pth")
    assert seen(tmp_path / "full")[3:] == seen(tmp_path / "resumed")


def test_every_epoch_is_augmented_anew(tmp_path):
    unshuffled = small_config(tmp_path / "config.py", workers=2, augment=True)
    sums = {}
    for name, options in {"none": [0, False], "new for every epoch": [2, False], "persistent": [2, True]}.items():
        workers, persistent = options
        loader = [f"num_workers={workers}", f"persistent_workers={persistent}", "sampler.shuffle=False"]
        train(unshuffled, tmp_path / name, options=[f"train_dataloader.{option}" for option in loader])
        sums[name] = [iteration["images"] for iteration in seen(tmp_path / name)]
        assert len(set(sums[name])) == len(sums[name]) == 9
    assert sums["persistent"] == sums["new for every epoch"]


def test_without_the_hook_a_resumed_run_differs(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "EpochSeedHook", Hook)
    config = small_config(tmp_path / "config.py", augment=True)
    train(config, tmp_path / "full")
    train(config, tmp_path / "resumed", "--resume", tmp_path / "full" / "epoch_1.pth")
    assert seen(tmp_path / "full")[3:] != seen(tmp_path / "resumed")


def test_a_seed_that_nobody_chose_is_resumed(tmp_path):
    config = small_config(tmp_path / "config.py", randomness=dict(seed=None, deterministic=False))
    train(config, tmp_path / "full")
    checkpoint = tmp_path / "full" / "epoch_2.pth"
    cfg = runs.load_config(config)
    load_or_resume(cfg, str(checkpoint))
    assert cfg.randomness == dict(seed=load(checkpoint)["meta"]["seed"], deterministic=False)


@pytest.mark.slow
def test_compiled_and_plain_runs_continue_each_other(tmp_path):
    config = small_config(tmp_path / "config.py", "dropcov", EMA, augment=True, param_scheduler=STEPS)
    plain, compiled, back = (tmp_path / name for name in ("plain", "compiled", "back"))
    options = ["compile.backend=eager"]
    train(config, plain)
    # Numbers that change with every iteration, as learning rates and logs, would be compiled in again and again.
    with torch._dynamo.config.patch(recompile_limit=3, fail_on_recompile_limit_hit=True):
        train(config, compiled, "--resume", plain / "epoch_1.pth", options=options)
    train(config, back, "--resume", compiled / "epoch_2.pth")
    for folder in (compiled, back):
        assert_same(folder / "epoch_3.pth", plain / "epoch_3.pth")
    tested = test(config, compiled / "epoch_3.pth", tmp_path, options=options)
    assert tested == validated(plain)


@pytest.mark.slow
def test_the_tools_compile(tmp_path, run_tool):
    """By the default backend; its runs too are resumed bit for bit."""
    config = small_config(tmp_path / "config.py", "dropcov", EMA, augment=True)
    options = ["--cfg-options", "compile=True"]
    assert run_tool("train", config, "--work-dir", tmp_path / "full", *options)[0] == 0
    resume = ["--resume", tmp_path / "full" / "epoch_1.pth"]
    assert run_tool("train", config, "--work-dir", tmp_path / "resumed", *resume, *options)[0] == 0
    last = tmp_path / "resumed" / "epoch_3.pth"
    assert_same(tmp_path / "full" / "epoch_3.pth", last)
    out = tmp_path / "metrics.json"
    assert run_tool("test", config, last, "--work-dir", tmp_path, "--out", out, *options)[0] == 0
    assert json.loads(out.read_text()) == pytest.approx(validated(tmp_path / "full"), rel=1e-5)


AVERAGES = {
    "averages": [EMA],
    "of MMEngine": [dict(EMA, type="mmengine.EMAHook")],
    "weights": [dict(EMA, evaluate_on_ema=False, evaluate_on_origin=True)],
    "with a switch": [SWITCH, dict(EMA, update_buffers=True)],
}


@pytest.mark.fast_for("weights", "with a switch")
@pytest.mark.parametrize("name", AVERAGES)
def test_the_weights_that_were_validated_are_tested(name, tmp_path):
    config = small_config(tmp_path / "config.py", "isqrt", *AVERAGES[name])
    train(config, tmp_path / "run")
    tested = test(config, tmp_path / "run" / "epoch_3.pth", tmp_path / "test")
    assert tested == validated(tmp_path / "run")
    # A config without the averages tests them all the same: they are the checkpoint's weights.
    without = small_config(tmp_path / "without.py", "isqrt")
    stored = test(without, tmp_path / "run" / "epoch_3.pth", tmp_path / "other")
    assert (stored == tested) == (name != "weights")


@pytest.mark.parametrize("pool", ["mpa", "seb"])
def test_new_training_from_a_run_that_switched_pools_by_its_own_config(pool, tmp_path):
    switched = small_config(tmp_path / "switched.py", "isqrt", SWITCH)
    train(switched, tmp_path / "run")
    last = tmp_path / "run" / "epoch_3.pth"
    assert "neck.active_method" in load(last)["state_dict"]
    config = small_config(tmp_path / "config.py", pool)
    train(config, tmp_path / "new", options=[f"load_from={last}", "train_cfg.max_epochs=1"])
    state = load(tmp_path / "new" / "epoch_1.pth")["state_dict"]
    assert "neck.active_method" not in state
    tested = test(config, tmp_path / "new" / "epoch_1.pth", tmp_path / "test")
    assert tested == validated(tmp_path / "new")
