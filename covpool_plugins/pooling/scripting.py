"""Pools inside a scripted model: called in Python, where their own gradient is.

TorchScript knows no custom gradients: an eigen-decomposition that it differentiates itself divides by differences of
eigenvalues, and trains to NaN. So a scripted model holds the parameters of its pool, and calls the pool.
"""

# No postponed annotations here: TorchScript reads those of ignored functions as they are.

import copy
import itertools
import weakref
from typing import Any

import torch
from torch import Tensor, nn

_keys = itertools.count()
_pools: "weakref.WeakValueDictionary[int, nn.Module]" = weakref.WeakValueDictionary()


@torch.jit.ignore
def _call(key: int, training: bool, x: Tensor) -> Tensor:
    pool = _pools[key]
    if pool.training != training:
        pool.train(training)
    return pool(x)


class PoolInPython(nn.Module):
    """What stands for a pool in a scripted model, with the same parameters under the same names.

    It trains like the pool. Because it needs the Python process, ``torch.jit.save`` refuses the model; because a
    scripted model replaces its buffers when it is moved, move the model before it is scripted.
    """

    # The scripted module keeps the pool alive, in a list because children are compiled.
    __jit_ignored_attributes__ = ["kept"]  # noqa: RUF012

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.kept = [pool]
        self.key = next(_keys)
        _pools[self.key] = pool
        _share(pool, self)

    def forward(self, x: Tensor) -> Tensor:
        return _call(self.key, self.training, x)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # A copy has a pool of its own again.
        return _itself, (self.kept[0],)


def _itself(pool: nn.Module) -> nn.Module:
    return pool


def _share(source: nn.Module, target: nn.Module) -> None:
    """Give ``target`` the parameters and buffers of ``source``, in modules of the same names that do nothing."""
    target.training = source.training
    for name, parameter in source.named_parameters(recurse=False):
        target.register_parameter(name, parameter)
    for name, buffer in source.named_buffers(recurse=False):
        target.register_buffer(name, buffer, persistent=name not in source._non_persistent_buffers_set)
    for name, child in source.named_children():
        carrier = nn.Module()
        _share(child, carrier)
        target.add_module(name, carrier)


def shallow_copy(module: nn.Module) -> nn.Module:
    """The same modules once more around the same parameters and buffers: to change one leaves the other as it is."""
    twin = copy.copy(module.__dict__)
    new = module.__class__.__new__(module.__class__)
    new.__dict__.update(twin)
    for name in ("_parameters", "_buffers"):
        new.__dict__[name] = dict(twin[name])
    new.__dict__["_modules"] = {name: child and shallow_copy(child) for name, child in twin["_modules"].items()}
    return new
