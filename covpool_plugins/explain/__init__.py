"""Why a classifier says what it says: attribution maps for second-order (and first-order) models."""

from . import backprop, contribution  # noqa: F401  fill the table of methods
from .explanation import Explanation, explain
from .images import read_picture
from .loading import load_mmpretrain_model, load_timm_model
from .methods import METHODS, list_methods, method_options
from .model_view import GRADIENTS, ModelView

__all__ = [
    "GRADIENTS",
    "METHODS",
    "Explanation",
    "ModelView",
    "explain",
    "list_methods",
    "load_mmpretrain_model",
    "load_timm_model",
    "method_options",
    "read_picture",
]
