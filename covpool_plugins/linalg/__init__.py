"""Differentiable functions of symmetric positive semi-definite matrices: tensors in, tensors out, torch only."""

from .covariance import covariance
from .covariance_square_root import Compute, Vectorize, check_root_options, covariance_sqrt
from .methods import (
    EigenMethod,
    Exact,
    IterativeMethod,
    Method,
    NewtonSchulz,
    SVDPade,
    list_methods,
    resolve_method,
)
from .packing import pack_triu, packed_size, unpack_symmetric
from .square_root import sqrtm

__all__ = [
    "Compute",
    "EigenMethod",
    "Exact",
    "IterativeMethod",
    "Method",
    "NewtonSchulz",
    "SVDPade",
    "Vectorize",
    "check_root_options",
    "covariance",
    "covariance_sqrt",
    "list_methods",
    "pack_triu",
    "packed_size",
    "resolve_method",
    "sqrtm",
    "unpack_symmetric",
]
