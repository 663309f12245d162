"""Checkpoints as the original repositories would have saved them, from their manifests and the weight rule."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from support.golden_models import golden_weight, load_models

MANIFESTS: dict[str, dict[str, Any]] = load_models("checkpoints")


def original_state(name: str) -> OrderedDict[str, Tensor]:
    """The state dict of a manifest, in its order and types."""
    manifest = MANIFESTS[name]
    added = manifest.get("weight_override", {})
    state = OrderedDict()
    for key, shape, *dtype in manifest["state_dict"]:
        value = golden_weight(key, shape) + added.get(key, 0)
        state[key] = value.to(getattr(torch, dtype[0]) if dtype else torch.float32)
    return state


def original_content(name: str, state: OrderedDict[str, Tensor] | None = None) -> Any:
    """What the original's script would hand to ``torch.save``."""
    manifest = MANIFESTS[name]
    state = original_state(name) if state is None else state
    if manifest["container"] is None:
        return state
    if manifest["container"] == "net":
        return dict(net=state, acc=91.25, epoch=3, optimizer=dict(state={}, param_groups=[]), scheduler={})
    return dict(
        epoch=30,
        arch=manifest["route"]["arch"],
        state_dict=state,
        best_prec1=torch.tensor(71.5),
        optimizer=dict(state={}),
    )


def save_original(name: str, folder: Path, **options: Any) -> Path:
    """The checkpoint as a file, named for its manifest."""
    path = folder / f"{name}.pth.tar"
    torch.save(original_content(name), path, **options)
    return path
