"""The covariance of features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._tensors import autocast_off, check_features, symmetrize, working_dtype


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
    """
    check_features(X)
    return Covariance.apply(X.to(working_dtype(X.dtype)), centered).to(X.dtype)


def center(X: Tensor, centered: bool) -> Tensor:
    """X (..., C, M) minus its mean over the positions, or X itself.

    Features that are constant up to the rounding of their mean give exact zeros: a root, homogeneous of degree one,
    would turn that rounding into gradients of order one.
    """
    if not centered:
        return X
    Xc = X - X.mean(dim=-1, keepdim=True)
    # The largest entry and not a norm: it does not overflow where X does not.
    rounding = 4 * torch.finfo(X.dtype).eps * _largest(X)
    return torch.where(_largest(Xc) <= rounding, torch.zeros_like(Xc), Xc)


def _largest(X: Tensor) -> Tensor:
    return X.detach().abs().amax(dim=(-2, -1), keepdim=True)


class Covariance(torch.autograd.Function):
    """X̃ X̃ᵀ / M; one product forward, one backward, and only X is kept."""

    generate_vmap_rule = True

    @staticmethod
    def forward(X: Tensor, centered: bool) -> Tensor:
        with autocast_off(X.device.type):
            Xc = center(X, centered)
            return (Xc @ Xc.mT) / X.shape[-1]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        X, ctx.centered = inputs
        ctx.save_for_backward(X)

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> tuple[Tensor, None]:
        (X,) = ctx.saved_tensors
        with autocast_off(G.device.type):
            return (2 / X.shape[-1]) * symmetrize(G) @ center(X, ctx.centered), None
