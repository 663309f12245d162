"""AlexNet with batch norm as an MMPretrain backbone."""

import pytest
import timm
import torch

pytest.importorskip("mmpretrain")

from mmpretrain.registry import MODELS

import covpool_plugins
from covpool_plugins.errors import OptionError


def build(**options):
    return MODELS.build(dict(type="covpool_plugins.AlexNetBN", **options))


def test_the_same_network_as_timms():
    ours, plain = build().eval(), timm.create_model("alexnet", num_classes=0, global_pool="").eval()
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 64, 64)
    (last,) = ours(x)
    assert torch.equal(last, plain(x)) and last.shape == (2, 256, 3, 3)


def test_stages_and_freezing():
    model = build(out_indices=(1, -1), frozen_stages=1)
    assert [m.shape[1] for m in model(torch.randn(2, 3, 64, 64))] == [192, 256]
    model.train()
    assert not model.layer1.training and not model.layer2.norm.training and model.layer3.training
    trained = {name.partition(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"layer3", "layer4", "layer5"}
    assert not build(norm_eval=True).train().layer5.norm.training


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(out_indices=5), "out_indices must be stages from -5 to 4, got 5"),
        (dict(frozen_stages=7), "frozen_stages must be a stage from -1 to 4, got 7"),
        (dict(norm_eval="no"), "norm_eval must be True or False, got 'no'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(OptionError, match=message):
        covpool_plugins.AlexNetBN(**options)
