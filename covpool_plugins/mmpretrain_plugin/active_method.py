"""The square-root method of a neck in its state dict.

Only a neck that :func:`keep_method` was called for has that entry. It holds name and options of the method as text, so
that a checkpoint can be used without the config that made it.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import Tensor, nn

from ..errors import OptionError
from ..linalg import Method, list_methods, resolve_method
from .necks import pools_with_root

KEY = "active_method"
# Bytes of the text, the same for all methods: averaged copies and checkpoints of other methods then fit each other.
WIDTH = 256


def encode(method: Method) -> Tensor:
    """Name and options of a method as text, padded with spaces to (WIDTH,) bytes.

    Raises:
        OptionError: for a method that is not in the table.
    """
    names = [name for name in list_methods("sqrtm") if type(resolve_method(name)) is type(method)]
    if not names:
        raise OptionError(f"a checkpoint cannot hold {method}; methods with a name: {', '.join(list_methods('sqrtm'))}")
    text = json.dumps([names[0], dataclasses.asdict(method)])
    if len(text) > WIDTH:
        raise OptionError(f"a checkpoint cannot hold {method}: {len(text)} characters, at most {WIDTH} are stored")
    return torch.tensor(list(text.ljust(WIDTH).encode()), dtype=torch.uint8)


def decode(stored: Tensor) -> Method:
    """The method that :func:`encode` wrote.

    Raises:
        OptionError: if this version has no such method.
    """
    try:
        name, options = json.loads(bytes(stored.tolist()))
        return resolve_method(name, **options)
    except (ValueError, TypeError) as error:
        raise OptionError(f"the checkpoint's {KEY} does not exist in this version ({error})") from error


def keep_method(neck: nn.Module, device: torch.device | None = None) -> None:
    """Make the method of a neck a part of its state dict.

    Raises:
        OptionError: if the neck takes no matrix square root.
    """
    if not hasattr(neck, KEY):
        neck.register_buffer(KEY, encode(pools_with_root(neck)[0][1]).to(device))
        neck.register_load_state_dict_pre_hook(adopt_method)


def switch_method(neck: nn.Module, method: Method) -> bool:
    """Set the method of all pools of a neck, and return whether it has changed.

    The buffer is written in place, because an average of the model may refer to it.
    """
    pools = pools_with_root(neck)
    changed = any(before != method for _, before in pools)
    for pool, _ in pools:
        pool.method = method
    neck.get_buffer(KEY).copy_(encode(method))
    return changed


def adopt_method(neck: nn.Module, state_dict: dict[str, Any], prefix: str, *unused: Any) -> None:
    """Take the method of a neck from the state dict that it is about to load, if there is one.

    For :meth:`torch.nn.Module.register_load_state_dict_pre_hook`. A neck that takes no matrix square root drops it.
    """
    stored = state_dict.get(prefix + KEY)
    if stored is not None:
        method = decode(stored)
        try:
            pools_with_root(neck)
        except OptionError:
            state_dict.pop(prefix + KEY)
            return
        if not hasattr(neck, KEY):
            neck.register_buffer(KEY, torch.zeros_like(stored))
        if switch_method(neck, method):
            print_log(f"the neck pools by {method}, as the checkpoint says", "current", logging.WARNING)
    elif hasattr(neck, KEY):
        state_dict[prefix + KEY] = neck.get_buffer(KEY)


class ConfiguredMethodHook(Hook):
    """A new training that begins with the weights of another run pools by the method of its own config."""

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        if runner._resume:
            return
        for key in [key for key in checkpoint.get("state_dict", {}) if key.split(".")[-1] == KEY]:
            method = decode(checkpoint["state_dict"].pop(key))
            runner.logger.warning(f"the checkpoint's neck pooled by {method}; this run pools as its config says")
