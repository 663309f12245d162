"""SpectrumHook in runs of MMEngine's runner."""

import copy
import json

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from support.small_runs import BATCHES, EPOCHS, Losses, Tiny, a_runner, different, load, pools, tiny, warnings_of

from covpool_plugins.errors import OptionError
from covpool_plugins.mmpretrain_plugin import CovariancePooling
from covpool_plugins.mmpretrain_plugin.spectrum_hook import SpectrumHook, summary


@pytest.mark.parametrize("options", [dict(interval=0), dict(interval=2.5), dict(by_epoch=1)])
def test_bad_spectra(options):
    with pytest.raises(OptionError, match=f"SpectrumHook: {next(iter(options))} must be"):
        HOOKS.build(dict(type="SpectrumHook", **options))


def scalars(runner, stage=0):
    """Logged values of a stage by name."""
    start = f"train/spectrum/neck{stage}/"
    history = runner.message_hub.log_scalars
    return {key.removeprefix(start): list(buffer.data[0]) for key, buffer in history.items() if key.startswith(start)}


NAMES = {"condition_number", "effective_rank", "largest_eigenvalue", "smallest_eigenvalue"}


class InputsOfPools(Hook):
    """What each pool got in every iteration, and what its spectrum was before the weights changed."""

    def __init__(self):
        self.spectra = []

    def before_run(self, runner):
        for pool in pools(runner.model):
            pool.register_forward_hook(self.keep)

    def keep(self, pool, inputs, output):
        self.spectra.append(copy.deepcopy(pool).spectrum(inputs[0]))


def test_spectra_are_those_of_the_iteration(tmp_path):
    inputs = InputsOfPools()
    runner = a_runner(tmp_path, dict(type="SpectrumHook", interval=1), inputs, model=tiny(stages=2))
    runner._val_loop = None
    runner.train()
    for stage in (0, 1):
        found, expected = scalars(runner, stage), inputs.spectra[stage::2]
        assert set(found) == NAMES
        assert found["condition_number"] == [float(one.condition_number.median()) for one in expected]
        assert found["effective_rank"] == [float(one.effective_rank.mean()) for one in expected]
        assert found["largest_eigenvalue"] == [float(one.eigenvalues[:, 0].median()) for one in expected]
        assert found["smallest_eigenvalue"] == [
            float(one.eigenvalues[torch.arange(4), one.rank - 1].median()) for one in expected
        ]


def test_spectra_reach_the_log_files(tmp_path):
    a_runner(tmp_path, dict(type="SpectrumHook", interval=1)).train()
    (log,) = tmp_path.glob("*/vis_data/scalars.json")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    trained = [line for line in lines if "loss" in line]
    assert len(trained) == EPOCHS * BATCHES
    assert all(line["spectrum/neck0/condition_number"] >= 1 for line in trained)
    (text,) = tmp_path.glob("*/*.log")
    assert "spectrum/neck0/effective_rank: " in text.read_text()


@pytest.mark.parametrize(
    "options, times", [(dict(interval=2), 3), (dict(interval=4), 1), (dict(interval=2, by_epoch=True), 1)]
)
def test_spectra_are_as_frequent_as_asked(options, times, tmp_path):
    runner = a_runner(tmp_path, dict(type="SpectrumHook", **options))
    runner.train()
    assert {name: len(values) for name, values in scalars(runner).items()} == dict.fromkeys(NAMES, times)
    (hook,) = [hook for hook in runner.hooks if isinstance(hook, SpectrumHook)]
    assert (hook._handles, hook._measured) == ({}, {})
    assert [len(pool._forward_pre_hooks) for pool in pools(runner.model)] == [0]


class Autocast(Hook):
    """The model in bfloat16, as AmpOptimWrapper runs it on a GPU."""

    def before_run(self, runner):
        forward = runner.model.forward

        def in_bfloat16(*args, **kwargs):
            with torch.autocast("cpu", torch.bfloat16):
                return forward(*args, **kwargs)

        runner.model.forward = in_bfloat16


@pytest.mark.parametrize("precision", [[], [dict(type=Autocast)]], ids=["float32", "bfloat16"])
def test_spectra_do_not_disturb_training(precision, tmp_path):
    runs = {}
    for name, hooks in {"with": [dict(type="SpectrumHook", interval=1)], "without": []}.items():
        losses = Losses()
        a_runner(tmp_path / name, losses, *hooks, *precision).train()
        runs[name] = losses.values, load(tmp_path / name / f"epoch_{EPOCHS}.pth")["state_dict"]
    assert runs["with"][0] == runs["without"][0]
    assert different(runs["with"][1], runs["without"][1]) == []


class Unused(Tiny):
    def forward(self, images, labels, mode="tensor"):
        if mode == "loss":
            return dict(loss=self.head(images.flatten(1)[:, : self.head.in_features]).square().mean())
        return []


def test_a_neck_that_is_not_called_is_said(tmp_path):
    model = Unused(CovariancePooling(4, reduce_channels=3))
    runner = a_runner(tmp_path, dict(type="SpectrumHook", interval=3), model=model)
    runner._val_loop = None
    messages = warnings_of(runner)
    runner.train()
    assert sum("stages not seen in the neck" in message for message in messages) == 2
    assert scalars(runner) == {}
    assert [len(pool._forward_pre_hooks) for pool in pools(model)] == [0]


def test_summaries_of_what_is_degenerate():
    pool = CovariancePooling(4, reduce_channels=None).pool
    zero = {name: float(value) for name, value in summary(pool.spectrum(torch.zeros(2, 4, 3, 3))).items()}
    assert zero == dict(
        condition_number=float("inf"), effective_rank=0.0, largest_eigenvalue=0.0, smallest_eigenvalue=0.0
    )
    broken = summary(pool.spectrum(torch.full((2, 4, 3, 3), torch.nan)))
    assert all(value.isnan() for value in broken.values())
