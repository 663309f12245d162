"""The neck and the head on what MMPretrain's backbones return."""

import sys

import pytest
import torch
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

import covpool_plugins
from covpool_plugins import CovariancePooling, SecondOrderClsHead, list_pools, mmpretrain_plugin
from covpool_plugins.errors import MissingExtraError, OptionError, ShapeError, UnknownNameError
from covpool_plugins.linalg import resolve_method

BACKBONES = {
    "ResNet stages": (dict(type="ResNet", depth=18, out_indices=(1, 3)), dict(in_channels=[128, 512])),
    "ResNet last stage": (dict(type="ResNet", depth=18, out_indices=(1, 3)), dict(in_channels=512)),
    "ViT tokens": (
        dict(type="VisionTransformer", arch="deit-tiny", img_size=64, out_type="raw"),
        dict(in_channels=192, input_fmt="NLC", num_prefix_tokens=1),
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
    model = MODELS.build(
        dict(
            type="mmpretrain.ImageClassifier",
            backbone=dict(backbone, _scope_="mmpretrain"),
            neck=dict(type="covpool_plugins.CovariancePooling", reduce_channels=8, **options),
            head=dict(type="covpool_plugins.SecondOrderClsHead", num_classes=3),
        )
    )
    images, samples = random(4, 3, 64, 64), [DataSample().set_gt_label(label) for label in (0, 1, 2, 0)]
    model(images, samples, mode="loss")["loss"].backward()
    assert {n for n, p in model.neck.named_parameters() if p.grad is None or p.grad.abs().sum() == 0} == set()
    assert model.head.fc.weight.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.backbone.parameters() if p.grad is not None)
    assert any(p.grad.abs().sum() > 0 for p in model.backbone.parameters() if p.grad is not None)
    assert [sample.pred_score.shape for sample in model(images, mode="predict")] == [(3,)] * 4


def test_options_of_the_pool():
    assert CovariancePooling(8, pool="gap", reduce_channels=None, iterations=None).out_channels == 8
    assert CovariancePooling(8, pool="isqrt", reduce_channels=None).out_channels == 36
    neck = CovariancePooling(8, pool="ibcnn", method="newton_schulz_lyapunov")
    assert (neck.pool.pool_type, neck.pool.method) == ("ibcnn", resolve_method("newton_schulz_lyapunov"))


@pytest.mark.parametrize("pool", list_pools())
def test_every_pool_is_a_neck(pool):
    neck = MODELS.build(dict(type="CovariancePooling", pool=pool, in_channels=16, _scope_="mmpretrain")).eval()
    last = random(3, 16, 6, 6)
    from_tensor = neck(last)
    from_stages = neck((random(3, 4, 12, 12), last))
    assert from_tensor.shape == (3, neck.out_channels)
    assert isinstance(from_stages, tuple) and len(from_stages) == 1
    assert torch.equal(from_stages[0], from_tensor)
    assert torch.equal(from_tensor, neck.pool(last))


def test_the_short_names_are_those_of_the_plugin():
    assert sorted(covpool_plugins.MMPRETRAIN_CLASSES) == sorted(mmpretrain_plugin.__all__)
    for name in mmpretrain_plugin.__all__:
        assert getattr(covpool_plugins, name) is getattr(mmpretrain_plugin, name)
    for name in ("mmpretrain.CovariancePooling", "covpool_plugins.CovariancePooling"):
        assert type(MODELS.build(dict(type=name, in_channels=8))) is CovariancePooling
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


def classifier(neck, head, **backbone):
    backbone = dict(type="ResNet", depth=18, out_indices=(2, 3), _scope_="mmpretrain") | backbone
    return MODELS.build(dict(type="mmpretrain.ImageClassifier", backbone=backbone, neck=neck, head=head))


@pytest.mark.parametrize("channels, vectorize", [(512, "full"), ([256, 512], "triu")])
def test_the_head_takes_the_width_of_the_neck(channels, vectorize):
    neck = CovariancePooling(in_channels=channels, vectorize=vectorize, reduce_channels=8)
    model = classifier(neck, dict(type="covpool_plugins.SecondOrderClsHead", num_classes=5))
    head = model.head
    assert head.in_channels == head.fc.in_features == neck.out_channels
    assert type(head.fc) is torch.nn.Linear  # optimizers and MMDistributedDataParallel take no lazy one
    model.init_weights()
    assert head.fc.weight.std().item() == pytest.approx(0.01, rel=0.1)  # as LinearClsHead
    assert model(random(2, 3, 64, 64)).shape == (2, 5)


def test_a_head_alone_takes_the_width_of_its_input():
    head = SecondOrderClsHead(num_classes=5)
    assert head((random(2, 6), random(2, 4))).shape == (2, 5)
    assert head.fc.in_features == 10
    assert torch.equal(head(random(3, 10)), head((random(3, 10),)))


def test_heads_that_do_not_fit_the_neck():
    neck, head = dict(type="mmpretrain.GlobalAveragePooling"), dict(type="covpool_plugins.SecondOrderClsHead")
    head["num_classes"] = 5
    with pytest.raises(OptionError, match="in_channels is needed, the model has the neck GlobalAveragePooling"):
        classifier(neck, head)
    with pytest.raises(OptionError, match="in_channels is needed, the model has no neck"):
        classifier(None, head)
    assert classifier(neck, dict(head, in_channels=768))(random(2, 3, 64, 64)).shape == (2, 5)
    with pytest.raises(ShapeError, match="neck gives 36 numbers per image, in_channels is 2048; leave it out or set"):
        classifier(CovariancePooling(in_channels=512, reduce_channels=8), dict(head, in_channels=2048))


def test_the_class_token_is_classified_beside_the_vector():
    options = dict(input_fmt="NLC", num_prefix_tokens=2, reduce_channels=4)
    neck = CovariancePooling(in_channels=12, cls_token=True, **options).eval()
    tokens = random(3, 18, 12)
    (vector,) = neck((tokens,))
    assert vector.shape == (3, neck.out_channels) == (3, 10 + 12)
    assert torch.equal(vector, torch.cat([neck.pool(tokens), tokens[:, 0]], dim=1))
    assert torch.equal(neck(tokens), vector)
    two = CovariancePooling(in_channels=[12, 12], cls_token=True, **options)
    assert sum(v.shape[1] for v in two((tokens, tokens))) == two.out_channels == 44


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: CovariancePooling(8, pool="svdpad"), UnknownNameError, "'svdpad'; available: svdpade"),
        (lambda: CovariancePooling(8, method="isqrt"), OptionError, "no option 'method'; .* is chosen by pool='isqrt'"),
        (lambda: CovariancePooling(8, pool="gap", reduce_channels=4), OptionError, "reduce_channels"),
        (lambda: CovariancePooling([]), OptionError, r"in_channels .* got \[\]"),
        (lambda: CovariancePooling(2.5), OptionError, "in_channels .* got 2.5"),
        (lambda: CovariancePooling(8, cls_token=True), OptionError, "needs input_fmt='NLC' and num_prefix_tokens"),
        (lambda: CovariancePooling(8, cls_token=1), OptionError, "cls_token .* got 1"),
        (lambda: SecondOrderClsHead(3, in_channels=-3), OptionError, "in_channels .* got -3"),
        (lambda: SecondOrderClsHead(0), OptionError, "num_classes .* got 0"),
        (lambda: CovariancePooling(8)(random(2, 16, 4, 4)), ShapeError, r"in_channels=8, got shape \(2, 16, 4, 4\)"),
        (lambda: CovariancePooling([8, 8])((random(2, 8, 4, 4),)), ShapeError, "lists 2 stages, the .* returned 1"),
        (lambda: SecondOrderClsHead(3, 10)(random(2, 36)), ShapeError, "36 .* is 10; leave it out or set it to 36$"),
        (lambda: SecondOrderClsHead(3, 10)(random(2, 10, 4, 4)), ShapeError, r"vectors .* got \(2, 10, 4, 4\)"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
