"""Every method on every head, in timm and in MMPretrain: a finite map, or one line that says why there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.explanations import CHEAP
from torch import nn

import covpool_plugins
from covpool_plugins.errors import NotApplicableError
from covpool_plugins.explain import METHODS, ModelView, explain, load_mmpretrain_model
from covpool_plugins.pooling import list_pools

WIDTH = 16

pytestmark = pytest.mark.slow

CONFIG = """
model = dict(
    type='ImageClassifier',
    backbone=dict(type='ResNet_CIFAR', depth=18, stem_channels=8, base_channels=8, out_indices=(3,)),
    neck=dict(type='covpool_plugins.CovariancePooling', pool='{head}', in_channels=64{width}),
    head=dict(type='covpool_plugins.SecondOrderClsHead', num_classes=3, in_channels=None))
data_preprocessor = dict(num_classes=3, mean=[124, 116, 104], std=[58, 57, 56], to_rgb=True)
test_dataloader = dict(dataset=dict(type='CustomDataset', pipeline=[
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=64, edge='short'),
    dict(type='CenterCrop', crop_size=64),
    dict(type='PackInputs')]))
"""


def of_timm(head: str, folder: Path) -> nn.Module:
    return covpool_plugins.create_model("test_resnet", head, num_classes=3, **width(head))


def of_mmpretrain(head: str, folder: Path) -> nn.Module:
    pytest.importorskip("mmpretrain")
    (folder / "config.py").write_text(
        CONFIG.format(head=head, width="".join(f", {k}={v}" for k, v in width(head).items()))
    )
    return load_mmpretrain_model(folder / "config.py")


def width(head: str) -> dict[str, int]:
    return {} if head == "gap" else {"reduce_channels": WIDTH}


@pytest.mark.parametrize("build", [of_timm, of_mmpretrain])
@pytest.mark.parametrize("head", list_pools())
def test_a_map_or_a_reason(head: str, build, tmp_path: Path) -> None:
    view = ModelView.of(build(head, tmp_path))
    x = torch.nn.functional.interpolate(torch.randn(1, 3, 12, 12), view.preprocessing.input_size, mode="bilinear")
    reasons: dict[str, str] = {}
    for method in METHODS:
        try:
            found = explain(view, x, method, target=1, **CHEAP.get(method, {}))
        except NotApplicableError as error:
            reasons[method] = str(error)
            continue
        assert torch.as_tensor(found.map).isfinite().all(), method
        assert torch.as_tensor(found.map).any(), method
    assert all(reason and "\n" not in reason for reason in reasons.values())
