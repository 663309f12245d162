"""Explanations of class scores: attribution maps for second-order and first-order classifiers."""

from ..errors import NotApplicableError
from ..pictures import read_picture
from . import (  # noqa: F401  fill the table
    backprop,
    contribution,
    excitation,
    perturbation,
    spectral_maps,
)
from .annotations import AnnotatedPicture, read_annotations
from .explanation import Explanation
from .methods import EXPLANATIONS, ExplanationMethod, explain, explanation_options, list_explanations
from .metrics import deletion_insertion, metrics
from .model_view import ACTIVATIONS, GRADIENTS, ModelView
from .models import load_mmpretrain_model, load_timm_model
from .overlay import eigen_panel, montage
from .pointing import Pointing, mean_accuracy, pointing_game
from .sanity import Randomization, cascading_randomization, depends_on_weights

__all__ = [
    "ACTIVATIONS",
    "EXPLANATIONS",
    "GRADIENTS",
    "AnnotatedPicture",
    "Explanation",
    "ExplanationMethod",
    "ModelView",
    "NotApplicableError",
    "Pointing",
    "Randomization",
    "cascading_randomization",
    "deletion_insertion",
    "depends_on_weights",
    "eigen_panel",
    "explain",
    "explanation_options",
    "list_explanations",
    "load_mmpretrain_model",
    "load_timm_model",
    "mean_accuracy",
    "metrics",
    "montage",
    "pointing_game",
    "read_annotations",
    "read_picture",
]
