"""The square root and the inverse root of matrices, and the root of the covariance of features in one step.

There are two routes to the exact root. ``exact`` and ``svdpade`` decompose a matrix, which a CPU does well. Where a
decomposition is slow (on a GPU) or unknown (in ONNX), the ``minimax`` iteration with enough steps gives the same root,
to the rounding of its precision. While a graph is exported every root by eigen-decomposition takes that route: these
methods differ in their gradients alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..checks import check_choice, check_number
from .methods.base import (
    COMPUTES,
    Compute,
    Method,
    Vectorize,
    Wanted,
    check_root_options,
    function_of_covariance,
    resolve_method,
)
from .methods.minimax import Minimax
from .tensors import check_features, check_square, symmetrize, working_dtype

# Steps and smallest eigenvalue at which the iteration's error is that of eigh in the same precision.
IN_FLOAT32 = Minimax(smallest=1e-4, steps=5)
IN_FLOAT64 = Minimax(smallest=1e-8, steps=9)
# In float64, of matrices that were rounded to float32: their negative eigenvalues must not grow.
OF_ROUNDED = Minimax(smallest=1e-6, steps=7)


def sqrtm(A: Tensor, method: str | Method = "exact", *, compute: Compute = "mixed", **options: Any) -> Tensor:
    """Square root S of symmetric positive semi-definite matrices, S S = A.

    Only the symmetric part of ``A`` is used. Eigenvalues below zero by rounding count as zero. A matrix with a
    non-finite entry gives NaN for itself alone; a zero matrix gives zero with zero gradient.

    Args:
        A: matrices (..., C, C), float32 or float64; half precision is computed as float32 and rounded at the end.
        method: a name from ``list_methods("sqrtm")`` or a method object.
        compute: for float32 matrices, ``mixed`` decomposes in float64 and runs iterations in float32; ``float32`` and
            ``float64`` compute everything in that precision. Decomposed in float32, eigenvalues below 1e-6 of the
            largest count as zero. Float64 matrices are computed in float64.
        options: replace fields of the method, for example ``iterations=7``.

    Returns:
        The roots (..., C, C) in the dtype of ``A``.

    Raises:
        ShapeError, DtypeError: if ``A`` is not a batch of square floating point matrices.
        UnknownNameError, OptionError: for a method or option that does not exist.

    Examples:
        >>> A = torch.tensor([[5.0, 4.0], [4.0, 5.0]])
        >>> sqrtm(A).round(decimals=4)
        tensor([[2., 1.],
                [1., 2.]])
        >>> sqrtm(A, "isqrt", iterations=15).round(decimals=4)
        tensor([[2., 1.],
                [1., 2.]])
    """
    check_square(A)
    chosen = resolve_method(method, "sqrtm", **options)
    check_choice("compute", compute, COMPUTES)
    return root_of_symmetric(symmetrize(A.to(working_dtype(A.dtype))), chosen, compute=compute).to(A.dtype)


def inv_sqrtm(
    A: Tensor, method: str | Method = "exact", eps: float = 0.0, *, compute: Compute = "mixed", **options: Any
) -> Tensor:
    """Inverse square root (A + eps I)^(-1/2) of symmetric positive semi-definite matrices.

    Args:
        A: matrices (..., C, C), float32 or float64; half precision is computed as float32 and rounded at the end.
        method: a name from ``list_methods("inv_sqrtm")`` or a method object.
        eps: added to the diagonal. With 0 and ``exact``, eigenvalues that count as zero (below 1e-6 of the largest for
            n = 64 and float32 matrices, below 2e-15 for float64) stay zero (Moore-Penrose); the iterative methods need
            a positive definite matrix.
        compute: as of :func:`sqrtm`.
        options: replace fields of the method, for example ``iterations=7``.

    Returns:
        The inverse roots (..., C, C) in the dtype of ``A``.

    Raises:
        ShapeError, DtypeError: if ``A`` is not a batch of square floating point matrices.
        UnknownNameError, OptionError: for a method or option that does not exist, or an ``eps`` out of range.

    Examples:
        >>> A = torch.diag(torch.tensor([4.0, 0.0]))
        >>> inv_sqrtm(A).diagonal()
        tensor([0.5000, 0.0000])
        >>> inv_sqrtm(A, eps=1e-2).diagonal()
        tensor([ 0.4994, 10.0000])
    """
    check_square(A)
    check_number("eps", eps, "[0, inf)")
    chosen = resolve_method(method, "inv_sqrtm", **options)
    check_choice("compute", compute, COMPUTES)
    work = symmetrize(A.to(working_dtype(A.dtype)))
    return root_of_symmetric(work, chosen, "inverse", compute, eps).to(A.dtype)


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
    check_features(X, centered)
    check_root_options(compute, vectorize)
    chosen, compute = _routed(resolve_method(method, **options), X, compute)
    return function_of_covariance(X, chosen, centered, compute, vectorize)


def root_of_symmetric(
    A: Tensor, method: Method, wanted: Wanted = "root", compute: Compute = "mixed", shift: float = 0.0
) -> Tensor:
    """The root or the inverse root of A + shift I for symmetric matrices, in their own precision."""
    method, compute = _routed(method, A, compute, IN_FLOAT64 if A.dtype == torch.float64 else OF_ROUNDED)
    return method.of_matrix(A, wanted, compute, shift)


def _routed(method: Method, X: Tensor, compute: Compute, wide: Minimax = IN_FLOAT64) -> tuple[Method, Compute]:
    """The method that computes in place of ``method`` for this input, and in what; ``wide`` is the one for float64."""
    if not method.by_products(X):
        return method, compute
    return (IN_FLOAT32, "float32") if compute == "float32" and X.dtype != torch.float64 else (wide, "float64")
