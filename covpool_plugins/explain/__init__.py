"""Why a classifier says what it says: attribution maps for second-order (and first-order) models."""

from . import (  # noqa: F401  fill the table of methods
    backprop,
    contribution,
    deconvolution,
    democratic_weights,
    excitation,
    integrated_head,
    linear_approximation,
    perturbation,
    spectral_maps,
    synthesis,
)
from .explanation import Explanation, explain
from .images import read_picture
from .loading import load_mmpretrain_model, load_timm_model
from .methods import METHODS, NotApplicableError, list_methods, method_options
from .metrics import deletion_insertion, metrics
from .model_view import GRADIENTS, ModelView
from .panel import eigen_panel, montage

__all__ = [
    "GRADIENTS",
    "METHODS",
    "Explanation",
    "ModelView",
    "NotApplicableError",
    "deletion_insertion",
    "eigen_panel",
    "explain",
    "list_methods",
    "load_mmpretrain_model",
    "load_timm_model",
    "method_options",
    "metrics",
    "montage",
    "read_picture",
]
