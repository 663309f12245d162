"""Measurements behind ``tools/benchmark.py``, one module per mode."""

from . import convergence, linalg, networks, operators, pools, reliability, scaling, whitening
from .modes import MODES, Mode

__all__ = [
    "MODES",
    "Mode",
    "convergence",
    "linalg",
    "networks",
    "operators",
    "pools",
    "reliability",
    "scaling",
    "whitening",
]
