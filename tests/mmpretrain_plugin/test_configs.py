"""Every file in configs/ is a model that trains and predicts."""

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from support.config_headers import PATHS

CLASSES = 6
NARROW = 4  # how many times as wide a ResNet is as the one trained here


# One of every kind of network and of every kind of head; the others are slow.
FAST = (
    "resnet18_svdpade_textures",
    *(f"resnet50{head}_8xb32_in1k" for head in ("_svdpade", "-stride1_dropcov", "_svdpade-hybrid")),
    "resnet50_seb_1xb10_cub",
    "resnet50_cholesky_1xb8_aircraft",
    "resnet18_zca-svdpi_1xb128_cifar10",
    "alexnet_svdpade_1xb128_in1k",
    "convnext-tiny_svdpade_32xb128_in1k",
    "vit-base-p16_moment_4xb16_cub",
    "so-vit-7_mpa_8xb64_in1k",
)


def shrunk(path):
    """The config with few classes and channels, its model, and the size of small pictures for it."""
    cfg = Config.fromfile(path)
    if cfg.model.backbone.type == "ResNet":
        cfg.model.backbone.update(stem_channels=64 // NARROW, base_channels=64 // NARROW)
        cfg.model.neck.in_channels //= NARROW
    if cfg.model.backbone.type == "SwinTransformer":
        cfg.model.backbone.pad_small_map = True
    cfg.model.head.num_classes = min(cfg.model.head.num_classes, CLASSES)
    pooling = cfg.model.neck
    if pooling.get("pool", "cbp") != "cbp" and "reduce_channels" not in pooling:
        pooling.reduce_channels = 32
    preprocessor = dict(cfg.data_preprocessor, num_classes=cfg.model.head.num_classes)
    size = 160 if cfg.model.backbone.get("model_name") == "inception_v3" else 96  # which would leave a single position
    size = 32 if "cifar" in path.stem else size
    if cfg.model.backbone.get("model_name", "").startswith(("so_vit", "sot_", "dropcov_")):
        cfg.model.backbone.img_size = size
    return cfg, MODELS.build(dict(cfg.model, data_preprocessor=preprocessor, _scope_="mmpretrain")), size


@pytest.mark.parametrize(
    "path", [pytest.param(path, id=path.stem, marks=() if path.stem in FAST else pytest.mark.slow) for path in PATHS]
)
def test_one_step_reaches_every_parameter(path):
    cfg, model, size = shrunk(path)
    model.train()
    images = [torch.randint(256, (3, size, size), dtype=torch.uint8) for _ in range(4)]
    samples = [DataSample().set_gt_label(i % model.head.num_classes) for i in range(len(images))]
    data = model.data_preprocessor(dict(inputs=images, data_samples=samples), training=True)
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    before = {name: parameter.detach().clone() for name, parameter in trained.items()}

    optim_wrapper.backward(model(**data, mode="loss")["loss"])
    gradients = {name: parameter.grad for name, parameter in trained.items()}
    assert [name for name, grad in gradients.items() if grad is None or not grad.isfinite().all()] == []
    assert [name for name, grad in gradients.items() if grad.abs().sum() == 0] == []
    optim_wrapper.step()
    assert [name for name, parameter in trained.items() if torch.equal(parameter, before[name])] == []

    data = model.eval().data_preprocessor(dict(inputs=images, data_samples=samples))
    with torch.no_grad():
        scores = torch.stack([sample.pred_score for sample in model(**data, mode="predict")])
    torch.testing.assert_close(scores.sum(1), torch.ones(len(images)))
    for hook in cfg.get("custom_hooks", []):
        HOOKS.build(dict(hook, _scope_="mmpretrain"))
