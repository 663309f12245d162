"""AlexNet with batch norm and So-ViT as MMPretrain's backbones, and So-ViT's head."""

import pytest
import timm
import torch
from mmengine.runner import load_checkpoint
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

from covpool_plugins import AlexNetBN, SoViT, SoViTHead
from covpool_plugins.errors import OptionError, ShapeError, UnknownNameError

TINY = dict(embed_dim=24, depth=2, num_heads=3, mlp_ratio=2.0)


def images(count=2):
    return torch.randn(count, 3, 64, 64)


def test_alexnet_is_timms():
    ours = MODELS.build(dict(type="covpool_plugins.AlexNetBN")).eval()
    plain = timm.create_model("alexnet", num_classes=0, global_pool="").eval()
    plain.load_state_dict(ours.state_dict())
    x = images()
    (last,) = ours(x)
    assert torch.equal(last, plain(x)) and last.shape == (2, 256, 3, 3)


def test_stages_and_freezing():
    model = AlexNetBN(out_indices=(1, -1), frozen_stages=1)
    assert [m.shape[1] for m in model(images())] == [192, 256]
    model.train()
    assert not model.layer1.training and not model.layer2.norm.training and model.layer3.training
    trained = {name.partition(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"layer3", "layer4", "layer5"}
    assert not AlexNetBN(norm_eval=True).train().layer5.norm.training


def so_vit(pool="mpa", reduce_channels=6, **backbone):
    head = dict(num_classes=3, in_channels=24, pool=pool, reduce_channels=reduce_channels)
    return MODELS.build(
        dict(
            type="mmpretrain.ImageClassifier",
            backbone=dict(type="covpool_plugins.SoViT", arch=TINY, img_size=64, **backbone),
            head=dict(type="covpool_plugins.SoViTHead", **head),
        )
    )


@pytest.mark.parametrize("pool, reduced", [("mpa", 6), ("isqrt", 6), ("svpn", 6), ("crosscov", [6, 4])])
def test_so_vit_is_timms(pool, reduced):
    plain = timm.create_model("so_vit_7", num_classes=3, img_size=64, global_pool=pool, reduce_channels=reduced, **TINY)
    ours = so_vit(pool, reduced).eval()
    state = plain.eval().state_dict()
    ours.load_state_dict({key if key.startswith("head.") else f"backbone.{key}": state[key] for key in state})
    x = images()
    assert torch.equal(ours.head(ours.extract_feat(x)), plain(x))


def test_loss_reaches_every_parameter():
    model = so_vit(drop_path_rate=0.1).train()
    samples = [DataSample().set_gt_label(index % 3) for index in range(4)]
    model(images(4), samples, mode="loss")["loss"].backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    predicted = model.eval()(images(4), mode="predict")
    torch.testing.assert_close(torch.stack([sample.pred_score for sample in predicted]).sum(1), torch.ones(4))


def test_outputs():
    x, source = images(), SoViT(TINY, img_size=64).eval()
    (raw,) = source(x)
    assert raw.shape == (2, 17, 24)
    tokens = raw[:, 1:]
    expected = dict(cls_token=raw[:, 0], featmap=tokens.mT.reshape(2, 24, 4, 4), avg_featmap=tokens.mean(1))
    for out_type, values in expected.items():
        model = SoViT(TINY, img_size=64, out_type=out_type).eval()
        model.load_state_dict(source.state_dict())
        torch.testing.assert_close(model(x), (values,))


@pytest.mark.parametrize("arch", ["7", "19"])
def test_architectures(arch):
    with torch.device("meta"):
        model = SoViT(arch, with_cp=True)
    assert model.grad_checkpointing and len(model.blocks) == int(arch)
    assert not any(key.startswith("head") for key in model.state_dict())


def test_initialisation(tmp_path):
    """By a checkpoint of another picture size; without init_cfg weights are left alone."""
    source = SoViT(TINY, img_size=128)
    torch.save({f"backbone.{key}": value for key, value in source.state_dict().items()}, tmp_path / "weights.pth")
    model = so_vit(init_cfg=dict(type="Pretrained", checkpoint=str(tmp_path / "weights.pth"), prefix="backbone."))
    model.init_weights()
    assert torch.equal(model.backbone.cls_token, source.cls_token)
    load_checkpoint(model, str(tmp_path / "weights.pth"))
    assert model.backbone.pos_embed.shape == (1, 17, 24)
    plain = so_vit()
    before = plain.backbone.blocks[0].mlp.fc1.weight.clone()
    plain.init_weights()
    assert torch.equal(plain.backbone.blocks[0].mlp.fc1.weight, before)


@pytest.mark.parametrize(
    "build, error, message",
    [
        (lambda: AlexNetBN(out_indices=5), OptionError, "out_indices must be stages from -5 to 4, got 5"),
        (lambda: AlexNetBN(frozen_stages=7), OptionError, "frozen_stages must be a stage from -1 to 4, got 7"),
        (lambda: AlexNetBN(norm_eval="no"), OptionError, "norm_eval must be True or False, got 'no'"),
        (lambda: SoViT("8"), UnknownNameError, "unknown So-ViT '8'; available: "),
        (lambda: SoViT(dict(width=3)), OptionError, "SoViT: arch has no option 'width'"),
        (lambda: SoViT(TINY, out_type="map"), OptionError, "out_type must be one of raw, cls_token"),
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
