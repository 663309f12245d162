"""Every config says what it is; the folders' tables and the model index follow from that.

``COVPOOL_WRITE_CONFIG_TABLES=1 python -m pytest tests/mmpretrain_plugin/test_config_headers.py`` writes both.
"""

import os
import re

import pytest
from mmengine.config import Config
from support.config_headers import CONFIGS, INDEX, PATHS, headers, model_index, with_table

from covpool_plugins import list_pools
from covpool_plugins.whitening.swap import layer_types

FOLDERS = sorted({header.path.parent for header in headers()})
EXPECTED = {
    "svdpade": (
        "alexnet in1k",
        "resnet18 in1k",
        "resnet50 in1k",
        "resnet101 in1k",
        "densenet121 in1k",
        "swin-tiny in1k",
    ),
    "svdpade, other networks": ("inception-v3 in1k", "convnext-tiny in1k", "vit-small-p16 in1k"),
    "svdpade, fine-grained": ("resnet50 cub", "resnet50 cars", "resnet50 dogs"),
    "svdpade-hybrid": ("resnet50 in1k", "resnet101 in1k"),
    "isqrt": ("resnet50-stride1 in1k", "resnet101-stride1 in1k", "vgg16bn in1k"),
    "isqrt, fine-grained": ("resnet50 cub", "resnet50 cars", "resnet50 aircraft"),
    "seb": ("resnet50 cub", "resnet50 cars", "resnet50 aircraft"),
    "mpa": tuple(f"so-vit-{depth} in1k" for depth in (7, 10, 14, 19)),
    "dropcov": tuple(f"resnet{depth}-stride1 in1k" for depth in (34, 50, 101)),
    "crosscov": (
        "sot-tiny in1k",
        "sot-small in1k",
        "sot-base in1k",
        "deit-small-dropcov in1k",
        "t2t-vit-14-dropcov in1k",
    ),
    "moment": ("vit-base-p16 in1k", "vit-base-p16 cub"),
    "isqrt, VGG": ("vgg16bn cub",),
    "bcnn": ("vgg16-frozen cub", "vgg16 cub"),
    "gaussian": ("vgg16 cub",),
    "isice": ("vgg16bn cub",),
    "cholesky": ("resnet50 aircraft",),
    "powtmlr": ("resnet50 aircraft", "resnet50 cub"),
    "scalepow": ("resnet50 cub", "resnet50 cars"),
    "zca-svdpi": ("resnet18 cifar10", "resnet18 cifar100"),
    "pca-svdpi": ("resnet18 cifar10",),
    "zca-mpa": ("resnet18-stem cifar10", "resnet50-stem cifar100"),
}
WRITE = bool(os.environ.get("COVPOOL_WRITE_CONFIG_TABLES"))


def up_to_date(path, text):
    if WRITE:
        path.write_text(text)
    return path.read_text() == text


def heads(cfg):
    """What a config may have for ``<head>`` in its name: the pool, or the whitening layers and their method."""
    pooling = cfg.model.get("neck", {})
    if "pool" in pooling:
        assert pooling.pool in list_pools()
        switched = {f"{hook.method}-hybrid" for hook in cfg.get("custom_hooks", []) if "method" in hook}
        return switched or {pooling.pool}
    norms, where = cfg.model.backbone.get("rules", {}).values(), ""
    if not norms:
        norms, where = [cfg.model.backbone.norm_cfg], "-all"
    names = {layer: layer[:3].lower() for layer in layer_types()}
    kinds = [(names[norm.type.removeprefix("covpool_plugins.")], norm.method.replace("_", "-")) for norm in norms]
    return {f"{name}-{method}{where}" for name, method in kinds}


# All of them take 40 s.
@pytest.mark.parametrize(
    "header",
    [
        pytest.param(header, id=header.name, marks=() if number % 12 == 0 else pytest.mark.slow)
        for number, header in enumerate(headers())
    ],
)
def test_a_header_is_true(header):
    cfg = Config.fromfile(header.path)
    assert header.name.split("_")[1] in heads(cfg)
    processes, batch = re.search(r"_(\d+)xb(\d+)_", header.name).groups()
    assert cfg.train_dataloader.batch_size == int(batch)
    launched = 1
    for number in re.findall(r"--n(?:nodes|proc-per-node) (\d+)", header.train):
        launched *= int(number)
    assert launched == int(processes)
    assert f"tools/train.py configs/{header.path.relative_to(CONFIGS)}" in header.train
    assert ("--launcher pytorch" in header.train) == (launched > 1)
    for figure in re.findall(r"(\d+) epochs", header.recipe):
        assert cfg.train_cfg.max_epochs == int(figure)
    for figure in re.findall(r"[(]batch (\d+)", header.recipe):
        assert "that of" in header.recipe or int(processes) * int(batch) == int(figure)
    for figure in re.findall(r"learning rate ([\d.e-]+),", header.recipe):
        assert cfg.optim_wrapper.optimizer.lr == float(figure)
    for figure in re.findall(r"(\d+) times that for the classifier", header.recipe):
        assert cfg.optim_wrapper.paramwise_cfg.custom_keys["head.fc"].lr_mult == int(figure)
    for figures in re.findall(r"after ([\d, and]+)", header.recipe):
        assert cfg.param_scheduler.milestones == [int(figure) for figure in re.findall(r"\d+", figures)]


def test_the_networks_and_heads_of_the_papers_are_there():
    expected = {
        (network.split()[0], head.partition(",")[0], network.split()[1])
        for head, networks in EXPECTED.items()
        for network in networks
    }
    names = [(parts[0], parts[1], parts[3]) for parts in (header.name.split("_") for header in headers())]
    assert expected - set(names) == set()
    assert len(set(names)) == len(names)  # one for a head, a network and a data set
    assert len({path.stem for path in PATHS}) == len(PATHS)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_folders_table_is_that_of_its_configs(folder):
    readme = folder / "README.md"
    text = readme.read_text()
    assert up_to_date(readme, with_table(text, folder))
    assert f"({folder.name}/README.md)" in (CONFIGS / "README.md").read_text()


def test_the_model_index_is_that_of_the_configs():
    assert up_to_date(INDEX, model_index())
