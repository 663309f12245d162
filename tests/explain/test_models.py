"""Which models are explained: what training wraps around them, and what makes probabilities of their scores."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from support.explanations import CHEAP
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import covpool_plugins
from covpool_plugins.errors import OptionError
from covpool_plugins.explain import ModelView, deletion_insertion, explain, metrics
from covpool_plugins.explain.model_view import disposable
from covpool_plugins.explain.models import is_multi_label


class Trainer(nn.Module):
    """As a Lightning module holds its model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.criterion = model, nn.CrossEntropyLoss()

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class Scaled(Trainer):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.model(x)


class WithoutForward(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.net = model


class OwnHead(nn.Module):
    """A backbone of timm's with a classifier of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.fc = timm.create_model("test_resnet", num_classes=0), nn.Linear(64, 3)
        self.fc = nn.Linear(self.backbone.num_features, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.backbone(x))


WRAPPERS = {
    "compiled": torch.compile,
    "parallel": nn.DataParallel,
    "averaged": AveragedModel,
    "ema": ModelEmaV3,
    "trainer": Trainer,
    "two layers": lambda model: nn.DataParallel(Trainer(torch.compile(model))),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_what_training_wraps_around_a_model_is_taken_off(name: str, small_net, image: Tensor) -> None:
    net = small_net()
    wrapped = WRAPPERS[name](net.train())
    np.testing.assert_array_equal(explain(wrapped, image, target=1).map, explain(net, image, target=1).map)
    assert net.training and net.head.training


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (Scaled, r"Scaled does not give the scores of the SmallNet in it: pass model\.model"),
        (WithoutForward, r"WithoutForward does not give the scores of the SmallNet in it: pass model\.net"),
        (lambda net: torch.jit.trace(net, torch.zeros(1, 3, 32, 32)), "scripted or traced"),
        (lambda net: net.state_dict(), "must be a torch.nn.Module or a ModelView, got OrderedDict"),
    ],
)
def test_what_does_more_is_named(wrap, message: str, small_net, image: Tensor) -> None:
    with torch.no_grad(), pytest.raises(OptionError, match=message):
        explain(wrap(small_net("gap")), image)


def test_a_classifier_of_ones_own_on_a_backbone(image: Tensor) -> None:
    assert explain(OwnHead().eval(), torch.randn(1, 3, 64, 64), "gradient", 2).map.any()


@pytest.mark.parametrize(("name", "size"), [("mixer_s32_224", (64, 32)), ("so_vit_7", (32, 32))])
def test_pictures_have_the_size_that_a_model_was_built_for(name: str, size: tuple[int, int]) -> None:
    model = timm.create_model(name, num_classes=3, img_size=size)
    assert explain(model, np.zeros((48, 48), np.uint8), "gradient", 1).map.shape == size
    with pytest.raises(ValueError, match=r"(?s)does not take an input \(1, 3, 48, 48\)|built for images of 32x32"):
        explain(model, torch.randn(3, 48, 48), "gradient")


@pytest.mark.parametrize("method", ["contribution", "gradient"])
def test_the_callers_mode_changes_nothing(method: str, small_net, image: Tensor) -> None:
    net = small_net()
    expected = explain(net, image, method, 1).map
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            np.testing.assert_array_equal(explain(net, image, method, 1).map, expected)
            np.testing.assert_array_equal(explain(ModelView.of(net), image.clone(), method, 1).map, expected)


def test_what_changes_in_a_copy_of_a_view_stays_there(small_net, image: Tensor) -> None:
    """The pool in float64 follows the weights of its own view."""
    view = ModelView.of(small_net("lrbp"))
    before = explain(view, image, target=1).map
    own = disposable(view)
    assert all(a is b for a, b in zip(own.model.parameters(), view.model.parameters(), strict=True))
    for module in own.pool.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(2 * parameter, requires_grad=False))
    changed = explain(own, image, target=1)
    assert changed.completeness_gap < 1e-4 and np.abs(changed.map - before).max() > 0.1 * np.abs(before).max()
    np.testing.assert_array_equal(explain(view, image, target=1).map, before)


@pytest.fixture
def binary() -> nn.Module:
    torch.manual_seed(0)
    model = covpool_plugins.create_model("test_resnet", num_classes=1, reduce_channels=8)
    return model.eval()


def test_one_score_has_the_probability_of_its_sigmoid(binary: nn.Module) -> None:
    x = torch.randn(1, 3, 64, 64)
    score = binary(x).item()
    view = ModelView.of(binary)
    explanation = explain(view, x, "rise", masks=200)
    assert view.activation == explanation.activation == "sigmoid"
    assert explanation.probability == pytest.approx(torch.tensor(score).sigmoid().item())
    assert "(sigmoid)" in explanation.caption()[0]
    assert np.ptp(explanation.map) > 0
    areas = deletion_insertion(view, x, explanation.map, 0, steps=2, orders=1)
    assert all(0 < area < 1 for area in areas) and areas.deletion != areas.random_deletion
    assert metrics(view, view.forward_pass(x), explanation, steps=0)["entropy"] is not None
    with pytest.raises(OptionError, match="activation must be sigmoid for a model of one class score, got 'softmax'"):
        explain(binary, x, activation="softmax")


def test_labels_that_do_not_exclude_each_other(small_net, image: Tensor) -> None:
    """Two labels can both be there: each probability is its own sigmoid, and RISE follows it."""
    net = small_net()
    with torch.no_grad():
        net.head.fc.bias[:] = torch.tensor([6.0, 6.0, -6.0, -6.0, -6.0])
    softmax, sigmoid = (explain(net, image, "rise", 0, activation=name, **CHEAP["rise"]) for name in (None, "sigmoid"))
    assert softmax.probability < 0.9 and sigmoid.probability > 0.95
    assert sigmoid.map.min() > softmax.map.max()
    with pytest.raises(OptionError, match="activation must be one of softmax, sigmoid, got 'relu'"):
        explain(net, image, activation="relu")


def test_clips_frame_by_frame() -> None:
    """The vectors of frames are averaged: the clip's score without its bias is the mean of the frames' sums."""
    torch.manual_seed(0)
    options = dict(num_classes=3, reduce_channels=8)
    model = covpool_plugins.create_model("test_resnet", frames=4, **options).eval()
    clip = torch.randn(1, 4, 3, 64, 64)
    explanations = explain(model, clip, target=1)
    assert len(explanations) == 4 and model.frames == 4
    score = model(clip)[0, 1] - model.get_classifier().bias[1]
    assert np.mean([e.map.sum() for e in explanations]) == pytest.approx(score.item(), rel=1e-4)
    with pytest.raises(OptionError, match="joins the frames of a clip"):
        explain(covpool_plugins.create_model("test_resnet", "temporal", frames=4, **options), clip)


@pytest.mark.parametrize("head", ["MultiLabelClsHead", "MultiLabelLinearClsHead", "CSRAClsHead", "LinearClsHead"])
def test_heads_of_mmpretrain_that_see_several_labels(head: str) -> None:
    """A multi-label head says so itself, whatever it is called."""
    heads = pytest.importorskip("mmpretrain.models.heads")
    model = nn.Module()
    options = {"num_classes": 3, "in_channels": 4} if "Linear" in head else {}
    options |= {"num_classes": 3, "in_channels": 4, "num_heads": 1, "lam": 0.1} if head == "CSRAClsHead" else {}
    model.head = getattr(heads, head)(**options)
    assert is_multi_label(model) == (head != "LinearClsHead")
