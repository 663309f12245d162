"""The neck and the head on what MMPretrain's backbones return."""

import sys

import pytest
import torch
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

import covpool_plugins
from covpool_plugins import CovariancePooling, SecondOrderClsHead, list_pools, mmpretrain_plugin
from covpool_plugins.errors import MissingExtraError, OptionError, ShapeError, UnknownNameError

BACKBONES = {
    "ResNet": (dict(type="ResNet", depth=18, out_indices=(3,)), dict(in_channels=512)),
    "ResNet stages": (dict(type="ResNet", depth=18, out_indices=(1, 3)), dict(in_channels=[128, 512])),
    "ResNet last stage": (dict(type="ResNet", depth=18, out_indices=(1, 3)), dict(in_channels=512)),
    "ViT tokens": (
        dict(type="VisionTransformer", arch="deit-tiny", img_size=64, out_type="raw"),
        dict(in_channels=192, input_fmt="NLC", num_prefix_tokens=1),
    ),
    "ViT map": (
        dict(type="VisionTransformer", arch="deit-tiny", img_size=64, out_type="featmap"),
        dict(in_channels=192),
    ),
    "timm ResNet": (dict(type="TIMMBackbone", model_name="resnet10t"), dict(in_channels=512)),
    "timm ViT": (
        dict(type="TIMMBackbone", model_name="vit_tiny_patch16_224", img_size=64, depth=2),
        dict(in_channels=192, input_fmt="NLC", num_prefix_tokens=1),
    ),
    "timm Swin": (
        dict(type="TIMMBackbone", model_name="swin_tiny_patch4_window7_224", img_size=64, depths=(1, 1, 1, 1)),
        dict(in_channels=768, input_fmt="NHWC"),
    ),
}


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("backbone, options", BACKBONES.values(), ids=BACKBONES)
def test_a_classifier_trains_on_every_layout(backbone, options):
    torch.manual_seed(0)
    stages = len(options["in_channels"]) if isinstance(options["in_channels"], list) else 1
    model = MODELS.build(
        dict(
            type="mmpretrain.ImageClassifier",
            backbone=dict(backbone, _scope_="mmpretrain"),
            neck=dict(type="covpool_plugins.CovariancePooling", reduce_channels=8, **options),
            head=dict(type="covpool_plugins.SecondOrderClsHead", num_classes=3, feature_channels=[8] * stages),
        )
    )
    images, samples = random(4, 3, 64, 64), [DataSample().set_gt_label(label) for label in (0, 1, 2, 0)]
    model(images, samples, mode="loss")["loss"].backward()
    assert {n for n, p in model.neck.named_parameters() if p.grad is None or p.grad.abs().sum() == 0} == set()
    assert model.head.fc.weight.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.backbone.parameters() if p.grad is not None)
    assert any(p.grad.abs().sum() > 0 for p in model.backbone.parameters() if p.grad is not None)
    assert [sample.pred_score.shape for sample in model(images, mode="predict")] == [(3,)] * 4


@pytest.mark.parametrize("method", list_pools())
def test_every_pool_is_a_neck(method):
    neck = MODELS.build(dict(type="CovariancePooling", method=method, in_channels=16, _scope_="mmpretrain")).eval()
    last = random(3, 16, 6, 6)
    from_tensor = neck(last)
    from_stages = neck((random(3, 4, 12, 12), last))
    assert from_tensor.shape == (3, neck.out_channels)
    assert isinstance(from_stages, tuple) and len(from_stages) == 1
    assert torch.equal(from_stages[0], from_tensor)
    assert torch.equal(from_tensor, neck.pool(last))


@pytest.mark.parametrize("type_name", ["mmpretrain.CovariancePooling", "covpool_plugins.CovariancePooling"])
def test_both_names_build_the_same_class(type_name):
    assert type(MODELS.build(dict(type=type_name, in_channels=8))) is CovariancePooling


def test_the_short_names_are_those_of_the_plugin():
    assert sorted(covpool_plugins.MMPRETRAIN_CLASSES) == sorted(mmpretrain_plugin.__all__)
    for name in mmpretrain_plugin.__all__:
        assert getattr(covpool_plugins, name) is getattr(mmpretrain_plugin, name)
    with pytest.raises(AttributeError, match="'CovariancePoolin'; did you mean 'CovariancePooling'"):
        _ = covpool_plugins.CovariancePoolin
    assert not hasattr(covpool_plugins, "__wrapped__") and not hasattr(covpool_plugins, "nothing_like_it")


