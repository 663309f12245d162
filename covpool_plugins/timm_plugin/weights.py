"""Weights for the head of a second-order model, and word of what was loaded and what is fresh."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from timm.models import load_pretrained
from torch import Tensor, nn

from ..errors import OptionError
from .subclass import head_name

_logger = logging.getLogger(__name__)
_timm_logger = logging.getLogger("timm.models._builder")


def load_head(model: nn.Module, cfg: dict[str, Any], num_classes: int, cache_dir: Any) -> list[str]:
    """Second look at the weights for what fits the head; timm has loaded the backbone and left the rest.

    Returns the keys that were loaded.
    """
    head = head_name(model)
    wanted = {f"{head}.{key}": value.shape for key, value in model.get_submodule(head).state_dict().items()}
    loaded: list[str] = []

    def keep_fitting(state_dict: dict[str, Tensor], _: nn.Module) -> dict[str, Tensor]:
        fitting = {k: v for k, v in state_dict.items() if k in wanted and v.shape == wanted[k]}
        if f"{head}.fc.weight" not in fitting:  # a bias means nothing without its weight
            fitting.pop(f"{head}.fc.bias", None)
        loaded.extend(fitting)
        return model.state_dict() | fitting

    load_pretrained(
        model, cfg | {"classifier": None, "first_conv": None}, num_classes, filter_fn=keep_fitting, cache_dir=cache_dir
    )
    return loaded


@dataclass
class Loading:
    """What timm said of loading weights into a backbone."""

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)


@contextmanager
def watch_loading(head: str) -> Iterator[Loading]:
    """Listen to timm's log while it loads, and keep back its warning of keys that are the head's, loaded afterwards."""
    found = Loading()
    level = _timm_logger.level
    threshold = _timm_logger.getEffectiveLevel()

    def listen(record: logging.LogRecord) -> bool:
        said = record.getMessage()
        keys = said.partition("(")[2].partition(")")[0].split(", ")
        if said.startswith("Missing keys ("):
            found.missing += keys
        elif said.startswith("Unexpected keys ("):
            found.unexpected += keys
            if all(key.startswith(f"{head}.") for key in keys):
                return False
        return record.levelno >= threshold

    _timm_logger.addFilter(listen)
    _timm_logger.setLevel(min(threshold, logging.INFO))
    try:
        yield found
    finally:
        _timm_logger.setLevel(level)
        _timm_logger.removeFilter(listen)


def report(model: nn.Module, loading: Loading, loaded: list[str], source: str) -> None:
    """One line: what of the model comes from the source, and what is fresh.

    Raises:
        OptionError: if nothing of the backbone does.
    """
    head = head_name(model)
    keys = list(model.state_dict())
    backbone = [key for key in keys if not key.startswith(f"{head}.")]
    missing = set(loading.missing)
    # PyTorch does not count these as missing.
    missing |= {key.replace("running_mean", "num_batches_tracked") for key in missing}
    taken = [key for key in backbone if key not in missing]
    if backbone and not taken:
        raise OptionError(f"the weights of {source} fit no tensor of the backbone, whose first is {backbone[0]!r}")
    fresh = [key for key in keys if key not in taken and key not in loaded]
    _logger.info(
        "weights of %s: loaded %d of the backbone's %d tensors (%s); head: loaded %s; fresh %s",
        source,
        len(taken),
        len(backbone),
        ", ".join(dict.fromkeys(key.split(".")[0] for key in taken)),
        ", ".join(loaded) or "nothing",
        ", ".join(fresh) or "nothing",
    )
