"""What a file may ask for besides tensors and plain containers: NumPy's scalars and the types of their numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

NamedGlobal = tuple[Callable[..., Any], str]


def numpy_scalar_globals() -> list[NamedGlobal]:
    """What unpickles a NumPy scalar, by every name that NumPy 1 and 2 have written."""
    scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]
    types = [(getattr(np.dtypes, name), f"numpy.dtypes.{name}") for name in np.dtypes.__all__]
    named: list[NamedGlobal] = [(np.dtype, "numpy.dtype"), *types]
    return [*named, (scalar, "numpy._core.multiarray.scalar"), (scalar, "numpy.core.multiarray.scalar")]


def numpy_array_globals() -> list[NamedGlobal]:
    """What unpickles a NumPy array besides; the file says how much memory it takes."""
    reconstruct = np._core.multiarray._reconstruct  # type: ignore[attr-defined]
    modules = ("numpy._core.multiarray", "numpy.core.multiarray")
    return [(np.ndarray, "numpy.ndarray"), *((reconstruct, f"{module}._reconstruct") for module in modules)]
