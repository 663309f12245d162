"""Weights for the head of a second-order model, and word of what was loaded and what is fresh."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from timm.models import load_pretrained
from torch import Tensor, nn

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


def report(model: nn.Module, loaded: list[str], source: str) -> None:
    """One line: what of the model comes from the source, by module, and what is fresh."""
    head = head_name(model)
    keys = list(model.state_dict())
    backbone = [key for key in keys if not key.startswith(f"{head}.")]
    parts = ", ".join(dict.fromkeys(key.split(".")[0] for key in backbone))
    fresh = [key for key in keys if key not in backbone and key not in loaded]
    _logger.info(
        "weights of %s: loaded all %d of the backbone (%s); head: loaded %s; fresh %s",
        source,
        len(backbone),
        parts,
        ", ".join(loaded) or "nothing",
        ", ".join(fresh) or "nothing",
    )


@contextmanager
def quiet_about_the_head(name: str) -> Iterator[None]:
    """Without timm's warning of unexpected keys, where all of them are the head's, which is loaded afterwards."""

    def wanted(record: logging.LogRecord) -> bool:
        said = record.getMessage()
        if not said.startswith("Unexpected keys ("):
            return True
        keys = said[len("Unexpected keys (") :].partition(")")[0].split(", ")
        return not all(key.startswith(f"{name}.") for key in keys)

    _timm_logger.addFilter(wanted)
    try:
        yield
    finally:
        _timm_logger.removeFilter(wanted)
