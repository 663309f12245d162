"""Which backbone an original checkpoint has, from keys and shapes, and how its modules are called in timm.

A row is a function of the shapes under the backbone's prefix. It returns the timm name, its arguments and the pairs of
module names, or ``None`` if this is another network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from ..errors import OptionError
from ..tables import Table

Shapes = Mapping[str, tuple[int, ...]]


class Backbone(NamedTuple):
    """A timm backbone, its channels and arguments, and for each of its modules the name in the original."""

    name: str
    channels: int
    pairs: list[tuple[str, str]]
    arguments: Mapping[str, Any] = MappingProxyType({})
    last_stride: int | None = None


ORIGINAL_BACKBONES: Table[Callable[[Shapes], Backbone | None]] = Table("backbone of the original repositories")

RESNETS: dict[tuple[bool, tuple[int, ...]], str] = {
    (False, (2, 2, 2, 2)): "resnet18",
    (False, (3, 4, 6, 3)): "resnet34",
    (True, (3, 4, 6, 3)): "resnet50",
    (True, (3, 4, 23, 3)): "resnet101",
    (True, (3, 8, 36, 3)): "resnet152",
}
DENSENETS: dict[tuple[int, ...], str] = {
    (6, 12, 24, 16): "densenet121",
    (6, 12, 32, 32): "densenet169",
    (6, 12, 48, 32): "densenet201",
}
CONVNEXTS: dict[tuple[int, tuple[int, ...]], str] = {
    (96, (3, 3, 9, 3)): "tiny",
    (96, (3, 3, 27, 3)): "small",
    (128, (3, 3, 27, 3)): "base",
    (192, (3, 3, 27, 3)): "large",
    (256, (3, 3, 27, 3)): "xlarge",
}
VGGS = {8: "vgg11", 10: "vgg13", 13: "vgg16", 16: "vgg19"}
# The children of the sequence that main.py makes of Inception; those left out are poolings.
INCEPTION = {
    **{0: "Conv2d_1a_3x3", 1: "Conv2d_2a_3x3", 2: "Conv2d_2b_3x3", 4: "Conv2d_3b_1x1", 5: "Conv2d_4a_3x3"},
    **{7 + i: f"Mixed_{name}" for i, name in enumerate(("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e"))},
    **{15: "Mixed_7a", 16: "Mixed_7b", 17: "Mixed_7c"},
}
FIRST_STAGE = 4  # in the sequence that main.py makes of a ResNet
STAGES = ("layer1", "layer2", "layer3", "layer4")


def numbered(shapes: Shapes, *stages: str) -> tuple[int, ...]:
    """How many blocks there are in each of these stages, by the number behind its name in a key."""
    return tuple(
        len({key.removeprefix(f"{stage}.").split(".")[0] for key in shapes if key.startswith(f"{stage}.")})
        for stage in stages
    )


def resnet_name(shapes: Shapes, stages: tuple[str, ...]) -> tuple[str, int] | None:
    """timm's name of a ResNet and the channels of its last map, from the blocks of its stages."""
    blocks = numbered(shapes, *stages)
    bottleneck = f"{stages[0]}.0.conv3.weight" in shapes
    name = RESNETS.get((bottleneck, blocks))
    if shapes.get(f"{stages[0]}.0.conv2.weight", ())[:2] != (64, 64):  # a wide or grouped one
        return None
    return (name, 2048 if bottleneck else 512) if name else None


def resnet(shapes: Shapes) -> Backbone | None:
    """The children of a ResNet in a sequence: stem, four stages; a reduction behind them belongs to mpncovresnet."""
    numbers = tuple(str(FIRST_STAGE + i) for i in range(len(STAGES)))
    named = resnet_name(shapes, numbers)
    if named is None:
        return None
    return Backbone(*named, [("0", "conv1"), ("1", "bn1"), *zip(numbers, STAGES, strict=True)])


def densenet(shapes: Shapes) -> Backbone | None:
    """DenseNet's features, whose names timm has kept."""
    name = DENSENETS.get(numbered(shapes, *(f"denseblock{i}" for i in range(1, 5))))
    return Backbone(name, shapes["norm5.weight"][0], [("", "features")]) if name and "norm5.weight" in shapes else None


