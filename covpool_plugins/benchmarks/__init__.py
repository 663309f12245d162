"""Measurements behind ``tools/benchmark.py``, one module per mode."""

from . import linalg, operators, pools
from .modes import MODES, Mode

__all__ = ["MODES", "Mode", "linalg", "operators", "pools"]
