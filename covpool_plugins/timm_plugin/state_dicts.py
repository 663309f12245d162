"""What a second-order model's ``load_state_dict`` takes besides the model's own keys, and what it refuses in one line.

timm's ``checkpoint_path=``, ``--initial-checkpoint`` and ``--resume`` come to it, with what timm has read of a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint_file import COUNTERS, bare_keys, check_real_numbers
from ..errors import OptionError
from .psrp import PART_OF_KEYS

# How keys begin in the original repositories' checkpoints, and in no model here.
ORIGINAL_PARTS = (
    "features.",
    "module.",
    "representation.",
    "layer_reduce",
    "visual_tokens.",
    "bn1.running_subspace0",
)
WHERE = "the state dict"
# How keys of version 0.1's So-ViT began, and begin now.
SO_VIT = {
    "patch_embed.stem.": "patch_embed.backbone.stem.",
    "patch_embed.stages.": "patch_embed.backbone.stages.",
    "head.pool.": "head.global_pool.",
}


class WeightsError(OptionError, RuntimeError):
    """Weights of another network; a ``RuntimeError`` too, as ``load_state_dict`` raises it."""


def is_new(key: str, head: str) -> bool:
    """Whether a key is one of a second-order model's head, or of what MP+ adds to blocks: none of the backbone's."""
    return key.startswith(f"{head}.") or PART_OF_KEYS in key


def rename_so_vit(weights: dict[str, Any], prefix: str = "") -> None:
    """Give weights of version 0.1's So-ViT, which had a stem and two classifiers of its own, today's keys, in place."""
    for key in [key for key in weights if key.startswith(tuple(prefix + former for former in SO_VIT))]:
        former = next(former for former in SO_VIT if key.startswith(prefix + former))
        weights[prefix + SO_VIT[former] + key[len(prefix + former) :]] = weights.pop(key)
    first, second = (f"{prefix}head.{name}." for name in ("fc", "cls_fc"))
    if f"{second}weight" in weights:
        joined = [weights[f"{first}weight"], weights.pop(f"{second}weight")]
        weights[f"{first}weight"] = torch.cat(joined, dim=1)
        weights[f"{first}bias"] = weights[f"{first}bias"] + weights.pop(f"{second}bias")


def prepare(model: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Before weights are loaded, take prefixes of wrappers off their keys, in place.

    Raises:
        OptionError: for integers where the model has real numbers, and for weights of an original repository, saying
            how to convert them.
    """
    own = model.state_dict()
    for counter in COUNTERS:
        state_dict.pop(prefix + counter, None)
    stored = {key.removeprefix(prefix): key for key in state_dict if key.startswith(prefix)}
    original = next((key for key in stored if key.startswith(ORIGINAL_PARTS) and key not in own), None)
    bare = bare_keys(stored, WHERE, own)
    if any(key in own for key in bare):
        values = {key: state_dict.pop(stored[wrapped]) for key, wrapped in bare.items()}
        state_dict.update({prefix + key: value for key, value in values.items()})
        rename_so_vit(state_dict, prefix)
        check_real_numbers(values, own, WHERE)
    elif original is not None:
        raise WeightsError(
            f"these are weights of an original repository (there is {original!r}); convert them: "
            "python tools/convert.py FILE --to timm --out FOLDER"
        )


def refuse_plain_backbone(model: Any, head: str, state_dict: Mapping[str, Any]) -> None:
    """Raise for a backbone's weights without any of the head, which torch would miss one by one.

    Raises:
        WeightsError: saying how the backbone is loaded.
    """
    backbone = [key for key in model.state_dict() if not is_new(key, head)]
    given = bare_keys(state_dict, WHERE, backbone)
    if not any(is_new(key, head) for key in given) and all(key in given for key in backbone):
        raise WeightsError(
            "these are weights of a backbone without this head, which would stay random; begin with them by "
            "create_model(..., pretrained=FILE), or --pretrained --pretrained-path FILE of timm's scripts"
        )
