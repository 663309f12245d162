"""SwitchMethodHook in runs of MMEngine's runner."""

import pytest
import torch
import torch.distributed as dist
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmpretrain.engine.hooks import EMAHook
from support.small_configs import Images
from support.small_runs import BATCHES, EPOCHS, a_runner, different, load, pools, resume, tiny, warnings_of
from torch import nn

from covpool_plugins.errors import OptionError, UnknownNameError
from covpool_plugins.linalg import EigenMethod, Exact, NewtonSchulz, SVDTopN
from covpool_plugins.mmpretrain_plugin import SpectrumHook, SwitchMethodHook
from covpool_plugins.mmpretrain_plugin.active_method import KEY, decode, encode
from covpool_plugins.mmpretrain_plugin.safe_checkpoints import weights_only_checkpoints

BEFORE, AFTER = NewtonSchulz(iterations=3), Exact()
SWITCH = dict(type="SwitchMethodHook", begin=1, method="svdpade")
EMA = dict(type=EMAHook, momentum=0.3)


class MethodOfEpoch(Hook):
    """The method that each iteration ran with, by epoch."""

    def __init__(self):
        self.methods = {}

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.methods.setdefault(runner.epoch, set()).update(p.method for p in pools(runner.model))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Three epochs with the switch after the first and an EMA copy."""
    work_dir = tmp_path_factory.mktemp("full")
    seen = MethodOfEpoch()
    runner = a_runner(work_dir, SWITCH, EMA, seen)
    runner.train()
    return work_dir, runner, seen


def test_the_method_changes_with_the_epoch(uninterrupted):
    """In the model, its average and their checkpoints, which need no runner to be loaded."""
    work_dir, runner, seen = uninterrupted
    assert seen.methods == {0: {BEFORE}, 1: {AFTER}, 2: {AFTER}}
    (ema,) = [hook for hook in runner.hooks if isinstance(hook, EMAHook)]
    assert [pool.method for pool in pools(ema.ema_model.module)] == [AFTER]
    assert decode(ema.ema_model.module.neck.get_buffer(KEY)) == AFTER
    for epoch, method in ((1, BEFORE), (2, AFTER), (3, AFTER)):
        checkpoint = load(work_dir / f"epoch_{epoch}.pth")
        assert decode(checkpoint["state_dict"][f"neck.{KEY}"]) == method
        assert decode(checkpoint["ema_state_dict"][f"module.neck.{KEY}"]) == method
        model = tiny()
        model.load_state_dict(checkpoint["state_dict"])
        assert [pool.method for pool in pools(model)] == [method]
        assert different(model.state_dict(), checkpoint["state_dict"]) == []


@pytest.mark.parametrize("epoch, begin, averaged_buffers", [(1, 1, False), (1, 2, True), (2, 1, True)])
def test_resuming_gives_the_weights_of_one_run(epoch, begin, averaged_buffers, tmp_path):
    hooks = [dict(SWITCH, begin=begin), dict(EMA, update_buffers=averaged_buffers)]
    a_runner(tmp_path / "full", *hooks).train()
    seen = MethodOfEpoch()
    resume(tmp_path / "full" / f"epoch_{epoch}.pth", tmp_path / "resumed", *hooks, seen)
    assert seen.methods == {n: {AFTER if n >= begin else BEFORE} for n in range(epoch, EPOCHS)}
    full, resumed = (load(tmp_path / name / f"epoch_{EPOCHS}.pth") for name in ("full", "resumed"))
    for weights in ("state_dict", "ema_state_dict"):
        assert different(full[weights], resumed[weights]) == []


def test_runs_with_and_without_the_hook(tmp_path):
    runner = a_runner(tmp_path / "with", SWITCH)
    runner.train()
    runner.test()
    assert [pool.method for pool in pools(runner.model)] == [AFTER]
    (hook,) = [hook for hook in runner.hooks if isinstance(hook, SwitchMethodHook)]
    assert hook._first == BEFORE
    a_runner(tmp_path / "without").train()
    first, last = (
        [load(tmp_path / name / f"epoch_{n}.pth")["state_dict"] for name in ("without", "with")] for n in (1, EPOCHS)
    )
    # The hook is the only one to add a key, and changes nothing before it switches.
    assert different(*first) == [f"neck.{KEY}"]
    assert "head.fc.weight" in different(*last)
    assert not any(KEY in key for key in last[0])
    continued = resume(tmp_path / "without" / "epoch_1.pth", tmp_path / "continued", SWITCH)
    assert [pool.method for pool in pools(continued.model)] == [AFTER]


@pytest.mark.parametrize("epoch, method, ema", [(1, BEFORE, [EMA]), (2, AFTER, []), (3, AFTER, [EMA])])
def test_a_checkpoint_is_tested_with_its_method(epoch, method, ema, uninterrupted, tmp_path):
    work_dir, _, _ = uninterrupted
    path = work_dir / f"epoch_{epoch}.pth"
    runner = a_runner(tmp_path, SWITCH, *ema, load_from=str(path))
    with weights_only_checkpoints():
        metrics = runner.test()
    assert [pool.method for pool in pools(runner.model)] == [method]
    alone = tiny() if method == BEFORE else tiny(pool="svdpade")
    weights = {name: value for name, value in load(path)["state_dict"].items() if KEY not in name}
    alone.load_state_dict(weights)
    with torch.no_grad():
        scores = alone.eval()(Images(size=9).images).softmax(1)
    assert metrics["score"] == pytest.approx(float(scores[:, 0].mean()), rel=1e-6)


def test_all_stages_switch_with_options(tmp_path):
    runner = a_runner(tmp_path, dict(SWITCH, method="svdtopn", options=dict(n=2), begin=0), model=tiny(stages=2))
    seen = MethodOfEpoch()
    runner.register_hook(seen)
    runner.train()
    assert len(pools(runner.model)) == 2
    assert seen.methods == {n: {SVDTopN(n=2)} for n in range(EPOCHS)}
    assert [key for key in runner.model.state_dict() if KEY in key] == [f"neck.{KEY}"]


@pytest.fixture
def process_group(monkeypatch):
    for name, value in {"LOCAL_RANK": "0", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)  # MMEngine sets what it does not find
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_within_a_wrapper_for_distributed_training(process_group, tmp_path):
    wrapper = dict(type="MMDistributedDataParallel", device_ids=None, broadcast_buffers=False)
    cfg = dict(model_wrapper_cfg=wrapper)
    runner = a_runner(tmp_path, SWITCH, EMA, dict(type=SpectrumHook, interval=2), launcher="pytorch", cfg=cfg)
    assert isinstance(runner.model, nn.parallel.DistributedDataParallel)
    runner.train()
    assert [pool.method for pool in pools(runner.model)] == [AFTER]
    measured = runner.message_hub.get_scalar("train/spectrum/neck0/condition_number")
    assert len(measured.data[0]) == EPOCHS * BATCHES // 2


def test_methods_as_text():
    for method in (BEFORE, AFTER, SVDTopN(n=2)):
        assert decode(encode(method)) == method
    for text in ("no json", '["svdpad", {}]', '["isqrt", {"iterations": 0}]', '["isqrt", {"itertions": 2}]', "[1]"):
        stored = torch.tensor(list(text.ljust(256).encode()), dtype=torch.uint8)
        with pytest.raises(OptionError, match=f"the checkpoint's {KEY} does not exist in this version"):
            decode(stored)


BY_ITERATION = dict(
    train_cfg=dict(by_epoch=False, max_iters=6, val_interval=3),
    default_hooks=dict(
        logger=dict(type="LoggerHook", interval=1), checkpoint=dict(type="CheckpointHook", interval=2, by_epoch=False)
    ),
)


class MethodOfIteration(MethodOfEpoch):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.methods[runner.iter] = {pool.method for pool in pools(runner.model)}


@pytest.mark.parametrize("loop", [BY_ITERATION, {}], ids=["iterations", "epochs"])
def test_the_method_changes_with_the_iteration(loop, tmp_path):
    hook = dict(SWITCH, begin=4, by_epoch=False)
    full, resumed = MethodOfIteration(), MethodOfIteration()
    a_runner(tmp_path / "full", hook, EMA, full, **loop).train()
    assert full.methods == {n: {AFTER if n >= 4 else BEFORE} for n in range(len(full.methods))}
    assert len(full.methods) == (6 if loop else EPOCHS * BATCHES)
    name = "iter_{}.pth" if loop else "epoch_{}.pth"
    first, last, done = (4, 6, 4) if loop else (1, 3, 3)
    runner = a_runner(
        tmp_path / "resumed",
        hook,
        EMA,
        resumed,
        load_from=str(tmp_path / "full" / name.format(first)),
        resume=True,
        **loop,
    )
    with weights_only_checkpoints():
        runner.train()
    assert resumed.methods == {n: full.methods[n] for n in full.methods if n >= done}
    checkpoint = load(tmp_path / "resumed" / name.format(last))
    assert decode(checkpoint["ema_state_dict"][f"module.neck.{KEY}"]) == AFTER


class Nameless(EigenMethod):
    pass


@pytest.mark.parametrize(
    "options, error, message",
    [
        (dict(begin=-1, method="svdpade"), OptionError, "begin must be an integer >= 0, got -1"),
        (dict(begin=1, method="svdpade", by_epoch="no"), OptionError, "by_epoch must be True or False, got 'no'"),
        (dict(begin=1, method="svdpad"), UnknownNameError, "'svdpad'; available: svdpade"),
        (dict(begin=1, method="isqrt", options=dict(iteration=3)), OptionError, "no option 'iteration'"),
        (dict(begin=1, method=Nameless()), OptionError, "a checkpoint cannot hold Nameless"),
    ],
)
def test_bad_switches(options, error, message):
    with pytest.raises(error, match=message):
        HOOKS.build(dict(type="SwitchMethodHook", **options))


ITERATIONS = dict(train_cfg=dict(by_epoch=False, max_iters=3))


@pytest.mark.parametrize(
    "hook, neck, options, message",
    [
        (SWITCH, dict(pool="logcov"), {}, "the pool 'logcov' takes no matrix square root"),
        (SWITCH, dict(pool="seb"), {}, "the pool 'seb' takes no matrix square root"),
        (dict(SWITCH, neck="nek"), {}, {}, "the model has no 'nek'; its parts: .*backbone, neck, head"),
        (dict(SWITCH, neck=""), {}, {}, "the model has no ''"),
        (dict(SWITCH, neck="head"), {}, {}, "the model's 'head' is a SecondOrderClsHead and has no pool"),
        (dict(type=SpectrumHook, neck="nek"), {}, {}, "the model has no 'nek'"),
        (SWITCH, {}, ITERATIONS, "SwitchMethodHook counts epochs, the training iterations; set by_epoch=False"),
        (dict(type=SpectrumHook, by_epoch=True), {}, ITERATIONS, "SpectrumHook: by_epoch=True needs"),
    ],
)
def test_models_and_loops_that_do_not_fit(hook, neck, options, message, tmp_path):
    runner = a_runner(tmp_path, hook, model=tiny(**neck), **options)
    with pytest.raises(OptionError, match=message):
        runner.train()
    assert runner.iter == 0


@pytest.mark.parametrize("begin, warned", [(EPOCHS - 1, False), (EPOCHS, True)])
def test_a_switch_that_never_comes_is_in_a_warning(begin, warned, tmp_path):
    runner = a_runner(tmp_path, dict(SWITCH, begin=begin))
    messages = warnings_of(runner)
    runner.train()
    assert any(f"begin={begin} is not reached in {EPOCHS} epochs" in message for message in messages) == warned
