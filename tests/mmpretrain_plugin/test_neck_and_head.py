"""The neck and the head on what MMPretrain's backbones return."""

import re
import sys
from contextvars import ContextVar

import pytest
import torch
from mmengine.analysis import FlopAnalyzer
from mmpretrain.registry import METRICS, MODELS
from mmpretrain.structures import DataSample

import covpool_plugins
from covpool_plugins import CovariancePooling, SecondOrderClsHead, list_pools, mmpretrain_plugin
from covpool_plugins.errors import MissingExtraError, OptionError, ShapeError, UnknownNameError
from covpool_plugins.linalg import resolve_method
from covpool_plugins.mmpretrain_plugin import covariance_pooling, heads

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


@pytest.fixture
def no_neck_yet(monkeypatch):
    monkeypatch.setattr(covariance_pooling, "_latest", ContextVar("latest", default=lambda: None))


HEAD = dict(type="covpool_plugins.SecondOrderClsHead", num_classes=5)
NECK = dict(type="covpool_plugins.CovariancePooling", in_channels=512, reduce_channels=8)


@pytest.mark.parametrize("channels, vectorize", [(512, "full"), ([256, 512], "triu")])
def test_the_head_takes_the_width_of_the_neck(channels, vectorize):
    neck = CovariancePooling(in_channels=channels, vectorize=vectorize, reduce_channels=8)
    model = classifier(neck, HEAD)
    head = model.head
    assert head.in_channels == head.fc.in_features == neck.out_channels
    assert f"out_channels={neck.out_channels}" in str(neck)
    assert type(head.fc) is torch.nn.Linear  # optimizers and MMDistributedDataParallel take no lazy one
    model.init_weights()
    assert head.fc.weight.std().item() == pytest.approx(0.01, rel=0.1)  # as LinearClsHead
    assert model(random(2, 3, 64, 64)).shape == (2, 5)


def test_every_model_that_has_a_neck(no_neck_yet):
    """A list of necks, several heads, a retriever: all build the neck before the head."""
    encoder = dict(type="mmpretrain.ResNet", depth=18)
    listed = classifier([dict(NECK, in_channels=[256, 512])], HEAD)
    tasks = dict(type="mmpretrain.MultiTaskHead", task_heads=dict(a=HEAD, b=dict(HEAD, num_classes=2)))
    many = classifier(NECK, tasks)
    retriever = MODELS.build(
        dict(type="mmpretrain.ImageToImageRetriever", image_encoder=[encoder, NECK], head=HEAD, prototype=random(3, 36))
    )
    heads = [listed.head, *many.head.task_heads.values(), retriever.head]
    assert [head.fc.in_features for head in heads] == [72, 36, 36, 36]
    for model in (listed, many, retriever):
        model.init_weights()
    images = random(2, 3, 64, 64)
    assert listed(images).shape == (2, 5)
    assert {task: scores.shape for task, scores in many(images).items()} == dict(a=(2, 5), b=(2, 2))
    labels = [DataSample().set_gt_label(label) for label in (0, 1)]
    assert retriever(images, labels, mode="loss")["loss"].isfinite()


def test_a_head_that_is_built_before_its_neck(no_neck_yet):
    head = MODELS.build(HEAD)
    weight = head.fc.weight
    with pytest.raises(
        OptionError, match=r"give in_channels, the out_channels of the neck \(print\(neck\) shows it\)$"
    ):
        head.init_weights()
    model = classifier(CovariancePooling(in_channels=512, reduce_channels=8), head)
    model.init_weights()
    assert head.fc.weight is weight  # an optimizer may have it
    assert weight.shape == (5, 36) and type(head.fc) is torch.nn.Linear and head.in_channels == 36
    assert weight.std().item() == pytest.approx(0.01, rel=0.2)
    assert model(random(2, 3, 64, 64)).shape == (2, 5)


def test_a_head_alone_takes_the_width_of_its_input(no_neck_yet):
    head = SecondOrderClsHead(num_classes=5)
    assert head((random(2, 6), random(2, 4))).shape == (2, 5)
    assert head.fc.in_features == head.in_channels == 10
    assert torch.equal(head(random(3, 10)), head((random(3, 10),)))
    with pytest.raises(ShapeError, match="gives 11 numbers per image, not 10"):
        head(random(3, 11))


