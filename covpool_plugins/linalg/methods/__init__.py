"""Method objects: frozen dataclasses that say how a matrix function and its gradient are computed.

Every module of this folder is imported, so a new method is one file: its class, and the line that adds an object of it
to the table of roots or of inverse roots. A method is an :class:`~.base.EigenMethod`, the root by eigen-decomposition
with a gradient rule of its own, or an :class:`~.base.IterativeMethod`, matrix products whose gradient follows.
"""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