def test_without_mmpretrain_the_extra_is_named(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("covpool_plugins.mmpretrain_plugin")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mmpretrain", None)
    monkeypatch.setitem(sys.modules, "mmpretrain.models", None)
    with pytest.raises(MissingExtraError, match=r"covpool_plugins\[mmpretrain\]"):
        _ = covpool_plugins.CovariancePooling


@pytest.mark.parametrize("vectorize", ["triu", "full"])
@pytest.mark.parametrize("channels", [8, [8, 8, 8]], ids=["one stage", "three stages"])
def test_the_head_knows_the_width_of_the_neck(channels, vectorize):
    stages = channels if isinstance(channels, list) else [channels]
    neck = CovariancePooling(in_channels=channels, vectorize=vectorize)
    head = SecondOrderClsHead(num_classes=5, feature_channels=channels, vectorize=vectorize)
    assert head.in_channels == head.fc.in_features == neck.out_channels
    assert head(neck(tuple(random(2, c, 5, 5) for c in stages))).shape == (2, 5)


def test_the_head_classifies_a_tensor_as_a_tuple():
    head = SecondOrderClsHead(num_classes=5, in_channels=10)
    assert torch.equal(head(random(3, 10)), head((random(3, 10),)))


@pytest.mark.parametrize(
    "build, error, message",
    [
        (lambda: CovariancePooling(8, method="svdpad"), UnknownNameError, "'svdpad'; available: svdpade"),
        (lambda: CovariancePooling(8, iteration=3), OptionError, "iteration"),
        (lambda: CovariancePooling(0), OptionError, "in_channels .* got 0"),
        (lambda: CovariancePooling([]), OptionError, r"in_channels .* got \[\]"),
        (lambda: CovariancePooling(2.5), OptionError, "in_channels .* got 2.5"),
        (lambda: SecondOrderClsHead(3, feature_channels=-3), OptionError, "feature_channels .* got -3"),
        (lambda: SecondOrderClsHead(3, feature_channels=[8, 0]), OptionError, r"feature_channels .* got \[8, 0\]"),
        (lambda: SecondOrderClsHead(3, feature_channels=True), OptionError, "feature_channels .* got True"),
        (lambda: SecondOrderClsHead(3, in_channels=-3), OptionError, "in_channels .* got -3"),
        (lambda: SecondOrderClsHead(3), OptionError, "one of in_channels and feature_channels"),
        (lambda: SecondOrderClsHead(3, 10, feature_channels=4), OptionError, "in_channels=10 and feature_channels=4"),
        (lambda: SecondOrderClsHead(3, feature_channels=4, vectorize="tril"), OptionError, "vectorize .* 'tril'"),
    ],
)
def test_bad_options(build, error, message):
    with pytest.raises(error, match=message):
        build()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: CovariancePooling(8)((random(2, 16, 4, 4),)), r"8 channels, got shape \(2, 16, 4, 4\)"),
        (lambda: CovariancePooling([8, 8])((random(2, 8, 4, 4),)), "lists 2 stages, the backbone returned 1"),
        (
            lambda: SecondOrderClsHead(3, feature_channels=4)((random(2, 36),)),
            "gives 36 .* takes 10; .*feature_channels=8$",
        ),
        (lambda: SecondOrderClsHead(3, 10)((random(2, 36),)), "gives 36 .* takes 10; .* in_channels=36$"),
        (
            lambda: SecondOrderClsHead(3, feature_channels=4, vectorize="full")((random(2, 36),)),
            "gives 36 .* takes 16; .*feature_channels=6$",
        ),
        (
            lambda: SecondOrderClsHead(3, feature_channels=4)((random(2, 64),)),
            "gives 64 .* takes 10; .*feature_channels=8, vectorize='full'$",
        ),
        (
            lambda: SecondOrderClsHead(3, feature_channels=4)((random(2, 37),)),
            "gives 37 .*in_channels=37 instead of feature_channels$",
        ),
        (
            lambda: SecondOrderClsHead(3, feature_channels=[4, 4])((random(2, 36),)),
            "gives 36 .*in_channels=36 instead of feature_channels$",
        ),
        (lambda: SecondOrderClsHead(3, 10)((random(2, 10, 4, 4),)), r"expected vectors .* got \(2, 10, 4, 4\)"),
    ],
)
def test_features_that_do_not_fit(call, message):
    with pytest.raises(ShapeError, match=message):
        call()
