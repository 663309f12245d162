"""The matrix square root as a layer."""

from __future__ import annotations

from typing import Any

from mmengine.registry import MODELS
from torch import Tensor, nn

from ..linalg import Method, resolve_method, sqrtm


@MODELS.register_module()
class MatrixSqrt(nn.Module):
    """Square root of symmetric positive semi-definite matrices (..., C, C), see :func:`covpool_plugins.linalg.sqrtm`.

    Args:
        method: name or object of the method, one of ``covpool_plugins.linalg.list_methods('sqrtm')``.
        options: of the method, for example ``iterations=7``.

    Raises:
        UnknownNameError, OptionError: when built with a method or an option that does not exist.
        ShapeError, DtypeError: in ``forward``, for anything but square floating point matrices.
    """

    def __init__(self, method: str | Method = "svdpade", **options: Any) -> None:
        super().__init__()
        self.method = resolve_method(method, **options)

    def forward(self, A: Tensor) -> Tensor:
        """The roots (..., C, C) of matrices (..., C, C), of which only the symmetric part counts."""
        return sqrtm(A, self.method)

    def extra_repr(self) -> str:
        return str(self.method)
