"""Our configs among the models that MMPretrain knows by name."""

from __future__ import annotations

import threading
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

from .errors import one_line

PACKAGE = Path(__file__).resolve().parent
# The index, and the folder that its configs are relative to: in an installed wheel and in a checkout.
INDEX_FILES = (
    (PACKAGE / ".mim" / "model-index.yml", PACKAGE / ".mim"),
    (PACKAGE.parent / "configs" / "model-index.yml", PACKAGE.parent),
)
# On the hub itself: a second copy of this module sees it too, and a reloaded MMPretrain starts without it.
REGISTERED = "_covpool_plugins_index"

_one_at_a_time = threading.Lock()


def register_configs(module: ModuleType) -> None:
    """Make the configs of the model index known to a loaded ``mmpretrain.apis.model``, once.

    ``list_models``, ``get_model``, ``inference_model`` and all inferencers of MMPretrain look names up there. What goes
    wrong is a warning of one line: it must not stop the import of MMPretrain.
    """
    try:
        with _one_at_a_time:
            _register(module.ModelHub)
    except Exception as error:
        warnings.warn(f"MMPretrain does not know the configs of covpool_plugins: {one_line(error)}", stacklevel=2)


def find_index() -> tuple[Path, Path]:
    """The model index, and the folder that its entries are relative to.

    Raises:
        FileNotFoundError: naming the places where it can be.
    """
    for index, folder in INDEX_FILES:
        if index.is_file():
            return index, folder
    raise FileNotFoundError(f"no model index; looked for {' and '.join(str(index) for index, _ in INDEX_FILES)}")


def _register(hub: Any) -> None:
    if not hasattr(hub, REGISTERED):
        index, folder = find_index()
        hub.register_model_index(index, config_prefix=folder)
        setattr(hub, REGISTERED, str(index))
