"""Pools inside a scripted model: called in Python, where their own gradient is.

TorchScript knows no custom gradients: an eigen-decomposition that it differentiates itself divides by differences of
eigenvalues, and trains to NaN. So a scripted model holds the parameters of its pool, and calls the pool.
"""

# No postponed annotations here: TorchScript reads those of ignored functions as they are.

import itertools

import torch
from torch import Tensor, nn

_keys = itertools.count()
_pools: dict[int, nn.Module] = {}


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

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.key = next(_keys)
        _pools[self.key] = pool
        _share(pool, self)

    def forward(self, x: Tensor) -> Tensor:
        return _call(self.key, self.training, x)


def _share(source: nn.Module, target: nn.Module) -> None:
    """Give ``target`` the parameters and buffers of ``source``, in modules of the same names that do nothing."""
    for name, parameter in source.named_parameters(recurse=False):
        target.register_parameter(name, parameter)
    for name, buffer in source.named_buffers(recurse=False):
        target.register_buffer(name, buffer, persistent=name not in source._non_persistent_buffers_set)
    for name, child in source.named_children():
        carrier = nn.Module()
        _share(child, carrier)
        target.add_module(name, carrier)
