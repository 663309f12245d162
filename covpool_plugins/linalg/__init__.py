"""Differentiable functions of symmetric positive semi-definite matrices: tensors in, tensors out.

Written in torch and numpy alone; but importing it imports ``covpool_plugins``, and with it timm.
"""

from .covariance import covariance, smaller_covariance
from .lyapunov import EigenLyapunov, NewtonSchulzLyapunov, lyapunov
from .methods.base import (
    Compute,
    EigenMethod,
    IterativeMethod,
    Method,
    Vectorize,
    check_root_options,
    list_methods,
    resolve_method,
)
from .methods.denman_beavers import DenmanBeavers
from .methods.eigen import SVDPI, Exact, ExactInverse, SVDOriginal, SVDTaylor, SVDTopN, SVDTrunc
from .methods.minimax import Minimax
from .methods.newton_schulz import NewtonSchulz
from .methods.svd_newton import SVDNewton
from .methods.taylor_pade import MPA, MTP
from .packing import pack_triu, packed_size, unpack_symmetric
from .spectral import covariance_log1p, covariance_powm, expm_neg, logm, powm
from .square_root import covariance_sqrt, inv_sqrtm, sqrtm

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
    "IterativeMethod",
    "Method",
    "Minimax",
    "NewtonSchulz",
    "NewtonSchulzLyapunov",
    "SVDNewton",
    "SVDOriginal",
    "SVDTaylor",
    "SVDTopN",
    "SVDTrunc",
    "Vectorize",
    "check_root_options",
    "covariance",
    "covariance_log1p",
    "covariance_powm",
    "covariance_sqrt",
    "expm_neg",
    "inv_sqrtm",
    "list_methods",
    "logm",
    "lyapunov",
    "pack_triu",
    "packed_size",
    "powm",
    "resolve_method",
    "smaller_covariance",
    "sqrtm",
    "unpack_symmetric",
]
