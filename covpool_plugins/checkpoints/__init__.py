"""Checkpoints of the original repositories: read safely, recognised, and written for timm and MMPretrain."""

from ..checkpoint_file import CheckpointError, read_checkpoint
from .conversion import Converted, KeyReport, load_original
from .report import summary
from .targets import TARGETS, write

__all__ = [
    "TARGETS",
    "CheckpointError",
    "Converted",
    "KeyReport",
    "load_original",
    "read_checkpoint",
    "summary",
    "write",
]
