"""Checkpoints as the original repositories would have saved them, from their manifests and the weight rule."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from support.golden_models import golden_weight, load_models

MANIFESTS: dict[str, dict[str, Any]] = load_models("checkpoints")


def _expanded(rows: list[Any]) -> list[list[Any]]:
    """[key, shape, dtype if it is not float32] of every tensor; alike blocks, one after another, are stored once."""
    expanded = []
    for row in rows:
        if isinstance(row, dict):
            numbers = range(row["from"], row["from"] + row["count"])
            expanded += [[f"{row['repeat']}{i}{key}", *rest] for i in numbers for key, *rest in row["rows"]]
        else:
            expanded.append(row)
    return expanded


for _manifest in MANIFESTS.values():
    _manifest["state_dict"] = _expanded(_manifest["state_dict"])


def original_state(name: str) -> OrderedDict[str, Tensor]:
    """The state dict of a manifest, in its order and types."""
    manifest = MANIFESTS[name]
    added = manifest.get("weight_override", {})
    state = OrderedDict()
    for key, shape, *dtype in manifest["state_dict"]:
        value = _weight(key, shape) + added.get(key, 0)
        state[key] = value.to(getattr(torch, dtype[0]) if dtype else torch.float32)
    return state


def _weight(key: str, shape: list[int]) -> Tensor:
    """By the weight rule, but for what the networks construct, and what the rule does not give."""
    if key == "representation.I":
        return torch.eye(*shape)
    if key.endswith(("relative_position_index", "attn_mask")):
        return torch.zeros(shape)
    weight = golden_weight(key, shape)
    return (weight / shape[1] ** 0.5).float().double() if key.endswith("in_proj_weight") else weight


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


def small(name: str) -> dict[str, Tensor]:
    """The tensors of a manifest as zeros."""
    rows = MANIFESTS[name]["state_dict"]
    return {key: torch.zeros(shape, dtype=getattr(torch, (dtype or ["float32"])[0])) for key, shape, *dtype in rows}


def saved(content: Any, folder: Path, name: str = "checkpoint.pth") -> Path:
    """A file of ``torch.save`` with that content."""
    torch.save(content, folder / name)
    return folder / name
