"""Method objects: frozen dataclasses that say how a matrix square root and its gradient are computed.

=============  ===============================  =============================================  ==================
name           forward                          backward                                       source
=============  ===============================  =============================================  ==================
``exact``      eigh                             divided differences 1 / (√λ_i + √λ_j)          Lin & Maji, BMVC 2017
``svdpade``    eigh                             the same, from the Padé quotient in λ_j / λ_i  Song et al., ICCV 2021
``isqrt``      Newton-Schulz, 5 steps, trace    the exact gradient of those steps              Li et al., CVPR 2018
=============  ===============================  =============================================  ==================
"""

from .base import METHODS, EigenMethod, IterativeMethod, Method, list_methods, resolve_method
from .eigen import Exact, SVDPade
from .newton_schulz import NewtonSchulz

__all__ = [
    "METHODS",
    "EigenMethod",
    "Exact",
    "IterativeMethod",
    "Method",
    "NewtonSchulz",
    "SVDPade",
    "list_methods",
    "resolve_method",
]
