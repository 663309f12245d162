"""Second-order pooling for timm and MMPretrain."""

from . import interruption  # noqa: F401  first: it takes the signal of Ctrl-C

# isort: split
import difflib
import importlib
from typing import Any

from wrapt import register_post_import_hook

from .model_index import register_configs
from .pooling import create_pool, list_pools
from .timm_plugin import create_model, create_two_stream_model, list_heads, save_for_hub

__all__ = ["create_model", "create_pool", "create_two_stream_model", "list_heads", "list_pools", "save_for_hub"]
__version__ = "0.2.0.dev0"

# Imported on first use: a config names them as type='covpool_plugins.<Name>', and timm users need no MMPretrain.
MMPRETRAIN_CLASSES = {
    "CovariancePooling": "mmpretrain_plugin",
    "MatrixSqrt": "mmpretrain_plugin",
    "NormSwap": "mmpretrain_plugin",
    "PCANorm1d": "whitening",
    "PCANorm2d": "whitening",
    "PCANorm3d": "whitening",
    "SecondOrderClsHead": "mmpretrain_plugin",
    "SecondOrderMultiLabelHead": "mmpretrain_plugin",
    "SpectrumHook": "mmpretrain_plugin",
    "StanfordDogs": "mmpretrain_plugin",
    "SwitchMethodHook": "mmpretrain_plugin",
    "TIMMBackbone": "mmpretrain_plugin",
    "WhiteningErrorHook": "mmpretrain_plugin",
    "ZCANorm1d": "whitening",
    "ZCANorm2d": "whitening",
    "ZCANorm3d": "whitening",
}


def __getattr__(name: str) -> Any:
    if name not in MMPRETRAIN_CLASSES:
        close = [] if name.startswith("_") else difflib.get_close_matches(name, [*MMPRETRAIN_CLASSES, *__all__], n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")
    return getattr(importlib.import_module(f".{MMPRETRAIN_CLASSES[name]}", __name__), name)


# `get_model('resnet50_svdpade_8xb32_in1k')` has to work whichever package is imported first, and MMPretrain has neither
# entry points nor another hook for model indexes of other packages. Importing it here would take timm users seconds.
register_post_import_hook(register_configs, "mmpretrain.apis.model")
