"""So-ViT as an MMPretrain backbone and head."""

import pytest
import timm
import torch

pytest.importorskip("mmpretrain")

from mmengine.runner import load_checkpoint
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

import covpool_plugins
from covpool_plugins.errors import OptionError, ShapeError, UnknownNameError

TINY = dict(embed_dim=24, depth=2, num_heads=3, mlp_ratio=2.0)


def classifier(pool="mpa", reduce_channels=6, **backbone):
    return MODELS.build(
        dict(
            type="mmpretrain.ImageClassifier",
            backbone=dict(type="covpool_plugins.SoViT", **{"arch": TINY, "img_size": 64, **backbone}),
            head=dict(
                type="covpool_plugins.SoViTHead",
                num_classes=3,
                in_channels=24,
                pool=pool,
                reduce_channels=reduce_channels,
            ),
        )
    )


@pytest.mark.parametrize("pool", ["mpa", "isqrt", "svpn"])
def test_the_same_network_as_timms(pool):
    plain = timm.create_model("so_vit_7", num_classes=3, img_size=64, global_pool=pool, reduce_channels=6, **TINY)
    ours = classifier(pool).eval()
    state = plain.eval().state_dict()
    ours.load_state_dict({key if key.startswith("head.") else f"backbone.{key}": state[key] for key in state})
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(ours.head(ours.extract_feat(x)), plain(x))


def test_the_cross_covariance():
    assert classifier("crosscov", [6, 4]).head.fc.in_features == 24


def test_loss_reaches_every_parameter():
    model = classifier(drop_path_rate=0.1).train()
    samples = [DataSample().set_gt_label(index % 3) for index in range(4)]
    model(torch.randn(4, 3, 64, 64), samples, mode="loss")["loss"].backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    predicted = model.eval()(torch.randn(4, 3, 64, 64), mode="predict")
    torch.testing.assert_close(torch.stack([sample.pred_score for sample in predicted]).sum(1), torch.ones(4))


@pytest.mark.parametrize(
    "out_type, shape",
    [("raw", (2, 17, 24)), ("cls_token", (2, 24)), ("featmap", (2, 24, 4, 4)), ("avg_featmap", (2, 24))],
)
def test_outputs(out_type, shape):
    x = torch.randn(2, 3, 64, 64)
    model = covpool_plugins.SoViT(TINY, img_size=64, out_type=out_type).eval()
    tokens = covpool_plugins.SoViT(TINY, img_size=64).eval()
    tokens.load_state_dict(model.state_dict())
    (raw,), (out,) = tokens(x), model(x)
    assert out.shape == shape
    expected = {"raw": raw, "cls_token": raw[:, 0], "avg_featmap": raw[:, 1:].mean(1)}
    expected["featmap"] = raw[:, 1:].mT.reshape(2, 24, 4, 4)
    torch.testing.assert_close(out, expected[out_type])


@pytest.mark.parametrize("arch", ["7", "19"])
def test_architectures(arch):
    with torch.device("meta"):
        model = covpool_plugins.SoViT(arch, with_cp=True)
    assert model.grad_checkpointing and len(model.blocks) == int(arch)
    assert not any(key.startswith("head") for key in model.state_dict())


def test_initialisation_by_a_checkpoint_of_another_size(tmp_path):
    source = covpool_plugins.SoViT(TINY, img_size=128)
    torch.save({f"backbone.{key}": value for key, value in source.state_dict().items()}, tmp_path / "weights.pth")
    init = dict(type="Pretrained", checkpoint=str(tmp_path / "weights.pth"), prefix="backbone.")
    model = classifier(init_cfg=init)
    model.init_weights()
    assert torch.equal(model.backbone.cls_token, source.cls_token)
    load_checkpoint(model, str(tmp_path / "weights.pth"))
    assert model.backbone.pos_embed.shape == (1, 17, 24)


def test_weights_are_left_alone_without_init_cfg():
    model = classifier()
    before = model.backbone.blocks[0].mlp.fc1.weight.clone()
    model.init_weights()
    assert torch.equal(model.backbone.blocks[0].mlp.fc1.weight, before)


@pytest.mark.parametrize(
    "build, error, message",
    [
        (lambda: covpool_plugins.SoViT("8"), UnknownNameError, "unknown So-ViT '8'; available: "),
        (lambda: covpool_plugins.SoViT(dict(width=3)), OptionError, "SoViT: arch has no option 'width'"),
        (lambda: covpool_plugins.SoViT(TINY, out_type="map"), OptionError, "out_type must be one of raw, cls_token"),
        (lambda: covpool_plugins.SoViTHead(0, 24), OptionError, "num_classes must be a positive integer, got 0"),
        (lambda: covpool_plugins.SoViTHead(3, 24, "mpaa"), UnknownNameError, "unknown pool 'mpaa'"),
        (lambda: covpool_plugins.SoViTHead(3, 24, step=1), OptionError, "pool 'mpa' has no option 'step'"),
        (lambda: covpool_plugins.SoViTHead(3, 24, method="isqrt"), OptionError, "is chosen by pool=.isqrt."),
    ],
)
def test_bad_options(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_other_features_than_tokens_are_refused():
    head = covpool_plugins.SoViTHead(3, 24, reduce_channels=6)
    with pytest.raises(ShapeError, match=r"expected tokens \(B, N, 24\), got \(2, 24\); a backbone gives them"):
        head((torch.randn(2, 24),))
