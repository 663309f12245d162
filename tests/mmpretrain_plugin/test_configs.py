"""Every file in configs/ is a model that trains."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

CONFIGS = Path(__file__).parents[2] / "configs"
PATHS = sorted(path for path in CONFIGS.rglob("*.py") if "_base_" not in path.parts)
each_config = pytest.mark.parametrize("path", PATHS, ids=lambda path: str(path.relative_to(CONFIGS)))


def test_there_are_configs():
    assert len(PATHS) >= 3


@each_config
def test_one_step_reaches_every_parameter(path):
    torch.manual_seed(0)
    cfg = Config.fromfile(path)
    cfg.model.head.num_classes = min(cfg.model.head.num_classes, 10)
    model = MODELS.build(dict(cfg.model, data_preprocessor=cfg.data_preprocessor, _scope_="mmpretrain")).train()
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(256, (3, 64, 64), dtype=torch.uint8, generator=generator) for _ in range(3)]
    classes = model.head.num_classes
    samples = [DataSample().set_gt_label(i % classes) for i in range(len(images))]
    data = model.data_preprocessor(dict(inputs=images, data_samples=samples), training=True)
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    loss = model(**data, mode="loss")["loss"]
    optim_wrapper.backward(loss)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert [name for name, grad in gradients.items() if grad is None or not grad.isfinite().all()] == []
    assert [name for name, grad in gradients.items() if grad.abs().sum() == 0] == []
    optim_wrapper.step()
    assert [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])] == []


@each_config
def test_the_header_says_how_to_train(path):
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert f"tools/train.py configs/{path.relative_to(CONFIGS)}" in "\n".join(header)
    assert f"({path.relative_to(CONFIGS)})" in (CONFIGS / "README.md").read_text()


def test_configs_build_with_nothing_of_ours_imported():
    script = """
import sys
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS
assert not any(name.startswith("covpool_plugins") for name in sys.modules)
init_default_scope("mmpretrain")
for path in sys.argv[1:]:
    cfg = Config.fromfile(path)
    cfg.model.head.num_classes = 3
    model = MODELS.build(cfg.model)
    print(type(model.neck).__name__, type(model.head).__name__)
"""
    command = [sys.executable, "-c", script, *map(str, PATHS)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split("\n")[:-1] == ["CovariancePooling SecondOrderClsHead"] * len(PATHS)
