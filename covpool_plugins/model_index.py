"""Our parts under their bare names, and our configs as models that MMPretrain knows by name."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from types import ModuleType

from .errors import one_line

PACKAGE = Path(__file__).resolve().parent
# The index, and the folder that its configs are relative to: in an installed wheel and in a checkout.
INDEX_FILES = (
    (PACKAGE / ".mim" / "model-index.yml", PACKAGE / ".mim"),
    (PACKAGE.parent / "configs" / "model-index.yml", PACKAGE.parent),
)
# An attribute of the hub: a reloaded covpool_plugins sees it, and a reloaded MMPretrain starts without it.
REGISTERED = "_covpool_plugins_index"


def register_configs(module: ModuleType) -> None:
    """Register our parts and the configs of the model index with a loaded ``mmpretrain.apis.model``, once.

    ``custom_imports=dict(imports=['covpool_plugins'])`` is then enough for ``type='CovariancePooling'``.
    ``list_models``, ``get_model``, ``inference_model`` and all inferencers of MMPretrain look names up there. An error
    becomes a warning of one line: it must not stop the import of MMPretrain.
    """
    try:
        importlib.import_module(f"{__package__}.mmpretrain_plugin")
        hub = module.ModelHub
        if not hasattr(hub, REGISTERED):
            index, folder = find_index()
            hub.register_model_index(index, config_prefix=folder)
            setattr(hub, REGISTERED, str(index))
    except Exception as error:
        warnings.warn(f"MMPretrain does not know the configs of covpool_plugins: {one_line(error)}", stacklevel=2)


def find_index() -> tuple[Path, Path]:
    """The model index, and the folder that its entries are relative to.

    Raises:
        FileNotFoundError: naming the places searched.
    """
    for index, folder in INDEX_FILES:
        if index.is_file():
            return index, folder
    raise FileNotFoundError(f"no model index; looked for {' and '.join(str(index) for index, _ in INDEX_FILES)}")
