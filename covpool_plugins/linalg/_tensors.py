"""What every function of this room does with its tensors: checks, working precision, autocast, poisoned samples."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ..errors import DtypeError, ShapeError


def check_square(A: Tensor, name: str = "A") -> None:
    """Raise unless ``A`` is a floating point tensor of shape (..., C, C)."""
    check_floating(A, name)
    if A.ndim < 2 or A.shape[-1] != A.shape[-2]:
        raise ShapeError(f"{name} must be square matrices (..., C, C), got shape {tuple(A.shape)}")


def check_features(X: Tensor, name: str = "X") -> None:
    """Raise unless ``X`` is a floating point tensor of shape (..., C, M) with C and M positive."""
    check_floating(X, name)
    if X.ndim < 2 or X.shape[-1] == 0 or X.shape[-2] == 0:
        raise ShapeError(f"{name} must be features (..., C, M) with C and M positive, got shape {tuple(X.shape)}")


def check_floating(A: Tensor, name: str) -> None:
    """Raise unless ``A`` holds real floating point numbers."""
    if not isinstance(A, Tensor):
        raise DtypeError(f"{name} must be a tensor, got {type(A).__name__}")
    if not A.is_floating_point():
        raise DtypeError(f"{name} must be real floating point, got {A.dtype} of shape {tuple(A.shape)}")


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Half precision is computed in float32; float32 and float64 stay."""
    return dtype if dtype == torch.float64 else torch.float32


def autocast_off(device_type: str) -> AbstractContextManager:
    """A context without autocast. Needed in forward *and* backward: backward products are autocast too."""
    return nullcontext() if device_type == "meta" else torch.autocast(device_type, enabled=False)


def symmetrize(G: Tensor) -> Tensor:
    """(G + Gᵀ) / 2 for G (..., C, C)."""
    return 0.5 * (G + G.mT)


def finite_matrices(A: Tensor) -> Tensor:
    """True for each matrix of A (..., n, n) that holds finite numbers only; shape (..., 1, 1)."""
    return torch.isfinite(A).all(dim=-1, keepdim=True).all(dim=-2, keepdim=True)


def guarded_eigh(A: Tensor) -> tuple[Tensor, Tensor]:
    """``torch.linalg.eigh`` in which a matrix with NaN or infinity spoils only itself.

    LAPACK refuses the whole batch for one non-finite matrix. Here such a matrix gets NaN eigenvalues and finite
    vectors. Returns eigenvalues (..., n) in ascending order and eigenvectors (..., n, n) in columns.
    """
    finite = finite_matrices(A)
    values, vectors = torch.linalg.eigh(torch.where(finite, A, torch.zeros_like(A)))
    return torch.where(finite.squeeze(-1), values, torch.full_like(values, torch.nan)), vectors


class FirstDerivativeOnly(torch.autograd.Function):
    """Passes a gradient on and refuses, when it is differentiated, to leave out that it depends on ``sources``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(gradient: Tensor, method: object, *sources: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.method = inputs[1]

    @staticmethod
    def backward(ctx: Any, H: Tensor) -> Any:
        raise RuntimeError(f"{ctx.method} has no further derivative; 'exact' and gradient='exact' have a second one")


def first_derivative_only(gradient: Tensor, method: object, *sources: Tensor) -> Tensor:
    """``gradient``, guarded against being differentiated when a graph of it is being recorded."""
    return FirstDerivativeOnly.apply(gradient, method, *sources) if torch.is_grad_enabled() else gradient