def inception(shapes: Shapes) -> Backbone | None:
    """Inception-v3 without its auxiliary classifier."""
    if "0.conv.weight" not in shapes or {int(key.split(".")[0]) for key in shapes} != set(INCEPTION):
        return None
    return Backbone("inception_v3", 2048, [(str(number), name) for number, name in INCEPTION.items()])


def alexnet(shapes: Shapes) -> Backbone | None:
    """Five convolutions, the first of 11x11, with or without batch norm."""
    convolutions = _convolutions(shapes)
    if len(convolutions) != 5 or shapes[f"{convolutions[0]}.weight"][2:] != (11, 11):
        return None
    batch_norm = "1.running_mean" in shapes
    ours = [("conv1", "bn1"), *((f"layer{number}.0.conv", f"layer{number}.0.norm") for number in range(1, 5))]
    pairs = [(str(index), conv) for index, (conv, _) in zip(convolutions, ours, strict=True)]
    if batch_norm:
        pairs += [(str(index + 1), norm) for index, (_, norm) in zip(convolutions, ours, strict=True)]
    return Backbone("alexnet", 256, pairs, {} if batch_norm else {"batch_norm": False})


def vgg(shapes: Shapes) -> Backbone | None:
    """The features of VGG, whose numbers timm has kept; their last pooling is left out."""
    convolutions = _convolutions(shapes)
    name = VGGS.get(len(convolutions))
    if name is None or shapes[f"{convolutions[0]}.weight"][2:] != (3, 3):
        return None
    return Backbone(name + "_bn" * ("1.running_mean" in shapes), 512, [("", "features")], last_stride=1)


def convnext(shapes: Shapes) -> Backbone | None:
    """torchvision's features of ConvNeXt, without the norm behind them: stem, stage, downsampling, stage, ..."""
    stages = ("1", "3", "5", "7")
    blocks = numbered(shapes, *stages)
    name = CONVNEXTS.get((shapes["0.0.weight"][0], blocks))
    if name is None or "1.0.layer_scale" not in shapes:
        return None
    pairs = [(f"{2 * i}.{j}", f"stages.{i}.downsample.{j}" if i else f"stem.{j}") for i in range(4) for j in range(2)]
    parts = {
        "layer_scale": "gamma",
        "block.0": "conv_dw",
        "block.2": "norm",
        "block.3": "mlp.fc1",
        "block.5": "mlp.fc2",
    }
    for stage, count in enumerate(blocks):
        for block in range(count):
            places = (f"{stages[stage]}.{block}", f"stages.{stage}.blocks.{block}")
            pairs += [(f"{places[0]}.{theirs}", f"{places[1]}.{ours}") for theirs, ours in parts.items()]
    return Backbone(f"convnext_{name}", shapes["7.0.layer_scale"][0], pairs, {"final_norm": False})


def swin(shapes: Shapes) -> Backbone | None:
    """torchvision's features of Swin, which the release of iSICE names and cannot run."""
    if "1.0.attn.relative_position_bias_table" not in shapes:
        return None
    raise OptionError(
        "iSICE on torchvision's Swin: the release cannot run it, for its reduction takes the channels first and Swin's "
        "features have them last, so no logits are known"
    )


def recognise_backbone(shapes: Shapes) -> Backbone | None:
    """The first row that knows these shapes; the prefix is removed from their keys."""
    for _, recognise in ORIGINAL_BACKBONES.items():
        try:
            backbone = recognise(shapes)
        except OptionError:
            raise
        except (ValueError, LookupError):  # keys that are not even alike
            continue
        if backbone is not None:
            return backbone
    return None


def _convolutions(shapes: Shapes) -> list[int]:
    """Places of the convolutions in a plain sequence."""
    return sorted(int(key.removesuffix(".weight")) for key, shape in shapes.items() if len(shape) == 4)


ORIGINAL_BACKBONES.add("resnet", resnet)
ORIGINAL_BACKBONES.add("densenet", densenet)
ORIGINAL_BACKBONES.add("inception_v3", inception)
ORIGINAL_BACKBONES.add("alexnet", alexnet)
ORIGINAL_BACKBONES.add("vgg", vgg)
ORIGINAL_BACKBONES.add("convnext", convnext)
ORIGINAL_BACKBONES.add("swin", swin)
