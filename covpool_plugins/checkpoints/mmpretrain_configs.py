"""A network as an MMPretrain config that tests it, and its weights under MMPretrain's keys; without MMPretrain."""

from __future__ import annotations

import math
import pprint
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ..tables import Table
from ..timm_plugin.head import SecondOrderHead
from ..timm_plugin.whitened_models import MODELS as WHITENED_MODELS
from .network import Network

Config = dict[str, Any]
VGG_STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
DROPOUT = 0.5
CIFAR_SIDE = 32
IMAGENET_CLASSES = 1000
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
# Arguments of this package's models: those that change the backbone, and those of what stands behind it.
OF_BACKBONE = {"psrp", "final_norm"}
OF_HEAD = {"fuse_class_token", "layer_groups", "global_pool", "head_kwargs", "reduce_channels"}


class Counterpart(NamedTuple):
    """MMPretrain's backbone for one of timm's: its config, and its name for a key of timm's."""

    config: Config
    key: Callable[[str], str]


MMPRETRAIN_BACKBONES: Table[Callable[[Network, re.Match[str]], Counterpart]] = Table("backbone of MMPretrain")


def resnet(network: Network, name: re.Match[str]) -> Counterpart:
    """The same names in both."""
    config: Config = dict(type="ResNet", depth=int(name[1]), num_stages=4, out_indices=(3,), style="pytorch")
    if network.last_stride == 1:
        config["strides"] = (1, 2, 2, 1)
    return Counterpart(config, lambda key: key)


def resnet_cifar(network: Network, name: re.Match[str]) -> Counterpart:
    """The same names in both."""
    config: Config = dict(type="ResNet_CIFAR", depth=int(name[1]), num_stages=4, out_indices=(3,), style="pytorch")
    if name[2]:
        row, given = WHITENED_MODELS[network.backbone], network.backbone_kwargs
        layer = {"type": f"covpool_plugins.{row.norm.__name__}", **row.norm_kwargs, **(given.get("norm_kwargs") or {})}
        rules = {given.get("whiten") or row.whiten: layer}
        config = dict(type="covpool_plugins.NormSwap", backbone=config, rules=rules)
    return Counterpart(config, lambda key: key)


def vgg(network: Network, name: re.Match[str]) -> Counterpart:
    """MMPretrain counts convolution, norm and ReLU as one; poolings count in both."""
    config: Config = dict(type="VGG", depth=int(name[1]), with_last_pool=network.last_stride != 1)
    if name[2]:
        config["norm_cfg"] = dict(type="BN")
    step = 3 if name[2] else 2
    places: dict[str, str] = {}
    theirs = ours = 0
    for blocks in VGG_STAGES[int(name[1])]:
        for _ in range(blocks):
            places |= {f"features.{theirs}": f"features.{ours}.conv", f"features.{theirs + 1}": f"features.{ours}.bn"}
            theirs, ours = theirs + step, ours + 1
        theirs, ours = theirs + 1, ours + 1
    return Counterpart(config, lambda key: f"{places[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}")


def densenet(network: Network, name: re.Match[str]) -> Counterpart:
    """Blocks and layers counted from zero, the last norm as a transition."""
    fixed = {"features.conv0": "stem.0", "features.norm0": "stem.1", "features.norm5": "transitions.3.0"}

    def key(theirs: str) -> str:
        module, _, leaf = theirs.rpartition(".")
        if module in fixed:
            return f"{fixed[module]}.{leaf}"
        layer = re.fullmatch(r"features\.denseblock(\d)\.denselayer(\d+)\.(.+)", theirs)
        if layer:
            return f"stages.{int(layer[1]) - 1}.block.{int(layer[2]) - 1}.{layer[3]}"
        return re.sub(r"features\.transition(\d)", lambda m: f"transitions.{int(m[1]) - 1}", theirs)

    return Counterpart(dict(type="DenseNet", arch=name[1]), key)


def timm_backbone(network: Network, name: re.Match[str]) -> Counterpart:
    """A network of timm's, or one that it lacks, in a wrapper; as ``second_order`` where its blocks are changed."""
    kept = {option: value for option, value in network.backbone_kwargs.items() if option not in OF_HEAD}
    config = dict(type="covpool_plugins.TIMMBackbone", model_name=network.backbone, **kept)
    if kept.keys() & OF_BACKBONE:
        config |= dict(model_name="second_order", backbone=network.backbone)
    return Counterpart(config, lambda key: f"timm_model.{key}")


def mmpretrain_model(network: Network, model: Any) -> tuple[Config, dict[str, str]]:
    """The config of the classifier, and MMPretrain's key for every key of the timm model.

    Args:
        network: what it is.
        model: the timm model; on the ``meta`` device is enough.
    """
    for pattern, row in MMPRETRAIN_BACKBONES.items():
        name = re.fullmatch(pattern, network.backbone)
        if name is not None:
            counterpart = row(network, name)
            break
    loss = dict(type="CrossEntropyLoss", loss_weight=1.0)
    topk = (1, 5) if network.num_classes > 5 else (1,)
    common = dict(num_classes=network.num_classes, loss=loss, topk=topk)
    parts, modules = _neck_and_head(network, model, common)
    keys = {}
    for key in model.state_dict():
        module = next((theirs for theirs in modules if key.startswith(f"{theirs}.")), None)
        keys[key] = f"backbone.{counterpart.key(key)}" if module is None else modules[module] + key[len(module) :]
    return dict(type="ImageClassifier", backbone=counterpart.config, **parts), keys


