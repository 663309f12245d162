"""The recipes of the configs are those of the released scripts."""

from typing import NamedTuple

import pytest
from mmengine.config import Config
from mmpretrain.registry import MODELS
from support.config_headers import CONFIGS


class Released(NamedTuple):
    """What a released script trains with; the rate is divided by 10 after each of ``steps`` epochs."""

    batch: int
    rate: float
    epochs: int
    steps: tuple[int, ...]
    weight_decay: float
    factor: int = 1  # of the classifier's learning rate
    clip: float | None = 5


RELEASED = {
    "resnet/resnet50_svdpade_8xb32_in1k": Released(256, 0.0794, 60, (30, 45), 1e-4),
    "resnet/resnet50-stride1_isqrt_8xb20_in1k": Released(160, 0.1, 65, (30, 45, 60), 1e-4, clip=None),
    "alexnet/alexnet_svdpade_1xb128_in1k": Released(128, 0.0794, 30, (10, 20), 5e-4),
    "fine_grained/resnet50_isqrt_1xb10_cub": Released(10, 1.2e-3, 100, (), 1e-4, 5, None),
    "fine_grained/resnet50_isqrt_1xb10_cars": Released(10, 1.2e-3, 100, (), 1e-4, 5, None),
    "fine_grained/resnet50_isqrt_1xb10_aircraft": Released(10, 1.2e-3, 100, (), 1e-4, 5, None),
    "fine_grained/resnet50_svdpade_1xb10_cub": Released(10, 1.2e-3, 100, (), 1e-4, 5),
    "fine_grained/resnet50_svdpade_1xb10_cars": Released(10, 1.2e-3, 100, (), 1e-4, 5),
    "fine_grained/resnet50_svdpade_1xb10_dogs": Released(10, 1.2e-3, 100, (), 1e-4, 5),
    "fine_grained/resnet50_seb_1xb10_cub": Released(10, 3e-3, 200, (50, 100), 1e-4, 20),
    "fine_grained/resnet50_seb_1xb10_cars": Released(10, 3e-3, 200, (50, 100), 1e-4, 10),
    "fine_grained/resnet50_seb_1xb8_aircraft": Released(8, 3e-3, 50, (21, 40), 1e-3, 5),
    "fine_grained/vgg16bn_isqrt_1xb10_cub": Released(10, 3e-3, 40, (20,), 1e-4, 20, None),
    "fine_grained/vgg16-frozen_bcnn_1xb40_cub": Released(40, 1e-3, 100, (), 5e-4, 1000, None),
    "fine_grained/vgg16_bcnn_1xb10_cub": Released(10, 1e-3, 200, (), 5e-4, 1, None),
    "fine_grained/resnet50_cholesky_1xb8_aircraft": Released(8, 5e-3, 50, (21,), 1e-4, 5),
    "fine_grained/resnet50_scalepow_1xb10_cub": Released(10, 5e-2, 100, (50,), 1e-4, 10),
    "fine_grained/resnet50_scalepow_1xb10_cars": Released(10, 5e-2, 100, (50,), 1e-4, 10),
    "fine_grained/resnet50_powtmlr_1xb8_aircraft": Released(8, 5e-3, 50, (21,), 1e-4, 5),
    "fine_grained/resnet50_powtmlr_1xb6_cub": Released(6, 5e-3, 100, (50,), 1e-4),
    "resnet/resnet50-stride1_dropcov_8xb32_in1k": Released(256, 0.1, 100, (30, 60, 90), 1e-4, clip=None),
    "whitening/resnet18-stem_zca-mpa_1xb128_cifar10": Released(128, 0.1, 350, (100, 200, 300), 5e-4, clip=None),
    "whitening/resnet50-stem_zca-mpa_1xb128_cifar100": Released(128, 0.1, 350, (100, 200, 300), 5e-4, clip=None),
}
CROP, FLIP = ("CenterCrop", 448), ("RandomFlip", 0.5)
# Training and test see the same square; there are no random crops.
PICTURES = {
    "cub": [("ResizeEdge", 448), CROP, FLIP],
    "dogs": [("Resize", (512, 512)), CROP, FLIP],
    "aircraft": [("Resize", (512, 512)), CROP, FLIP],
    "cars": [("Resize", (448, 448)), FLIP],
}


@pytest.mark.parametrize("name", RELEASED)
def test_a_recipe_is_the_released_one(name):
    cfg, row = Config.fromfile(CONFIGS / f"{name}.py"), RELEASED[name]
    wrapper, schedule = cfg.optim_wrapper, cfg.param_scheduler
    assert cfg.auto_scale_lr.base_batch_size == row.batch and cfg.train_dataloader.batch_size in (
        row.batch,
        row.batch // 8,
    )
    assert (wrapper.optimizer.lr, wrapper.optimizer.momentum, wrapper.optimizer.type) == (row.rate, 0.9, "SGD")
    assert wrapper.optimizer.weight_decay == row.weight_decay
    assert (wrapper.get("clip_grad") or dict(max_norm=None)) == dict(max_norm=row.clip)
    keys = wrapper.get("paramwise_cfg", {}).get("custom_keys", {})
    assert keys == ({"head.fc": dict(lr_mult=row.factor)} if row.factor > 1 else {})
    assert cfg.train_cfg.max_epochs == row.epochs
    assert tuple(schedule.get("milestones", ())) == row.steps and schedule.get("gamma", 0.1) == 0.1


@pytest.mark.parametrize("data", PICTURES)
def test_pictures_are_cut_as_released(data):
    cfg = Config.fromfile(CONFIGS / "_base_" / "datasets" / f"{data}_bs10_448.py")

    def steps(loader):
        middle = loader.dataset.pipeline[1:-1]
        sizes = [step.get("scale") or step.get("crop_size") or step.get("prob") for step in middle]
        return [(step.type, size) for step, size in zip(middle, sizes, strict=True)]

    assert steps(cfg.train_dataloader) == PICTURES[data]
    assert steps(cfg.val_dataloader) == steps(cfg.test_dataloader) == PICTURES[data][:-1]


# Millions of parameters, as the authors' README counts them; 128 channels.
DROPCOV = {"resnet34": 29.6, "resnet50": 32.0, "resnet101": 51.0}


@pytest.mark.parametrize("network", DROPCOV)
def test_dropcov_has_the_published_number_of_parameters(network):
    cfg = Config.fromfile(CONFIGS / "resnet" / f"{network}-stride1_dropcov_8xb32_in1k.py")
    model = MODELS.build(dict(cfg.model, _scope_="mmpretrain"))
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count / 1e6 == pytest.approx(DROPCOV[network], abs=0.05)
