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

from ..whitening import PCANorm1d, PCANorm2d, PCANorm3d, ZCANorm1d, ZCANorm2d, ZCANorm3d
from .active_method import SwitchMethodHook
from .covariance_pooling import CovariancePooling
from .heads import SecondOrderClsHead, SecondOrderMultiLabelHead
from .layers import MatrixSqrt, NormSwap
from .measuring_hooks import SpectrumHook, WhiteningErrorHook
from .stanford_dogs import StanfordDogs
from .timm_backbone import TIMMBackbone

__all__ = [
    "CovariancePooling",
    "MatrixSqrt",
    "NormSwap",
    "PCANorm1d",
    "PCANorm2d",
    "PCANorm3d",
    "SecondOrderClsHead",
    "SecondOrderMultiLabelHead",
    "SpectrumHook",
    "StanfordDogs",
    "SwitchMethodHook",
    "TIMMBackbone",
    "WhiteningErrorHook",
    "ZCANorm1d",
    "ZCANorm2d",
    "ZCANorm3d",
]
