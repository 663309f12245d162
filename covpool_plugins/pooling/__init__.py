"""Feature maps or tokens to one vector per image: nn.Modules on top of ``linalg``."""

from .average import AveragePool
from .base import INPUT_FORMATS, POOLS, Pool, Spectrum, create_pool, list_pools, pool_options
from .covariance_pool import CovariancePool
from .reduction import REDUCTIONS

__all__ = [
    "INPUT_FORMATS",
    "POOLS",
    "REDUCTIONS",
    "AveragePool",
    "CovariancePool",
    "Pool",
    "Spectrum",
    "create_pool",
    "list_pools",
    "pool_options",
]
