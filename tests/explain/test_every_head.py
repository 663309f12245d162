"""Every method on every head, in timm and in MMPretrain: a finite map, or one line that says why there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.explanations import CHEAP, mmpretrain_config
from torch import nn

import covpool_plugins
from covpool_plugins.errors import NotApplicableError
from covpool_plugins.explain import EXPLANATIONS, ModelView, explain, load_mmpretrain_model
from covpool_plugins.pooling import list_pools

WIDTH = 16

pytestmark = pytest.mark.slow


def of_timm(head: str, folder: Path) -> nn.Module:
    return covpool_plugins.create_model("test_resnet", head, num_classes=3, **width(head))


def of_mmpretrain(head: str, folder: Path) -> nn.Module:
    pytest.importorskip("mmpretrain")
    neck = "type='covpool_plugins.CovariancePooling', in_channels=64, " + ", ".join(
        f"{key}={value!r}" for key, value in {"method": head, **width(head)}.items()
    )
    return load_mmpretrain_model(
        mmpretrain_config(folder, neck=neck, head="SecondOrderClsHead", width=None, scale=64, side=64)
    )


def width(head: str) -> dict[str, int]:
    return {} if head == "gap" else {"reduce_channels": WIDTH}


@pytest.mark.parametrize("build", [of_timm, of_mmpretrain])
@pytest.mark.parametrize("head", list_pools())
def test_a_map_or_a_reason(head: str, build, tmp_path: Path) -> None:
    view = ModelView.of(build(head, tmp_path))
    x = torch.nn.functional.interpolate(torch.randn(1, 3, 12, 12), view.preprocessing.input_size, mode="bilinear")
    reasons: dict[str, str] = {}
    for method in EXPLANATIONS:
        try:
            explanation = explain(view, x, method, target=1, **CHEAP.get(method, {}))
        except NotApplicableError as error:
            reasons[method] = str(error)
            continue
        assert torch.as_tensor(explanation.map).isfinite().all(), method
        assert torch.as_tensor(explanation.map).any(), method
    assert all(reason and "\n" not in reason for reason in reasons.values())
