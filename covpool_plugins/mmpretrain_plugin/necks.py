"""Find the neck of a model and its pools, for hooks."""

from __future__ import annotations

from typing import Any

from mmengine.model import is_model_wrapper
from torch import nn

from ..errors import OptionError
from ..pooling import Pool


def unwrapped(model: nn.Module) -> nn.Module:
    """A model without its wrappers for distributed training."""
    while is_model_wrapper(model):
        model = model.get_submodule("module")
    return model


def find_neck(model: nn.Module, path: str) -> nn.Module:
    """The submodule of a model, wrapped or not, that pools.

    Raises:
        OptionError: if the model has no such submodule, or that has no pool in it.
    """
    model = unwrapped(model)
    neck = dict(model.named_modules()).get(path) if path else None
    if neck is None:
        parts = ", ".join(name for name, _ in model.named_children())
        raise OptionError(f"the model has no {path!r}; its parts: {parts or 'none'}")
    if not pools_of(neck):
        raise OptionError(f"the model's {path!r} is a {type(neck).__name__} and has no pool of covpool_plugins in it")
    return neck


def pools_of(neck: nn.Module) -> list[Pool]:
    """The pools of a neck, one per stage."""
    return [module for module in neck.modules() if isinstance(module, Pool)]


def pools_with_root(neck: nn.Module) -> list[Any]:
    """The pools of a neck, whose ``method`` is that of a matrix square root.

    Raises:
        OptionError: if a pool takes no matrix square root.
    """
    for pool in pools_of(neck):
        if getattr(pool, "method", None) is None:
            raise OptionError(f"the pool {pool.pool_type!r} takes no matrix square root, so it has no method to switch")
    return pools_of(neck)
