"""A class token beside the pooled vector has a share of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import covpool_plugins
from covpool_plugins.errors import NotApplicableError
from covpool_plugins.explain import ModelView, explain

METHODS = ["contribution", "eigen", "integrated_head", "channel_pairs"]


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    made = covpool_plugins.create_model("test_vit", "svdpade", fuse_class_token=True, num_classes=4)
    nn.init.normal_(made.head.fc.weight), nn.init.normal_(made.head.fc.bias)
    return made.eval()


@pytest.fixture
def picture() -> Tensor:
    return torch.randn(1, 3, 160, 160, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("method", METHODS)
def test_shares_and_token_sum_to_the_score(method: str, net: nn.Module, picture: Tensor, tmp_path: Path) -> None:
    net, picture = net.double(), picture.double()
    explanation = explain(net, picture, method, target=2)
    with torch.no_grad():
        score = (net(picture)[0, 2] - net.head.fc.bias[2]).item()
        token = net.head.norm(net.forward_features(picture))[0, 0] @ net.head.fc.weight[2, -64:]
    assert explanation.extras["class_token"] == pytest.approx(token.item(), rel=1e-8)
    assert explanation.completeness_target == pytest.approx(score, rel=1e-8)
    size = np.abs(explanation.map).sum()
    assert abs(explanation.map.sum() + token.item() - score) < 1e-8 * size
    assert explanation.completeness_gap < 1e-8 * size / abs(score)
    assert f"class token {token.item():+.3g} = {score:+.3g}" in explanation.caption()[1]
    assert np.load(explanation.save(tmp_path, "a")[1])["class_token"] == explanation.extras["class_token"]


def test_the_token_does_not_change_the_map(net: nn.Module, picture: Tensor) -> None:
    plain = covpool_plugins.create_model("test_vit", "svdpade", num_classes=4).eval()
    state = net.state_dict()
    width = plain.head.fc.in_features
    plain.load_state_dict(state | {"head.fc.weight": state["head.fc.weight"][:, :width]})
    expected, map = (explain(model, picture, "contribution", target=1) for model in (plain, net))
    np.testing.assert_allclose(map.map, expected.map, rtol=1e-9)
    assert "class_token" not in expected.extras and "class token" not in expected.caption()[1]


class Scaled(nn.Module):
    def forward(self, vector: Tensor) -> Tensor:
        return 1.5 * vector


def test_more_than_a_linear_layer_is_still_refused(net: nn.Module, picture: Tensor) -> None:
    net.head.dropout = Scaled()
    view = ModelView.of(net)
    for method in METHODS:
        with pytest.raises(NotApplicableError, match=r"^the model has more than a linear layer behind its pool"):
            explain(view, picture, method)


def test_one_forward_pass_for_one_input(net: nn.Module, picture: Tensor) -> None:
    view, count = ModelView.of(net), []
    view.classifier.register_forward_hook(lambda *_: count.append(1))
    first, *_ = (explain(view, picture, method, target=0).map for method in METHODS)
    assert len(count) == 1
    picture[..., :80] *= 0.5  # the same tensor with other values
    assert np.abs(explain(view, picture, "contribution", target=0).map - first).max() > 1e-3 * np.abs(first).max()
    assert len(count) == 2
    with torch.inference_mode():
        assert explain(view, picture.clone(), "energy", target=0).map.shape == (10, 10)
