"""Fine-tuning of pretrained networks: rows, crops, differences, resuming."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from studies import finetune_training, finetuning
from studies.finetune_training import (
    FinetuneRecipe,
    FinetuneRun,
    build,
    build_from_probe,
    five_crops,
    normalized,
    pictures_of,
    random_crops,
    train,
)
from studies.finetuning import RATES, best_rates, counted, difference, of_all_rows, table
from studies.modes import COMPARISONS, run_mode
from studies.rows import head_and_options

from covpool_plugins.errors import OptionError

from .test_labelled import write_classes


def made_run(row="gap", fold=1, seed=0, crops=50.0, rates=RATES[0], pictures=None):
    return FinetuneRun(row, fold, seed, *rates, 10, 4, crops, crops if pictures is None else pictures, 1.0, 2.0)


@pytest.fixture
def without_packages(monkeypatch):
    """The untrained network takes the place of the pretrained one."""

    @cache
    def weights(backbone, packages):
        return {"state_dict": timm.create_model(backbone).state_dict(), "mean": (0.5,) * 3, "std": (0.5,) * 3}

    for module in (finetune_training, finetuning):
        monkeypatch.setattr(module, "weights_of", weights)


def test_rows_are_heads_with_options():
    assert head_and_options("gap") == ("gap", {})
    expected = {"centered": False, "last_stride": 1}
    assert head_and_options("svdpade(centered=False, last_stride=1)") == ("svdpade", expected)


@pytest.mark.parametrize("row", ["svdpade(", "svdpade(1)", "svdpade(x=open)", "a.b", "svdpade().x", "unknown"])
def test_other_rows_are_refused(row):
    with pytest.raises(ValueError, match="svdpade"):
        head_and_options(row)


def test_gap_is_the_plain_network(without_packages):
    recipe = FinetuneRecipe(Path(), backbone="resnet10t")
    model = build(recipe, "gap", 1000, 0)
    plain = timm.create_model("resnet10t")
    plain.load_state_dict({key.replace("head.fc", "fc"): value for key, value in model.state_dict().items()})
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(model.eval()(x), plain.eval()(x))
    assert build(recipe, "svdpade(last_stride=1)", 3, 0).head.fc.in_features == 64 * 65 // 2


@pytest.mark.parametrize("row", ["gap", "svdpade(centered=False)"])
def test_a_head_can_start_as_a_probe(row, tmp_path, without_packages):
    images = write_classes(tmp_path / "images", 3, (48, 48))
    recipe = FinetuneRecipe(images, "resnet10t", folds=3, size=64, channels=4, epochs=1, start="probe")
    data = pictures_of(recipe)
    training = data.folds[1][0]
    model = build_from_probe(recipe, row, training, 0).eval()
    crops = normalized(model, five_crops(data.pixels, 64)[-1])
    with torch.inference_mode():
        assert (model(crops[training]).argmax(1) == data.labels[training]).all()  # what it was fitted to
    run = train(recipe, row, 1, 0, 1e-9, 1e-9, tmp_path / "network")
    assert run.frozen == run.pictures  # nothing was learned, and batch norm has kept its statistics
    saved = timm.create_model(f"local-dir:{tmp_path / 'network'}", pretrained=True).eval()
    with torch.inference_mode():
        torch.testing.assert_close(saved(crops), model(crops), rtol=1e-3, atol=1e-3)
    header, (cells,) = table(
        [
            run,
        ]
    )
    assert header[1] == "frozen, %" and cells[1] == f"{run.frozen:.1f}"


def test_a_row_may_name_its_backbone(without_packages):
    recipe = FinetuneRecipe(Path(), backbone="resnet10t")
    assert build(recipe, "gap(backbone='resnet18')", 3, 0).second_order_arguments["backbone"] == "resnet18"


def test_crops_lie_in_the_picture():
    ramp = torch.arange(32, dtype=torch.uint8).expand(4, 3, 32, 32)  # grows from left to right
    crops = random_crops(ramp, 16, np.random.default_rng(0)) * 255
    assert crops.shape == (4, 3, 16, 16)
    assert crops.min() >= 0 and crops.max() <= 31
    widths = (crops[..., -1] - crops[..., 0]).abs().amax((1, 2))
    assert ((widths > 0.5 * 31) & (widths < 31)).all()
    corners = five_crops(ramp, 16) * 255
    assert corners.shape == (5, 4, 3, 16, 16)
    assert (corners[1] > corners[0]).all()  # the right one
    torch.testing.assert_close(corners[0], corners[2])


def test_differences_are_taken_fold_by_fold():
    runs = [made_run("gap", fold, seed, 10.0 * fold + seed) for fold in (1, 2, 3) for seed in (0, 1)]
    runs += [made_run("isqrt", fold, 0, 10.0 * fold + 2.5 + 0.1 * (fold - 2)) for fold in (1, 2, 3)]
    mean, half = difference(runs, "isqrt", "crops")
    assert mean == pytest.approx(2.0)
    assert half == pytest.approx(4.302653 * 0.1 / 3**0.5, rel=1e-5)
    assert difference(runs[:2], "isqrt", "crops") is None
    failed = [*runs[:6], *(replace(run, crops=None) for run in runs[6:])]
    assert difference(failed, "isqrt", "crops")[0] < -20  # a training that diverged is no success


def test_rates_are_chosen_on_the_first_fold_only():
    runs = [made_run("gap", 0, 0, 50.0 + place, rates) for place, rates in enumerate(RATES)]
    assert best_rates(runs, ["gap"]) == RATES[-1]
    assert best_rates([*runs, made_run("gap", 1, 0, 100.0, RATES[0])], ["gap"]) == RATES[-1]


def test_rows_are_compared_on_the_folds_and_seeds_that_all_have():
    runs = [made_run("gap", fold, seed) for seed in (0, 1) for fold in (1, 2)]
    runs += [made_run("isqrt", fold, 0) for fold in (1, 2, 3)] + [made_run("isqrt", 2, 1)]
    kept = of_all_rows(runs, ["gap", "isqrt"])
    assert {(run.row, run.fold, run.seed) for run in kept} == {
        (row, *place) for row in ("gap", "isqrt") for place in ((1, 0), (2, 0), (2, 1))
    }
    assert counted(kept) == "seed 0 on 2 folds, seed 1 on 1 folds"
    with pytest.raises(OptionError, match="first fold"):
        best_rates(runs, ["gap"])


@pytest.fixture
def command(tmp_path, without_packages):
    """The arguments of a comparison that takes a second."""
    images = write_classes(tmp_path / "images", 3, (48, 48))
    settings = {"backbone": "resnet10t", "folds": 3, "epochs": 1, "size": 64, "channels": 4, "seeds": 1}
    json_file = tmp_path / "runs.json"
    settings |= {"images": images, "groups": "(.+)--", "json": json_file}
    return ["finetune", *(f"--{name}={value}" for name, value in settings.items())], json_file


def test_an_interrupted_comparison_goes_on(command, capsys, monkeypatch):
    arguments, json_file = command
    rows = ["--rows", "gap", "svdpade"]
    run_mode(COMPARISONS, "", "", [*arguments, *rows])
    complete = json.loads(json_file.read_text())
    assert [(run["row"], run["fold"]) for run in complete["runs"]] == [
        (r, f) for f in (1, 2) for r in ("gap", "svdpade")
    ]
    assert "| `svdpade` |" in capsys.readouterr().out
    json_file.write_text(json.dumps({**complete, "runs": complete["runs"][:3]}))
    trained = []
    monkeypatch.setattr(finetuning, "train", lambda recipe, *job: trained.append(job) or made_run(*job[:3], 50.0))
    run_mode(COMPARISONS, "", "", [*arguments, *rows, "--report", "--against=svdpade"])
    assert not trained and "2 trainings: seed 0 on 1 folds" in capsys.readouterr().out
    run_mode(COMPARISONS, "", "", [*arguments, *rows])
    assert [job[:3] for job in trained] == [("svdpade", 2, 0)]
    assert len(json.loads(json_file.read_text())["runs"]) == 4


def test_a_row_to_compare_with_is_one_of_the_rows(command):
    with pytest.raises(OptionError, match="--against 'isqrt' is not among the rows: gap, svdpade"):
        run_mode(COMPARISONS, "", "", [*command[0], "--rows", "gap", "svdpade", "--against", "isqrt"])


def test_numbers_of_other_trainings_are_not_mixed(command):
    arguments, json_file = command
    json_file.write_text(json.dumps({"recipe": {"size": 64}, "runs": []}))
    with pytest.raises(OptionError, match="holds other numbers"):
        run_mode(COMPARISONS, "", "", arguments)
