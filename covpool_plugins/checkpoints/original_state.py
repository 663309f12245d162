"""The weights in a checkpoint, under keys without what parallel training adds to them, and what else the file tells."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..checkpoint_file import CONTAINERS, find_weights

TRAINING = ("optimizer", "scheduler", "lr_scheduler", "amp_scaler", "scaler", "meta", "message_hub", "param_schedulers")
# Of a timm or main.py run's settings.
SETTINGS = ("arch", "model", "representation")


@dataclass(frozen=True)
class OriginalState:
    """The weights of a checkpoint and what it says of them.

    Args:
        tensors: by key, without the wrappers' parts.
        keys: for each of these keys, the one in the file.
        container: where in the file the weights are; ``None`` if the file is nothing else.
        settings: of the run: ``arch``, ``representation``, ``model``, ``model_kwargs``, as far as the file has them.
        plain: what else the file holds of plain data: ``epoch``, ``best_prec1``, ...
        left_out: what else it holds, and why that is left out.
        file_name: without folders.
        beside: tensors that the file has beside the network, by their keys in the file.
    """

    tensors: dict[str, Tensor]
    keys: dict[str, str]
    container: str | None
    settings: dict[str, Any]
    file_name: str
    plain: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    beside: dict[str, Tensor] = field(default_factory=dict)

    def has(self, *beginnings: str) -> bool:
        """Whether for each of the beginnings there is a key with it."""
        return all(any(key.startswith(beginning) for key in self.tensors) for beginning in beginnings)

    def shape(self, key: str) -> tuple[int, ...]:
        """Of a tensor; empty if there is none."""
        return tuple(self.tensors[key].shape) if key in self.tensors else ()

    def under(self, prefix: str) -> dict[str, tuple[int, ...]]:
        """Shapes of what begins with a prefix, by the rest of the key."""
        return {key.removeprefix(prefix): tuple(t.shape) for key, t in self.tensors.items() if key.startswith(prefix)}


def unwrap(content: Any, path: Path, averaged: bool = True) -> OriginalState:
    """Find the weights in what a file holds.

    Args:
        content: of the file.
        path: of the file.
        averaged: take averaged weights (EMA), where there are some.

    Raises:
        CheckpointError: if there are none, or something else is among them.
    """
    found = find_weights(content, path, averaged)
    rest = {name: value for name, value in content.items() if name != found.container} if found.container else {}
    plain, left_out = _rest(rest)
    beside = {key: value for key, value in found.beside.items() if isinstance(value, Tensor)}
    left_out |= {key: "no tensor, beside the network" for key in found.beside if key not in beside}
    return OriginalState(
        found.tensors, found.keys, found.container, _settings(rest), path.name, plain, left_out, beside
    )


def _settings(rest: dict[str, Any]) -> dict[str, Any]:
    arguments = rest.get("args")
    said = dict(vars(arguments)) if isinstance(arguments, argparse.Namespace) else {}
    said |= {name: value for name, value in rest.items() if name in (*SETTINGS, "model_kwargs")}
    kept = {name: said[name] for name in SETTINGS if isinstance(said.get(name), str) and said[name]}
    return kept | ({"model_kwargs": said["model_kwargs"]} if said.get("model_kwargs") else {})


def _rest(rest: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Numbers and texts, which are kept; and the names of all the rest with the reason why they are not."""
    plain: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    for name, value in rest.items():
        if isinstance(value, (Tensor, np.ndarray, np.generic)) and math.prod(value.shape) == 1:
            value = value.item()
        if isinstance(value, (str, int, float, bool)):
            plain[str(name)] = value
        else:
            left_out[str(name)] = _reason(str(name))
    return plain, left_out


def _reason(name: str) -> str:
    if name in CONTAINERS:
        return "the other weights of the run"
    if name in ("args", "config"):
        return "settings of the run"
    return "state of the training run" if name in TRAINING else "no weights of the model"
