"""timm's networks as MMPretrain's backbones, those that timm lacks among them, and So-ViT's head."""

import pytest
import timm
import torch
from mmengine.optim import build_optim_wrapper
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

import covpool_plugins  # noqa: F401  registers alexnet and so_vit_7 with timm
from covpool_plugins import SoViTHead, TIMMBackbone
from covpool_plugins.errors import OptionError, ShapeError

TINY = dict(embed_dim=24, depth=2, num_heads=3, mlp_ratio=2.0, img_size=64)


def images(count=2):
    return torch.randn(count, 3, 64, 64)


def so_vit(pool="mpa", reduce_channels=6, **backbone):
    head = dict(num_classes=3, in_channels=24, pool=pool, reduce_channels=reduce_channels)
    return MODELS.build(
        dict(
            type="mmpretrain.ImageClassifier",
            backbone=dict(type="covpool_plugins.TIMMBackbone", model_name="so_vit_7", **TINY, **backbone),
            head=dict(type="covpool_plugins.SoViTHead", **head),
        )
    )


@pytest.mark.parametrize("kind", ["covpool_plugins.TIMMBackbone", "mmpretrain.TIMMBackbone"])
@pytest.mark.parametrize("name", ["alexnet", "resnet10t"])
def test_a_backbone_is_timms(name, kind):
    ours = MODELS.build(dict(type=kind, model_name=name))
    ours.eval()
    plain = timm.create_model(name, num_classes=0, global_pool="").eval()
    ours.timm_model.load_state_dict(plain.state_dict())
    x = images()
    assert torch.equal(ours(x)[0], plain(x))


@pytest.mark.parametrize("pool, reduced", [("mpa", 6), ("isqrt", (6, 4)), ("svpn", 6), ("crosscov", [6, 4])])
def test_so_vit_is_timms(pool, reduced):
    plain = timm.create_model("so_vit_7", num_classes=3, global_pool=pool, reduce_channels=reduced, **TINY)
    ours = so_vit(pool, reduced).eval()
    state = plain.eval().state_dict()
    width = plain.head.global_pool.out_features
    weight, bias = state.pop("head.fc.weight"), state.pop("head.fc.bias")
    state |= {"head.fc.weight": weight[:, :width], "head.cls_fc.weight": weight[:, width:]}
    state |= {"head.fc.bias": bias, "head.cls_fc.bias": torch.zeros_like(bias)}
    ours.load_state_dict(
        {
            key.replace("global_pool", "pool") if key.startswith("head.") else f"backbone.timm_model.{key}": value
            for key, value in state.items()
        }
    )
    x = images()
    torch.testing.assert_close(ours.head(ours.extract_feat(x)), plain(x))


def test_loss_reaches_every_parameter():
    model = so_vit(drop_path_rate=0.1, with_cp=True).train()
    assert model.backbone.timm_model.grad_checkpointing
    samples = [DataSample().set_gt_label(index % 3) for index in range(4)]
    model(images(4), samples, mode="loss")["loss"].backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    predicted = model.eval()(images(4), mode="predict")
    torch.testing.assert_close(torch.stack([sample.pred_score for sample in predicted]).sum(1), torch.ones(4))


FROZEN = {
    ("so_vit_7", 0): {"blocks.0", "blocks.1", "norm", "patch_embed.backbone.stages"},
    ("so_vit_7", 1): {"blocks.1", "norm"},
    ("resnet10t", 2): {"layer3", "layer4"},
    ("alexnet", 0): {"layer1", "layer2", "layer3", "layer4"},
    ("alexnet", -1): {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"},
}


@pytest.mark.parametrize("name, stages", FROZEN)
def test_frozen_stages_keep_weights_and_statistics(name, stages):
    options = TINY if name == "so_vit_7" else {}
    model = TIMMBackbone(name, frozen_stages=stages, **options)
    model.eval()
    model.train()
    network = model.timm_model
    trained = {key for key, parameter in network.named_parameters() if parameter.requires_grad}
    expected = FROZEN[name, stages] - {"patch_embed.backbone.stages"}
    assert {key for key, _ in network.named_parameters() if key.startswith(tuple(expected))} <= trained
    if (name, stages) != ("so_vit_7", 0):
        assert all(key.startswith(tuple(expected)) for key in trained)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    sum(output.square().mean() for output in model(images(3))).backward()
    changed = {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    assert all(key.startswith(tuple(FROZEN[name, stages])) for key in changed)
    norms = [m for m in TIMMBackbone(name, norm_eval=True, **options).train().modules() if "BatchNorm" in str(type(m))]
    assert norms and not any(norm.training for norm in norms)


@pytest.mark.parametrize("name, depth", [("so_vit_7", 3), ("resnet10t", None), ("vit_tiny_patch16_224", 3)])
def test_layer_wise_learning_rates(name, depth):
    """As timm's own optimizer factory has them; the head's is the whole rate."""
    options = TINY if name == "so_vit_7" else dict(img_size=64, depth=2) if depth else {}
    backbone = dict(type="covpool_plugins.TIMMBackbone", model_name=name, **options)
    head = dict(type="mmpretrain.LinearClsHead", num_classes=2, in_channels=4)
    model = MODELS.build(dict(type="mmpretrain.ImageClassifier", backbone=backbone, head=head))
    cfg = dict(
        type="mmengine.OptimWrapper",
        constructor="mmpretrain.LearningRateDecayOptimWrapperConstructor",
        optimizer=dict(type="SGD", lr=1.0, weight_decay=0.1),
        paramwise_cfg=dict(layer_decay_rate=0.5),
    )
    rates = {group["param_name"]: group["lr"] for group in build_optim_wrapper(model, cfg).optimizer.param_groups}
    assert rates["head.fc.weight"] == 1.0
    network = model.backbone.timm_model
    layers = timm.models.group_parameters(network, network.group_matcher(coarse=False), reverse=True)
    last = max(layers.values())
    assert depth in (None, last + 1)
    for key, layer in layers.items():
        assert rates[f"backbone.timm_model.{key}"] == 0.5 ** (last + 1 - layer)


def test_initialisation(tmp_path):
    source = TIMMBackbone("so_vit_7", **TINY)
    torch.save({f"backbone.{key}": value for key, value in source.state_dict().items()}, tmp_path / "weights.pth")
    model = so_vit(init_cfg=dict(type="Pretrained", checkpoint=str(tmp_path / "weights.pth"), prefix="backbone."))
    model.init_weights()
    assert torch.equal(model.backbone.timm_model.cls_token, source.timm_model.cls_token)


@pytest.mark.parametrize(
    "build, error, message",
    [
        (
            lambda: TIMMBackbone("alexnet", frozen_stages=7),
            OptionError,
            "frozen_stages of alexnet is from -1 to 4, got 7",
        ),
        (lambda: TIMMBackbone("alexnet", norm_eval="no"), OptionError, "norm_eval must be True or False, got 'no'"),
        (
            lambda: TIMMBackbone("resnet10t", features_only=True).get_layer_depth("x"),
            OptionError,
            "FeatureListNet has no layers to count: use features_only=False",
        ),
        (lambda: SoViTHead(0, 24), OptionError, "num_classes must be a positive integer, got 0"),
        (lambda: SoViTHead(3, 24, method="isqrt"), OptionError, "is chosen by pool=.isqrt."),
        (
            lambda: SoViTHead(3, 24, reduce_channels=6)((torch.randn(2, 24),)),
            ShapeError,
            r"expected tokens \(B, N, 24\), got \(2, 24\); a backbone gives them",
        ),
    ],
)
def test_bad_input(build, error, message):
    with pytest.raises(error, match=message):
        build()
