"""The covariance of features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .tensors import (
    Function,
    apply,
    autocast_off,
    check_features,
    exporting,
    kept,
    power_of_two,
    product,
    symmetrize,
    trace,
    transpose,
    working_dtype,
)


def covariance(X: Tensor, centered: bool = True) -> Tensor:
    """Covariance of the channels over the positions, X̃ X̃ᵀ / M with X̃ = X - mean.

    The mean is subtracted before the product: X Xᵀ / M - μ μᵀ cancels when the mean is large.

    Args:
        X: features (..., C, M), C channels at M positions; half precision is computed in float32.
        centered: subtract the mean over the positions; otherwise the second moment X Xᵀ / M.

    Returns:
        Matrices (..., C, C) in the dtype of ``X``.

    Raises:
        ShapeError, DtypeError: if ``X`` is not a batch of floating point features.
        OptionError: if ``centered`` is no flag.

    Examples:
        >>> X = torch.tensor([[1.0, 3.0], [2.0, 2.0]])  # two channels at two positions
        >>> covariance(X)
        tensor([[1., 0.],
                [0., 0.]])
        >>> covariance(X, centered=False)
        tensor([[5., 4.],
                [4., 4.]])
    """
    check_features(X, centered)
    return apply(Covariance, X.to(working_dtype(X.dtype)), centered, False).to(X.dtype)


def smaller_covariance(X: Tensor, centered: bool = True) -> Tensor:
    """The covariance X̃ X̃ᵀ / M or, for fewer positions than channels, the Gram matrix X̃ᵀ X̃ / M.

    The two have the same eigenvalues but for zeros, so what depends on eigenvalues alone (the spectrum, a norm) costs
    less from the smaller. Zero for features that are constant up to rounding.

    Args:
        X: features (..., C, M).
        centered: subtract the mean over the positions.

    Returns:
        Matrices (..., n, n), n = min(C, M), in the dtype of ``X``.

    Raises:
        ShapeError, DtypeError: if ``X`` is not a batch of floating point features.
        OptionError: if ``centered`` is no flag.

    Examples:
        >>> smaller_covariance(torch.randn(2, 64, 9)).shape
        torch.Size([2, 9, 9])
    """
    check_features(X, centered)
    return apply(Covariance, X.to(working_dtype(X.dtype)), centered, fewer_positions(X)).to(X.dtype)


def fewer_positions(X: Tensor) -> bool:
    """Whether features (..., C, M) have no more positions than channels; not where an export leaves M open."""
    C, M = X.shape[-2:]
    return not (exporting() and isinstance(M, torch.SymInt)) and M <= C


def center(X: Tensor, centered: bool, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor | None]:
    """X (..., C, M) minus its mean over the positions, in ``dtype``, and that mean; X itself and None otherwise."""
    wide = X.to(dtype or X.dtype)
    if not centered:
        return wide, None
    mean = wide.mean(dim=-1, keepdim=True)
    return (wide - mean if wide.dtype == X.dtype else wide.sub_(mean)), mean


def rounding_of_mean(mean: Tensor) -> Tensor:
    """The variance, in float64, that features constant at ``mean`` (..., C, 1) may show by its rounding; (..., 1).

    Where the covariance has no more it counts as zero: a root, homogeneous of degree one, would turn that rounding into
    gradients of order one.
    """
    return (4 * torch.finfo(mean.dtype).eps) ** 2 * mean.detach().double().square().sum(dim=-2)


def zero_where_constant(A: Tensor, mean: Tensor | None) -> Tensor:
    """The covariance or Gram matrix A (..., n, n) of features with that mean; zero where they are constant."""
    if mean is None:
        return A
    constant = trace(A.detach()) <= rounding_of_mean(mean).unsqueeze(-1)
    return A * (~constant).to(A.dtype)


class Covariance(Function):
    """X̃ X̃ᵀ / M, or the Gram matrix X̃ᵀ X̃ / M; one product forward, one backward, and only X is kept."""

    @staticmethod
    def forward(X: Tensor, centered: bool, gram: bool) -> Tensor:
        with autocast_off(X.device.type):
            Xc, mean = center(X, centered)
            # The sum of squares may leave the range of float32 where their mean does not.
            unit = power_of_two(Xc)
            Y = Xc / unit
            A = transpose(Y) @ Y if gram else Y @ transpose(Y)
            return zero_where_constant(A / X.shape[-1] * unit * unit, mean)

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> tuple[Tensor, None, None]:
        X, centered, gram = kept(ctx)
        G, Xc = symmetrize(G) * (2 / X.shape[-1]), center(X, centered)[0]
        return center(product(Xc, G), centered)[0] if gram else product(G, Xc), None, None

    @staticmethod
    def tangent(ctx: Any, H: Tensor, *_: None) -> Tensor:
        X, centered, gram = kept(ctx)
        Hc, Xc = center(H, centered)[0] / X.shape[-1], center(X, centered)[0]
        along = product(transpose(Hc), Xc) if gram else product(Hc, transpose(Xc))
        return along + transpose(along)
