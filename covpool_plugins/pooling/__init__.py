"""Feature maps or tokens to one vector per image: nn.Modules on top of ``linalg``."""

from .base import POOLS, AveragePool, Pool, Spectrum, create_pool, list_pools, pool_options
from .bilinear import BilinearPool, CompactBilinearPool, LowRankBilinearPool
from .covariance_pool import CovariancePool, MatrixRoot, Normalization, Plain, SignedRootL2, Weighting
from .cross_covariance import CrossCovariancePool
from .moment import MomentPool
from .normalizations import (
    BrownianDistance,
    LogCholesky,
    MatrixLogarithm,
    MatrixPower,
    ScaledPower,
    ScalingEigenBranch,
)
from .reduction import REDUCTIONS
from .scale_free import MaxExp, Precision, SparseInverse
from .singular_value_power import SingularValuePower
from .temporal import TemporalPool
from .weightings import AdaptiveChannelDropout, DemocraticWeighting, GaussianEmbedding

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
