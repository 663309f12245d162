"""Feature maps or tokens to one vector per image: nn.Modules on top of ``linalg``."""

from .average import AveragePool
from .base import POOLS, Pool, Spectrum, create_pool, list_pools, pool_options
from .bilinear import BilinearPool
from .channel_dropout import AdaptiveChannelDropout
from .compact_bilinear import CompactBilinearPool
from .covariance_pool import CovariancePool, Weighting
from .cross_covariance import CrossCovariancePool
from .democratic import DemocraticWeighting
from .elementwise import SignedRootL2
from .low_rank_bilinear import LowRankBilinearPool
from .moment import MomentPool
from .normalizations import (
    MatrixLogarithm,
    MatrixPower,
    MatrixRoot,
    Normalization,
    Plain,
    ScalingEigenBranch,
)
from .reduction import REDUCTIONS
from .singular_value_power import SingularValuePower
from .temporal import TemporalPool

__all__ = [
    "POOLS",
    "REDUCTIONS",
    "AdaptiveChannelDropout",
    "AveragePool",
    "BilinearPool",
    "CompactBilinearPool",
    "CovariancePool",
    "CrossCovariancePool",
    "DemocraticWeighting",
    "LowRankBilinearPool",
    "MatrixLogarithm",
    "MatrixPower",
    "MatrixRoot",
    "MomentPool",
    "Normalization",
    "Plain",
    "Pool",
    "ScalingEigenBranch",
    "SignedRootL2",
    "SingularValuePower",
    "Spectrum",
    "TemporalPool",
    "Weighting",
    "create_pool",
    "list_pools",
    "pool_options",
]
