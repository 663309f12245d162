"""Method objects: frozen dataclasses that say how a matrix function and its gradient are computed.

===========================  ====================================  =====================================  =============
name                         forward                               backward                               source
===========================  ====================================  =====================================  =============
``exact``                    eigh                                  1 / (√λ_i + √λ_j)                      BMVC 2017
``svdpade``                  eigh                                  the same, from the Padé quotient       ICCV 2021
``svdtaylor``                eigh                                  Taylor series of degree 100            ICCV 2021
``svdpi``                    eigh                                  power iteration                        NeurIPS 2019
``svdnewton``                eigh                                  that of Newton-Schulz steps            ICCV 2021
``svdtrunc``                 eigh                                  1 / (λ_i - λ_j) cut off at 1e10        ICCV 2021
``svdtopn``                  eigh, the n largest                   exact for what is left                 ICCV 2021
``svdoriginal``              eigh                                  1 / (λ_i - λ_j) with overflow check    ICCV 2015
``isqrt``                    Newton-Schulz, 5 steps, trace         the exact one of those steps           CVPR 2018
``newton_schulz_lyapunov``   Newton-Schulz, 10 steps, Frobenius    iterative Lyapunov                     BMVC 2017
``denman_beavers``           Denman-Beavers, 10 steps              iterative Lyapunov                     BMVC 2017
``mtp``                      Taylor polynomial, degree 10          iterative Lyapunov                     ICLR 2022
``mpa``                      Padé approximant, degree 5            iterative Lyapunov                     ICLR 2022
``minimax``                  best composite polynomials            the exact one of those steps           this project
===========================  ====================================  =====================================  =============
"""

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
