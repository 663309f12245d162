"""Differentiable functions of symmetric positive semi-definite matrices: tensors in, tensors out, torch only."""

from .covariance import covariance, smaller_covariance
from .covariance_power import covariance_powm
from .covariance_square_root import Compute, Vectorize, check_root_options, covariance_sqrt
from .logarithm import InverseScaling, logm
from .lyapunov import EigenLyapunov, NewtonSchulzLyapunov, lyapunov
from .methods import (
    MPA,
    MTP,
    SVDPI,
    DenmanBeavers,
    EigenMethod,
    Exact,
    ExactInverse,
    IterativeMethod,
    Method,
    Minimax,
    NewtonSchulz,
    SVDNewton,
    SVDOriginal,
    SVDPade,
    SVDTaylor,
    SVDTopN,
    SVDTrunc,
    list_methods,
    resolve_method,
)
from .packing import pack_triu, packed_size, unpack_symmetric
from .routes import measured_routes
from .spectral import expm_neg, powm
from .square_root import inv_sqrtm, sqrtm

__all__ = [
    "MPA",
    "MTP",
    "SVDPI",
    "Compute",
    "DenmanBeavers",
    "EigenLyapunov",
    "EigenMethod",
    "Exact",
    "ExactInverse",
    "InverseScaling",
    "IterativeMethod",
    "Method",
    "Minimax",
    "NewtonSchulz",
    "NewtonSchulzLyapunov",
    "SVDNewton",
    "SVDOriginal",
    "SVDPade",
    "SVDTaylor",
    "SVDTopN",
    "SVDTrunc",
    "Vectorize",
    "check_root_options",
    "covariance",
    "covariance_powm",
    "covariance_sqrt",
    "expm_neg",
    "inv_sqrtm",
    "list_methods",
    "logm",
    "lyapunov",
    "measured_routes",
    "pack_triu",
    "packed_size",
    "powm",
    "resolve_method",
    "smaller_covariance",
    "sqrtm",
    "unpack_symmetric",
]
