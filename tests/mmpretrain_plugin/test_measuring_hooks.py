"""SpectrumHook and WhiteningErrorHook in runs of MMEngine's runner."""

import copy
import json

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from support.small_configs import seen
from support.small_runs import BATCHES, EPOCHS, a_runner, different, load, pools, tiny, warnings_of
from support.whitening import statistics
from torch import nn

from covpool_plugins.errors import OptionError
from covpool_plugins.mmpretrain_plugin import CovariancePooling
from covpool_plugins.mmpretrain_plugin.measuring_hooks import summary
from covpool_plugins.whitening import PCANorm2d, ZCANorm2d

HOOK_TYPES = ("SpectrumHook", "WhiteningErrorHook")
LAYERS = ("backbone.convolution.1", "backbone.convolution.3")
STAGES = ("neck0", "neck1")
NUMBERS = ("condition_number", "effective_rank", "largest_eigenvalue", "smallest_eigenvalue")
SCALARS = {f"spectrum/{stage}/{number}" for stage in STAGES for number in NUMBERS}
SCALARS |= {f"whitening/{layer}/error" for layer in LAYERS}
EVERY_ITERATION = [dict(type=name, interval=1) for name in HOOK_TYPES]


def measured_model():
    """Two whitening layers, the second of two groups, and a neck of two stages."""
    model = tiny(stages=2)
    whitened = [ZCANorm2d(6), nn.ReLU(), PCANorm2d(6, n_components=1, groups=2)]
    model.backbone.convolution = nn.Sequential(model.backbone.convolution, *whitened)
    return model


def scalars(runner):
    history = runner.message_hub.log_scalars
    logged = {key.removeprefix("train/"): list(buffer.data[0]) for key, buffer in history.items()}
    return {key: values for key, values in logged.items() if key.startswith(("spectrum/", "whitening/"))}


class Measurements(Hook):
    """The spectrum of each pool's input, and the distance of each whitening layer's output from white."""

    def __init__(self):
        self.spectra = {name: [] for name in STAGES}
        self.errors = {name: [] for name in LAYERS}

    def before_run(self, runner):
        for name, pool in zip(STAGES, pools(runner.model), strict=True):
            pool.register_forward_hook(lambda pool, inputs, _, name=name: self.keep_spectrum(name, pool, inputs[0]))
        for name in LAYERS:
            layer = runner.model.get_submodule(name)
            layer.weight = layer.bias = None
            layer.register_forward_hook(lambda layer, _, output, name=name: self.keep_error(name, layer, output))

    def keep_spectrum(self, name, pool, features):
        if pool.training:
            self.spectra[name].append(copy.deepcopy(pool).spectrum(features))

    def keep_error(self, name, layer, output):
        if layer.training:
            covariances = statistics(output, layer.groups)[1]
            eye = torch.eye(covariances.shape[-1]).double()
            self.errors[name].append(float((covariances - eye).norm(dim=(-2, -1)).mean() / eye.norm()))


def test_numbers_are_those_of_the_iteration_and_reach_the_log_files(tmp_path):
    expected = Measurements()
    runner = a_runner(tmp_path, *EVERY_ITERATION, expected, model=measured_model())
    runner.train()
    logged = scalars(runner)
    assert set(logged) == SCALARS
    for stage, spectra in expected.spectra.items():
        values = {number: logged[f"spectrum/{stage}/{number}"] for number in NUMBERS}
        assert values["condition_number"] == [float(spectrum.condition_number.median()) for spectrum in spectra]
        assert values["effective_rank"] == [float(spectrum.effective_rank.mean()) for spectrum in spectra]
        assert values["largest_eigenvalue"] == [float(spectrum.eigenvalues[:, 0].median()) for spectrum in spectra]
        assert values["smallest_eigenvalue"] == [
            float(spectrum.eigenvalues[torch.arange(4), spectrum.rank - 1].median()) for spectrum in spectra
        ]
    errors = {name: logged[f"whitening/{name}/error"] for name in LAYERS}
    for name in LAYERS:
        assert len(errors[name]) == EPOCHS * BATCHES
        assert errors[name] == pytest.approx(expected.errors[name], rel=1e-3, abs=1e-5)
    assert max(errors[LAYERS[0]]) < 0.01 < min(errors[LAYERS[1]])  # PCA keeps a third of the dimensions

    (log,) = tmp_path.glob("*/vis_data/scalars.json")
    lines = [line for line in map(json.loads, log.read_text().splitlines()) if "loss" in line]
    assert [line["spectrum/neck0/effective_rank"] for line in lines] == logged["spectrum/neck0/effective_rank"]
    (text,) = tmp_path.glob("*/*.log")
    assert "spectrum/neck0/effective_rank: " in text.read_text()


@pytest.mark.parametrize(
    "options, times", [(dict(interval=2), 4), (dict(interval=5), 1), (dict(interval=2, by_epoch=True), 1)]
)
def test_measurements_are_as_frequent_as_asked(options, times, tmp_path):
    runner = a_runner(tmp_path, *(dict(type=name, **options) for name in HOOK_TYPES), model=measured_model())
    runner.train()
    assert {name: len(values) for name, values in scalars(runner).items()} == dict.fromkeys(SCALARS, times)
    assert all(len(module._forward_pre_hooks) == 0 for module in runner.model.modules())


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
def test_measurements_do_not_disturb_training(precision, tmp_path):
    for name, hooks in {"with": EVERY_ITERATION, "without": []}.items():
        model = measured_model()
        model.forward = torch.autocast("cpu", precision, enabled=precision == torch.bfloat16)(model.forward)
        a_runner(tmp_path / name, *hooks, model=model).train()
    assert seen(tmp_path / "with") == seen(tmp_path / "without")
    weights = [load(tmp_path / name / f"epoch_{EPOCHS}.pth")["state_dict"] for name in ("with", "without")]
    assert different(*weights) == []


def test_modules_that_are_not_called_are_in_a_warning(tmp_path):
    model = measured_model()
    model.forward = lambda *args, **kwargs: dict(loss=model.head.fc.weight.square().sum())
    runner = a_runner(tmp_path, *(dict(type=name, interval=4) for name in HOOK_TYPES), model=model)
    runner._val_loop = None
    messages = warnings_of(runner)
    runner.train()
    for hook, names in zip(HOOK_TYPES, (", ".join(STAGES), ", ".join(LAYERS)), strict=True):
        warning = f"{hook}: not called in this iteration (compiled or unused?): {names}"
        assert messages.count(warning) == 2
    assert scalars(runner) == {}
    assert all(len(module._forward_pre_hooks) == 0 for module in model.modules())


def test_summaries_of_degenerate_features():
    pool = CovariancePooling(4, reduce_channels=None).pool
    zero = {name: float(value) for name, value in summary(pool.spectrum(torch.zeros(2, 4, 3, 3))).items()}
    assert zero == dict(
        condition_number=float("inf"), effective_rank=0.0, largest_eigenvalue=0.0, smallest_eigenvalue=0.0
    )
    broken = summary(pool.spectrum(torch.full((2, 4, 3, 3), torch.nan)))
    assert all(value.isnan() for value in broken.values())


def test_bad_options(tmp_path):
    for options in (dict(interval=0), dict(by_epoch=1)):
        with pytest.raises(OptionError, match=f"SpectrumHook: {next(iter(options))} must be"):
            HOOKS.build(dict(type="SpectrumHook", **options))
    with pytest.raises(OptionError, match="WhiteningErrorHook: the model has no layer"):
        a_runner(tmp_path, dict(type="WhiteningErrorHook")).train()
