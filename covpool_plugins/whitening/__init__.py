"""Whitening: batch normalisation that also removes the correlation between channels; on top of linalg."""

from .coloring import whitening_coloring
from .compatibility import convert_state, released_layer
from .matrices import list_whitening_methods
from .norm import PCANorm1d, PCANorm2d, PCANorm3d, ZCANorm1d, ZCANorm2d, ZCANorm3d
from .swap import swap_norm

__all__ = [
    "PCANorm1d",
    "PCANorm2d",
    "PCANorm3d",
    "ZCANorm1d",
    "ZCANorm2d",
    "ZCANorm3d",
    "convert_state",
    "list_whitening_methods",
    "released_layer",
    "swap_norm",
    "whitening_coloring",
]
