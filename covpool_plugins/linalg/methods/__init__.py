"""Method objects: frozen dataclasses that say how a matrix function and its gradient are computed.

Every module of this folder is imported, so that a new method is one file: its class, and the line that adds an object
of it to the table of roots or of inverse roots. A method is an :class:`EigenMethod`, the root by eigen-decomposition
with a gradient rule of its own, or an :class:`IterativeMethod`, matrix products whose gradient follows. Forward,
gradient and source of each are in its docstring and in the table of heads of the README.
"""

import importlib
import pkgutil

from .base import (
    INVERSE_ROOTS,
    LOGARITHMS,
    LYAPUNOV,
    SQUARE_ROOTS,
    EigenMethod,
    IterativeMethod,
    Method,
    SpectralMethod,
    list_methods,
    resolve_method,
)
from .denman_beavers import DenmanBeavers
from .eigen import SVDPI, Exact, ExactInverse, SVDOriginal, SVDPade, SVDTaylor, SVDTopN, SVDTrunc
from .minimax import Minimax
from .newton_schulz import NewtonSchulz
from .svd_newton import SVDNewton
from .taylor_pade import MPA, MTP

__all__ = [
    "INVERSE_ROOTS",
    "LOGARITHMS",
    "LYAPUNOV",
    "MPA",
    "MTP",
    "SQUARE_ROOTS",
    "SVDPI",
    "DenmanBeavers",
    "EigenMethod",
    "Exact",
    "ExactInverse",
    "IterativeMethod",
    "Method",
    "Minimax",
    "NewtonSchulz",
    "SVDNewton",
    "SVDOriginal",
    "SVDPade",
    "SVDTaylor",
    "SVDTopN",
    "SVDTrunc",
    "SpectralMethod",
    "list_methods",
    "resolve_method",
]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
