"""Feature maps or tokens to one vector per image: nn.Modules on top of ``linalg``."""

from .average import AveragePool
from .base import POOLS, Pool, Spectrum, create_pool, list_pools, pool_options
from .bilinear import BilinearPool
from .brownian import BrownianDistance
from .channel_dropout import AdaptiveChannelDropout
from .compact_bilinear import CompactBilinearPool
from .covariance_pool import CovariancePool, Weighting
from .cross_covariance import CrossCovariancePool
from .democratic import DemocraticWeighting
from .elementwise import SignedRootL2
from .gaussian import GaussianEmbedding
from .inverse_covariance import Precision, SparseInverse
from .low_rank_bilinear import LowRankBilinearPool
from .max_exp import MaxExp
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
from .tangent import LogCholesky, ScaledPower
from .temporal import TemporalPool

__all__ = [
    "POOLS",
    "REDUCTIONS",
    "AdaptiveChannelDropout",
    "AveragePool",
    "BilinearPool",
    "BrownianDistance",
    "CompactBilinearPool",
    "CovariancePool",
    "CrossCovariancePool",
    "DemocraticWeighting",
    "GaussianEmbedding",
    "LogCholesky",
    "LowRankBilinearPool",
    "MatrixLogarithm",
    "MatrixPower",
    "MatrixRoot",
    "MaxExp",
    "MomentPool",
    "Normalization",
    "Plain",
    "Pool",
    "Precision",
    "ScaledPower",
    "ScalingEigenBranch",
    "SignedRootL2",
    "SingularValuePower",
    "SparseInverse",
    "Spectrum",
    "TemporalPool",
    "Weighting",
    "create_pool",
    "list_pools",
    "pool_options",
]