def test_heads_that_do_not_fit_the_neck(monkeypatch):
    said = []
    monkeypatch.setattr(heads, "print_log", lambda message, *where: said.append(message))
    average = dict(type="mmpretrain.GlobalAveragePooling")
    assert classifier(average, dict(HEAD, in_channels=768))(random(2, 3, 64, 64)).shape == (2, 5)
    said.clear()  # there may be a neck of an earlier test
    for neck in (NECK, [NECK]):
        model = classifier(neck, dict(HEAD, in_channels=2048))
        assert "in_channels is 2048, the neck that was built last gives 36 numbers per image" in said.pop()
        with pytest.raises(ShapeError, match="36 numbers per image, not 2048; set in_channels=36"):
            model(random(2, 3, 64, 64))
    kept = CovariancePooling(8)
    with pytest.raises(ShapeError, match="gives 768 numbers per image, not 36; set in_channels=768"):
        classifier(average, HEAD)(random(2, 3, 64, 64))
    assert kept.out_channels == 36


@pytest.mark.parametrize("head", ["ArcFaceClsHead", "StackedLinearClsHead", "LinearClsHead"])
def test_heads_of_mmpretrain_take_the_printed_width(head):
    neck = MODELS.build(NECK)
    (width,) = re.findall(r"out_channels=(\d+)", str(neck))
    cfg = dict(type=f"mmpretrain.{head}", num_classes=3, in_channels=int(width))
    model = classifier(neck, dict(cfg, mid_channels=[7]) if head == "StackedLinearClsHead" else cfg)
    labels = [DataSample().set_gt_label(label) for label in (0, 1)]
    model(random(2, 3, 64, 64), labels, mode="loss")["loss"].backward()
    assert next(model.neck.parameters()).grad.abs().sum() > 0


@pytest.mark.parametrize("loss", ["AsymmetricLoss", "FocalLoss", "CrossEntropyLoss"])
def test_several_labels(loss):
    torch.manual_seed(0)
    options = dict(use_sigmoid=True) if loss == "CrossEntropyLoss" else {}
    head = dict(type="covpool_plugins.SecondOrderMultiLabelHead", num_classes=4, loss=dict(type=loss, **options))
    model = classifier(dict(NECK, in_channels=[256, 512]), head)
    model.init_weights()
    assert (model.head.in_channels, model.head.fc.weight.shape) == (72, (4, 72))
    truth = [[0, 2], [], [3]]
    samples = [DataSample().set_gt_score(torch.tensor([float(k in labels) for k in range(4)])) for labels in truth]
    images = random(3, 3, 64, 64)
    model(images, samples, mode="loss")["loss"].backward()
    assert all(parameter.grad.isfinite().all() and parameter.grad.any() for parameter in model.head.parameters())
    predicted = model.eval()(images, samples, mode="predict")
    scores = torch.stack([sample.pred_score for sample in predicted])
    torch.testing.assert_close(scores, model(images).sigmoid())
    for metric in ("AveragePrecision", "MultiLabelMetric"):
        evaluator = METRICS.build(dict(type=metric))
        evaluator.process(None, [sample.to_dict() for sample in predicted])
        assert evaluator.evaluate(3)


@pytest.mark.parametrize("pool", list_pools())
def test_every_operation_that_grows_with_the_matrices_is_counted(pool):
    neck = CovariancePooling(24, pool=pool).eval()
    counter = FlopAnalyzer(neck, (random(1, 24, 5, 5),)).unsupported_ops_warnings(False)
    counted = counter.by_operator()
    assert (counted["matmul"] > 0) == (pool != "gap")
    assert not any("Python" in name or name == "aten::linalg_eigh" for name in counter.unsupported_ops())


def test_counts_are_those_of_the_algorithms():
    def counts(pool, **options):
        neck = CovariancePooling(24, pool=pool, **options).eval()
        return FlopAnalyzer(neck, (random(1, 24, 7, 7),)).unsupported_ops_warnings(False).by_operator()

    assert counts("bcnn") == dict(matmul=24 * 24 * 49)
    steps = [counts("isqrt", iterations=n, reduce_channels=None)["matmul"] for n in (3, 4, 5)]
    assert steps[2] - steps[1] == steps[1] - steps[0] == 3 * 24**3
    assert counts("exact", reduce_channels=None)["linalg_eigh"] == 4.5 * 24**3


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
        (lambda: CovariancePooling([8, 8])((random(2, 8, 4, 4),)), ShapeError, "is for 2 stages, the .* returned 1"),
        (lambda: CovariancePooling(8)(()), ShapeError, "is for 1 stages, the backbone returned 0"),
        (lambda: CovariancePooling(8)(random(2, 8)), ShapeError, r"gave \(2, 8\); .* out_type='raw', .*=False, .*=-1$"),
        (lambda: SecondOrderClsHead(3, 10)(random(2, 36)), ShapeError, "36 .*, not 10; set in_channels=36$"),
        (lambda: SecondOrderClsHead(3, 10)(random(2, 10, 4, 4)), ShapeError, r"vectors .* got \(2, 10, 4, 4\)"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
