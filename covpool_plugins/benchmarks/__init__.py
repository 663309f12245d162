"""Measurements behind ``tools/benchmark.py``, one module per mode."""

from . import linalg, operators
from .modes import MODES, Mode

__all__ = ["MODES", "Mode", "linalg", "operators"]
