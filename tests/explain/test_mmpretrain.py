"""MMPretrain classifiers, from a config and a checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.explanations import AVERAGE, CHEAP, SECOND_ORDER, mmpretrain_config
from torch import nn

from covpool_plugins.errors import NotApplicableError, OptionError
from covpool_plugins.explain import EXPLANATIONS, ModelView, explain, load_mmpretrain_model
from covpool_plugins.linalg import MPA
from covpool_plugins.pooling import Pool

pytest.importorskip("mmpretrain")


@pytest.fixture
def photo() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((96, 64))


@pytest.mark.parametrize("average", [False, True])
def test_every_method_on_a_loaded_checkpoint(average: bool, photo: Image.Image, tmp_path: Path) -> None:
    path, checkpoint = mmpretrain_config(tmp_path, **(AVERAGE if average else {})), tmp_path / "epoch_1.pth"
    model = load_mmpretrain_model(path)
    nn.init.normal_(model.head.fc.weight)
    torch.save({"meta": {"epoch": 1}, "state_dict": model.state_dict()}, checkpoint)
    view = ModelView.of(load_mmpretrain_model(path, checkpoint))
    assert list(view.stages)[-1] == "backbone.layer4" and view.num_classes == 3 and isinstance(view.pool, Pool)
    with torch.no_grad():
        logits = model(view.preprocessing(photo))[0]
    for method in EXPLANATIONS:
        if method == "democratic_weights" or (average and method in SECOND_ORDER):
            with pytest.raises(NotApplicableError):
                explain(view, photo, method)
            continue
        explanation = explain(view, photo, method, target=1, **CHEAP.get(method, {}))
        assert explanation.probability == pytest.approx(logits.softmax(0)[1].item(), rel=1e-4)
        assert explanation.map.shape in ((4, 4), (8, 8), (32, 32))
        if "excitation" in method:
            mass = float(method == "excitation_backprop")
            assert explanation.layer == "backbone.layer3" and explanation.map.sum() == pytest.approx(mass, abs=1e-5)
        if explanation.contributions is not None:
            expected = (logits[1] - model.head.fc.bias[1]).item()
            assert explanation.contributions.sum() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("to_rgb", [True, False])
def test_preprocessing_and_channel_order(to_rgb: bool, tmp_path: Path) -> None:
    """An input of one colour, so that resizing and cropping cannot hide a wrong channel."""
    view = ModelView.of(load_mmpretrain_model(mmpretrain_config(tmp_path, to_rgb=to_rgb)))
    x = view.preprocessing(Image.new("RGB", (96, 64), (10, 100, 200)))
    channels = [10, 100, 200] if to_rgb else [200, 100, 10]
    mean, std = torch.tensor([124.0, 116, 104]), torch.tensor([58.0, 57, 56])
    assert x.shape == (1, 3, 32, 32) and view.preprocessing.input_size == (32, 32)
    torch.testing.assert_close(x[0, :, 7, 9], (torch.tensor(channels) - mean) / std)
    assert view.preprocessing.picture(x).getpixel((5, 5)) == (10, 100, 200)


GREY = """
model = dict(
    type='ImageClassifier',
    backbone=dict(type='LeNet5', num_classes=-1),
    neck=dict(type='covpool_plugins.CovariancePooling', in_channels=120, reduce_channels=8),
    head=dict(type='LinearClsHead', num_classes=3, in_channels=36))
data_preprocessor = dict(mean={mean}, std={std}, num_classes=3)
test_dataloader = dict(dataset=dict(type='MNIST', pipeline=[dict(type='Resize', scale=48), dict(type='PackInputs')]))
"""


def test_a_model_of_one_channel_sees_grey(photo: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "grey.py"
    path.write_text(GREY.format(mean=[33.0], std=[78.0]))
    view = ModelView.of(load_mmpretrain_model(path))
    x = view.preprocessing(Image.new("RGB", (96, 64), (150, 150, 150)))
    torch.testing.assert_close(x, torch.full((1, 1, 48, 48), (150 - 33) / 78))
    assert view.preprocessing.picture(x).getpixel((5, 5)) == (150, 150, 150)
    assert explain(view, photo, "gradient", target=1).map.shape == (48, 48)


def test_a_checkpoint_knows_its_method(tmp_path: Path) -> None:
    """Of a run with ``SwitchMethodHook``: the pool is that of the last epochs, not that of the config."""
    from covpool_plugins.mmpretrain_plugin.active_method import set_method  # needs MMPretrain

    path, checkpoint = mmpretrain_config(tmp_path), tmp_path / "hybrid.pth"
    model = load_mmpretrain_model(path)
    assert model.neck.pool.method != MPA()
    set_method(model.neck, MPA())
    torch.save({"state_dict": model.state_dict()}, checkpoint)
    assert load_mmpretrain_model(path, checkpoint).neck.pool.method == MPA()


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    """A pipeline of other channels and a checkpoint of another model."""
    path, checkpoint = tmp_path / "grey.py", tmp_path / "other.pth"
    path.write_text(GREY.format(mean=[33.0] * 3, std=[78.0] * 3))
    with pytest.raises(OptionError, match="takes 1 channels, the test pipeline of its config gives 3"):
        ModelView.of(load_mmpretrain_model(path))
    torch.save({"state_dict": load_mmpretrain_model(mmpretrain_config(tmp_path, **AVERAGE)).state_dict()}, checkpoint)
    with pytest.raises(OptionError, match="does not fit the model"):
        load_mmpretrain_model(mmpretrain_config(tmp_path), checkpoint)
