"""Every method on every head, in timm and in MMPretrain: a finite map, or one line that says why there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.explanations import CHEAP, covariance_neck, mmpretrain_config
from torch import nn

import covpool_plugins
from covpool_plugins.errors import NotApplicableError
from covpool_plugins.explain import EXPLANATIONS, ModelView, explain, load_mmpretrain_model
from covpool_plugins.pooling import list_pools

pytestmark = pytest.mark.slow


def of_timm(pool: str, options: dict[str, int], folder: Path) -> nn.Module:
    return covpool_plugins.create_model("test_resnet", pool, num_classes=3, **options)


def of_mmpretrain(pool: str, options: dict[str, int], folder: Path) -> nn.Module:
    pytest.importorskip("mmpretrain")
    neck = covariance_neck(pool=pool, reduce_channels=options.get("reduce_channels"))
    config = mmpretrain_config(folder, neck=neck, head="SecondOrderClsHead", width=None, scale=64, side=64)
    return load_mmpretrain_model(config)


@pytest.mark.parametrize("build", [of_timm, of_mmpretrain])
@pytest.mark.parametrize("pool", list_pools())
def test_a_map_or_a_reason(pool: str, build, tmp_path: Path) -> None:
    view = ModelView.of(build(pool, {} if pool == "gap" else {"reduce_channels": 16}, tmp_path))
    x = torch.nn.functional.interpolate(torch.randn(1, 3, 12, 12), view.preprocessing.input_size, mode="bilinear")
    for method in EXPLANATIONS:
        try:
            map = torch.as_tensor(explain(view, x, method, target=1, **CHEAP.get(method, {})).map)
            assert map.isfinite().all() and map.any(), method
        except NotApplicableError as error:
            assert str(error) and "\n" not in str(error)
