"""Necks, heads, hooks, layers and data sets for MMPretrain.

Every class here is also ``covpool_plugins.<Name>``, so that a config can name it as ``type='covpool_plugins.<Name>'``
without ``custom_imports``; a new one needs its row in ``covpool_plugins.MMPRETRAIN_CLASSES`` for that.
"""

import warnings

from ..errors import require_extra

with warnings.catch_warnings():
    # mmcv-lite is what the extra installs; the operator that it lacks is not used here.
    warnings.filterwarnings("ignore", message="Fail to import ``MultiScaleDeformableAttention``")
    require_extra("mmpretrain.models", "mmpretrain")

from .covariance_pooling import CovariancePooling
from .matrix_sqrt import MatrixSqrt
from .norm_layers import PCANorm1d, PCANorm2d, PCANorm3d, ZCANorm1d, ZCANorm2d, ZCANorm3d
from .norm_swap import NormSwap
from .second_order_heads import SecondOrderClsHead, SecondOrderMultiLabelHead
from .so_vit import SoViTHead
from .spectrum_hook import SpectrumHook
from .stanford_dogs import StanfordDogs
from .switch_method_hook import SwitchMethodHook
from .timm_backbone import TIMMBackbone
from .whitening_error_hook import WhiteningErrorHook

__all__ = [
    "CovariancePooling",
    "MatrixSqrt",
    "NormSwap",
    "PCANorm1d",
    "PCANorm2d",
    "PCANorm3d",
    "SecondOrderClsHead",
    "SecondOrderMultiLabelHead",
    "SoViTHead",
    "SpectrumHook",
    "StanfordDogs",
    "SwitchMethodHook",
    "TIMMBackbone",
    "WhiteningErrorHook",
    "ZCANorm1d",
    "ZCANorm2d",
    "ZCANorm3d",
]
