"""Measurements behind ``tools/benchmark.py``, one module per mode."""

from . import convergence, linalg, operators, pools, whitening
from .modes import MODES, Mode

__all__ = ["MODES", "Mode", "convergence", "linalg", "operators", "pools", "whitening"]