def _neck_and_head(network: Network, model: Any, common: Config) -> tuple[Config, Mapping[str, str]]:
    """Configs of neck and head, and their names for the modules of the timm model."""
    pool = model.head if isinstance(getattr(model, "head", None), SecondOrderHead) else None
    if pool is None:
        head = dict(type="LinearClsHead", in_channels=model.num_features, **common)
        return dict(neck=dict(type="GlobalAveragePooling"), head=head), {"fc": "head.fc"}
    neck = dict(type="covpool_plugins.CovariancePooling", pool=pool.pool_type, in_channels=pool.in_features)
    if pool.layout["input_fmt"] != "NCHW":
        neck |= pool.layout
    neck |= {"cls_token": True, **pool.pool_options} if pool.fuse_token else pool.pool_options
    modules = {"head.global_pool": "neck.pool", "head.fc": "head.fc"}
    head = dict(type="covpool_plugins.SecondOrderClsHead", **common)
    if network.hidden_features:
        layers = len(network.hidden_features)
        modules["head.fc"] = f"head.layers.{layers}.fc"
        modules |= {f"head.hidden.{3 * i}": f"head.layers.{i}.fc" for i in range(layers)}
        head = dict(
            type="StackedLinearClsHead",
            in_channels=pool.global_pool.out_features,
            mid_channels=list(network.hidden_features),
            dropout_rate=DROPOUT,
            **common,
        )
    return dict(neck=neck, head=head), modules


def config_text(model: dict[str, Any], data: Mapping[str, Any], num_classes: int, checkpoint: str, source: str) -> str:
    """A config that stands by itself: model, preprocessing, data set, evaluation.

    Args:
        model: config of the classifier.
        data: ``mean`` and ``std`` in 0..1, ``input_size`` (C, H, W), ``crop_pct`` and ``interpolation``, as in timm.
        num_classes: of the classifier.
        checkpoint: name of the file with the weights, beside the config.
        source: where the weights come from.
    """
    mean, std = ([round(255 * value, 6) for value in data[name]] for name in ("mean", "std"))
    cifar = data["input_size"][1] == CIFAR_SIDE  # whose data set gives red first, while pictures are read blue first
    variables = {
        "default_scope": "mmpretrain",
        "model": model,
        "data_preprocessor": dict(num_classes=num_classes, mean=mean, std=std, to_rgb=not cifar),
        "test_dataloader": dict(
            batch_size=32,
            num_workers=2,
            dataset=_data_set(data, num_classes),
            sampler=dict(type="DefaultSampler", shuffle=False),
        ),
        "test_evaluator": dict(type="Accuracy", topk=(1, 5) if num_classes > 5 else (1,)),
        "test_cfg": dict(),
    }
    lines = [f"# Weights converted from: {source}.", f"load_from = '{{{{ fileDirname }}}}/{checkpoint}'"]
    lines += [f"{name} = {pprint.pformat(value, width=110, sort_dicts=False)}" for name, value in variables.items()]
    return "\n".join(lines) + "\n"


def _data_set(data: Mapping[str, Any], num_classes: int) -> dict[str, Any]:
    _, height, _ = data["input_size"]
    pack = dict(type="PackInputs")
    # As timm does it: the edge is rounded down, Pillow reads and resizes.
    side, squash = math.floor(height / data["crop_pct"]), data.get("crop_mode") == "squash"
    scale: dict[str, Any] = dict(scale=(side, side)) if squash else dict(scale=side, edge="short")
    interpolation = data["interpolation"] if data["interpolation"] in INTERPOLATIONS else "bilinear"
    resize = dict(type="Resize" if squash else "ResizeEdge", **scale, backend="pillow", interpolation=interpolation)
    steps = [resize, dict(type="CenterCrop", crop_size=height), pack]
    if height == CIFAR_SIDE:
        return dict(type=f"CIFAR{num_classes}", data_root=f"data/cifar{num_classes}", split="test", pipeline=steps)
    pipeline = [dict(type="LoadImageFromFile", imdecode_backend="pillow"), *steps]
    if num_classes == IMAGENET_CLASSES:
        return dict(type="ImageNet", data_root="data/imagenet", split="val", pipeline=pipeline)
    # One folder a class.
    return dict(type="CustomDataset", data_root="data", data_prefix="test", pipeline=pipeline)


MMPRETRAIN_BACKBONES.add(r"resnet(18|34|50|101|152)", resnet)
MMPRETRAIN_BACKBONES.add(r"resnet(18|50)_cifar(?:_(zca|pca))?", resnet_cifar)
MMPRETRAIN_BACKBONES.add(r"vgg(11|13|16|19)(_bn)?", vgg)
MMPRETRAIN_BACKBONES.add(r"densenet(121|169|201)", densenet)
MMPRETRAIN_BACKBONES.add(r".*", timm_backbone)
