"""The square root and the inverse root of symmetric positive semi-definite matrices, with every method's gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import OptionError
from ._dual import Dual
from .lyapunov import newton_schulz_solution
from .methods.base import IterativeMethod, Method, Wanted, resolve_method
from .routes import PRODUCTS, uses_products
from .spectral import SpectralFunction
from .tensors import (
    apply,
    autocast_off,
    check_square,
    finite_matrices,
    first_derivative_only,
    symmetrize,
    trace,
    working_dtype,
)


def sqrtm(A: Tensor, method: str | Method = "exact", **options: Any) -> Tensor:
    """Square root S of symmetric positive semi-definite matrices, S S = A.

    Only the symmetric part of ``A`` is used. Eigenvalues below zero by rounding count as zero. A matrix with a
    non-finite entry gives NaN for itself alone; a zero matrix gives zero with zero gradient.

    Args:
        A: matrices (..., C, C), float32 or float64; half precision is computed in float32 and rounded at the end.
        method: a name from ``list_methods("sqrtm")`` or a method object.
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
    return root_of_symmetric(symmetrize(A.to(working_dtype(A.dtype))), chosen).to(A.dtype)


def inv_sqrtm(A: Tensor, method: str | Method = "exact", eps: float = 0.0, **options: Any) -> Tensor:
    """Inverse square root (A + eps I)^(-1/2) of symmetric positive semi-definite matrices.

    Args:
        A: matrices (..., C, C), float32 or float64; half precision is computed in float32 and rounded at the end.
        method: a name from ``list_methods("inv_sqrtm")`` or a method object.
        eps: added to the diagonal. With 0 and ``exact``, eigenvalues that count as zero stay zero (Moore-Penrose);
            the iterative methods need a positive definite matrix.
        options: replace fields of the method, for example ``iterations=7``.

    Returns:
        The inverse roots (..., C, C) in the dtype of ``A``.

    Raises:
        ShapeError, DtypeError: if ``A`` is not a batch of square floating point matrices.
        UnknownNameError, OptionError: for a method or option that does not exist, or a negative ``eps``.

    Examples:
        >>> A = torch.diag(torch.tensor([4.0, 0.0]))
        >>> inv_sqrtm(A).diagonal()
        tensor([0.5000, 0.0000])
        >>> inv_sqrtm(A, eps=1e-2).diagonal()
        tensor([ 0.4994, 10.0000])
    """
    check_square(A)
    if not eps >= 0:
        raise OptionError(f"eps must not be negative, got {eps!r}")
    chosen = resolve_method(method, "inv_sqrtm", **options)
    work = symmetrize(A.to(working_dtype(A.dtype)))
    if eps:
        work = work + eps * torch.eye(A.shape[-1], dtype=work.dtype, device=A.device)
    return root_of_symmetric(work, chosen, "inverse").to(A.dtype)


def root_of_symmetric(A: Tensor, method: Method, wanted: Wanted = "root") -> Tensor:
    """What ``wanted`` says of symmetric matrices, in their own precision."""
    if uses_products(method, A):
        method = PRODUCTS[A.dtype]
    if isinstance(method, IterativeMethod):
        return apply(IterativeRoot, A, method, wanted)
    return apply(SpectralFunction, A, method)[0]


class IterativeRoot(torch.autograd.Function):
    """t^p f(A / t) with a matrix iteration f, a scale t of the matrix, and p = 1/2 or -1/2.

    The exact backward runs the iteration once more with the gradient as its tangent (see ``_dual``) and adds what
    reaches A through t; only A is kept. The Lyapunov backward solves for the gradient with the computed root.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(A: Tensor, method: IterativeMethod, wanted: Wanted) -> Tensor:
        with autocast_off(A.device.type):
            t = positive_scale(A, method)
            root = _power(t, wanted) * method.evaluate(A / t, wanted)
            root = torch.where(is_zero(A), 0.0, root)
            return torch.where(finite_matrices(A), root, torch.nan)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        A, ctx.method, ctx.wanted = inputs
        ctx.by_lyapunov = ctx.method.gradient != "exact" and ctx.wanted != "factor"
        ctx.save_for_backward(A, output) if ctx.by_lyapunov else ctx.save_for_backward(A)

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> tuple[Tensor, None, None]:
        A = ctx.saved_tensors[0]
        G = symmetrize(G)
        with autocast_off(G.device.type):
            if ctx.by_lyapunov:
                root = ctx.saved_tensors[1]
                # The inverse root T has T T = A⁻¹, so T dT + dT T = -T T dA T T.
                right = G if ctx.wanted == "root" else -(root @ (root @ G @ root) @ root)
                grad = newton_schulz_solution(root, right, ctx.method.lyapunov_iterations)
                return first_derivative_only(grad, ctx.method, A, G), None, None
            return _gradient_of_steps(A, G, ctx.method, ctx.wanted), None, None


def _gradient_of_steps(A: Tensor, G: Tensor, method: IterativeMethod, wanted: Wanted) -> Tensor:
    t = positive_scale(A, method)
    B = A / t
    result: Dual = method.evaluate(Dual(B, G), wanted)
    exponent = 0.5 if wanted == "root" else -0.5
    along_scale = exponent * _inner(G, result.value) - _inner(result.tangent, B)
    grad = _power(t, wanted) / t * (result.tangent + along_scale * _scale_gradient(A, t, method))
    return torch.where(is_zero(A), torch.zeros_like(grad), grad)


def positive_scale(A: Tensor, method: IterativeMethod) -> Tensor:
    """What A (..., n, n) is divided by, shape (..., 1, 1); one for a zero matrix."""
    if method.scaling == "trace":
        t = trace(A)
    elif method.scaling == "frobenius":
        t = _frobenius(A)
    else:
        t = _frobenius(A @ A).sqrt()
    return torch.where(is_zero(A), torch.ones_like(t), t)


def _scale_gradient(A: Tensor, t: Tensor, method: IterativeMethod) -> Tensor:
    if method.scaling == "trace":
        return torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    B = A / t
    return B if method.scaling == "frobenius" else B @ B @ B


def _frobenius(A: Tensor) -> Tensor:
    return torch.where(is_zero(A), 1.0, A).square().sum(dim=(-2, -1), keepdim=True).sqrt()


def is_zero(A: Tensor) -> Tensor:
    """True for each matrix of zeros, shape (..., 1, 1)."""
    return (A == 0).all(dim=-1, keepdim=True).all(dim=-2, keepdim=True)


def _power(t: Tensor, wanted: Wanted) -> Tensor:
    return t.sqrt() if wanted == "root" else t.rsqrt()


def _inner(G: Tensor, H: Tensor) -> Tensor:
    return (G * H).sum(dim=(-2, -1), keepdim=True)
