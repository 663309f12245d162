"""The text of an MMPretrain config that tests a converted checkpoint."""

from __future__ import annotations

import math
import pprint
from collections.abc import Mapping
from typing import Any

CIFAR_SIDE = 32
IMAGENET_CLASSES = 1000
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")


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
