"""The square root of the covariance of features, in one step."""

from __future__ import annotations

from typing import Any, Literal, get_args

from torch import Tensor

from ..checks import check_choice
from .methods.base import COMPUTES, Compute, Method, resolve_method
from .routes import routed
from .tensors import check_features, working_dtype

Vectorize = Literal["full", "triu"]
VECTORIZES: tuple[str, ...] = get_args(Vectorize)


def covariance_sqrt(
    X: Tensor,
    method: str | Method = "svdpade",
    *,
    centered: bool = True,
    compute: Compute = "mixed",
    vectorize: Vectorize = "full",
    **options: Any,
) -> Tensor:
    """Square root of the covariance of features: ``sqrtm(covariance(X))`` in one step, faster and more accurate.

    Args:
        X: features (..., C, M), C channels at M positions.
        method: a name from :func:`list_methods` or a method object.
        centered: subtract the mean over the positions first.
        compute: for float32 features, ``mixed`` decomposes in float64 and runs the products with the gradient in
            float32 (iterative methods, which need no more, run in float32); ``float32`` and ``float64`` run everything
            in that precision. Float64 features are computed in float64.
        vectorize: ``full`` matrices, or the upper triangles ``triu`` as vectors.
        options: replace fields of the method.

    Returns:
        Roots (..., C, C), or (..., C(C+1)/2) for ``triu``, in the dtype of ``X``.

    Raises:
        ShapeError, DtypeError: if ``X`` is not a batch of floating point features.
        UnknownNameError, OptionError: for a method or an option that does not exist.

    Examples:
        >>> X = torch.randn(2, 64, 49, requires_grad=True)
        >>> covariance_sqrt(X, "svdpade").shape
        torch.Size([2, 64, 64])
        >>> covariance_sqrt(X, "isqrt", iterations=7, vectorize="triu").shape
        torch.Size([2, 2080])
    """
    check_features(X)
    check_root_options(compute, vectorize)
    chosen = resolve_method(method, **options)
    method, compute = routed(chosen, X, compute)
    return method.of_features(X.to(working_dtype(X.dtype)), centered, compute, vectorize == "triu").to(X.dtype)


def check_root_options(compute: str, vectorize: str) -> None:
    """Raise :class:`OptionError` unless both are options of :func:`covariance_sqrt`.

    Examples:
        >>> check_root_options("mixed", "tril")
        Traceback (most recent call last):
        covpool_plugins.errors.OptionError: vectorize must be one of full, triu, got 'tril'
    """
    check_choice("compute", compute, COMPUTES)
    check_choice("vectorize", vectorize, VECTORIZES)
