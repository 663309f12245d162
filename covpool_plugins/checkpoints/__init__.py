"""Checkpoints of the original repositories: read safely, recognised, and written for timm and MMPretrain."""

from ..checkpoint_file import CheckpointError, read_checkpoint
from .conversion import Converted, load_original
from .fitting import KeyReport
from .targets import TARGETS, summary, write
from .triangle import ORDERS

__all__ = [
    "ORDERS",
    "TARGETS",
    "CheckpointError",
    "Converted",
    "KeyReport",
    "load_original",
    "read_checkpoint",
    "summary",
    "write",
]
