"""The square root of symmetric positive semi-definite matrices, with every method's gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._dual import Dual
from ._tensors import autocast_off, check_square, first_derivative_only, guarded_eigh, symmetrize, working_dtype
from .methods.base import EigenMethod, IterativeMethod, Method, Root, resolve_method


def sqrtm(A: Tensor, method: str | Method = "exact", **options: Any) -> Tensor:
    """Square root S of symmetric positive semi-definite matrices, S S = A.

    Only the symmetric part of ``A`` is used. Eigenvalues below zero by rounding count as zero. A matrix with a
    non-finite entry gives NaN for itself alone; a zero matrix gives zero with zero gradient.

    Args:
        A: matrices (..., C, C), float32 or float64; half precision is computed in float32 and rounded at the end.
        method: a name from :func:`list_methods` or a method object.
        options: replace fields of the method, for example ``iterations=7``.

    Returns:
        The roots (..., C, C) in the dtype of ``A``.

    Raises:
        ShapeError, DtypeError: if ``A`` is not a batch of square floating point matrices.
        UnknownNameError, OptionError: for a method or option that does not exist.
    """
    check_square(A)
    chosen = resolve_method(method, **options)
    work = symmetrize(A.to(working_dtype(A.dtype)))
    return root_of_symmetric(work, chosen).to(A.dtype)


def root_of_symmetric(A: Tensor, method: Method, wanted: Root = "root") -> Tensor:
    """The square root (or, for iterative methods, its inverse) of symmetric matrices in their own precision."""
    if isinstance(method, IterativeMethod):
        return IterativeRoot.apply(A, method, wanted)
    assert isinstance(method, EigenMethod) and wanted == "root"
    return EigenRoot.apply(A, method)[0]


def null_threshold(eigenvalues: Tensor) -> Tensor:
    """The size below which an eigenvalue (..., n) cannot be told from zero; shape (..., 1)."""
    n, largest = eigenvalues.shape[-1], eigenvalues.amax(dim=-1, keepdim=True)
    return n * torch.finfo(eigenvalues.dtype).eps * largest.clamp_min(0)


def pairwise_differences(eigenvalues: Tensor, method: EigenMethod) -> Tensor:
    """K(λ_i, λ_j) (..., n, n) for λ (..., n); zero where both eigenvalues are.

    The exact K is infinite where both are zero. On the covariance of features that block meets only directions in
    which the features do not vary, and the gradient that reaches the features is zero there for any finite K.
    """
    first, second = eigenvalues.unsqueeze(-1), eigenvalues.unsqueeze(-2)
    both_zero = (first == 0) & (second == 0)
    one = torch.ones_like(first)
    return torch.where(both_zero, 0.0, method.divided_differences(torch.where(both_zero, one, first), second))


class EigenRoot(torch.autograd.Function):
    """U √λ Uᵀ forward; U [K ∘ (Uᵀ G U)] Uᵀ backward (Daleckii-Krein), K from the method."""

    generate_vmap_rule = True

    @staticmethod
    def forward(A: Tensor, method: EigenMethod) -> tuple[Tensor, Tensor, Tensor]:
        with autocast_off(A.device.type):
            values, U = guarded_eigh(A)
            values = torch.where(values <= null_threshold(values), 0.0, values)
            S = (U * values.sqrt().unsqueeze(-2)) @ U.mT
        return S, values, U

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        _, values, U = output
        A, ctx.method = inputs
        ctx.mark_non_differentiable(values, U)
        ctx.save_for_backward(A, values, U)

    @staticmethod
    def backward(ctx: Any, G: Tensor, *_: Tensor) -> tuple[Tensor, None]:
        A, values, U = ctx.saved_tensors
        with autocast_off(G.device.type):
            E = U.mT @ symmetrize(G) @ U
            grad = U @ (pairwise_differences(values, ctx.method) * E) @ U.mT
        return first_derivative_only(grad, ctx.method, A, G), None


class IterativeRoot(torch.autograd.Function):
    """t^p f(A / t) with a matrix iteration f, a scale t of the matrix, and p = 1/2 or -1/2.

    Backward runs the iteration once more with the gradient as its tangent (see ``_dual``) and adds what reaches A
    through t. Only A is kept.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(A: Tensor, method: IterativeMethod, wanted: Root) -> Tensor:
        with autocast_off(A.device.type):
            t = positive_scale(A, method)
            return _power(t, wanted) * method.evaluate(A / t, wanted)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        A, ctx.method, ctx.wanted = inputs
        ctx.save_for_backward(A)

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> tuple[Tensor, None, None]:
        (A,) = ctx.saved_tensors
        method, wanted = ctx.method, ctx.wanted
        with autocast_off(G.device.type):
            G = symmetrize(G)
            t = positive_scale(A, method)
            B = A / t
            result: Dual = method.evaluate(Dual(B, G), wanted)
            exponent = 0.5 if wanted == "root" else -0.5
            along_scale = exponent * _inner(G, result.value) - _inner(result.tangent, B)
            grad = _power(t, wanted) / t * (result.tangent + along_scale * _scale_gradient(A, t, method))
            return torch.where(_is_zero(A), torch.zeros_like(grad), grad), None, None


def positive_scale(A: Tensor, method: IterativeMethod) -> Tensor:
    """What A (..., n, n) is divided by, shape (..., 1, 1); one for a zero matrix."""
    if method.scaling == "trace":
        t = A.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    else:
        t = A.square().sum(dim=(-2, -1), keepdim=True).sqrt()
    return torch.where(_is_zero(A), torch.ones_like(t), t)


def _scale_gradient(A: Tensor, t: Tensor, method: IterativeMethod) -> Tensor:
    if method.scaling == "trace":
        return torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    return A / t


def _is_zero(A: Tensor) -> Tensor:
    return (A == 0).all(dim=-1, keepdim=True).all(dim=-2, keepdim=True)


def _power(t: Tensor, wanted: Root) -> Tensor:
    return t.sqrt() if wanted == "root" else t.rsqrt()


def _inner(G: Tensor, H: Tensor) -> Tensor:
    return (G * H).sum(dim=(-2, -1), keepdim=True)
