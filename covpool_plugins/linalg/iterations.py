"""Matrix iterations for the root and the inverse root, of matrices and of features."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ._dual import Dual
from .covariance import Covariance, Gram, center, fewer_positions, zero_where_constant
from .packing import pack_triu
from .tensors import (
    Function,
    apply,
    autocast_off,
    finite_matrices,
    first_derivative_only,
    identity_like,
    keep,
    power_of_two,
    product,
    root_of,
    symmetrize,
    trace,
    transpose,
)

if TYPE_CHECKING:
    from .methods.base import IterativeMethod, Wanted


def iterative_root(A: Tensor, method: IterativeMethod, wanted: Wanted) -> Tensor:
    """What ``wanted`` says of symmetric matrices (..., n, n), in their precision."""
    unit = power_of_two(A, 2)
    root = apply(IterativeRoot, A / unit, method, wanted)
    return root * (unit.sqrt() if wanted == "root" else unit.rsqrt())


def iterative_root_of_features(X: Tensor, method: IterativeMethod, centered: bool, packed: bool) -> Tensor:
    """The root of the covariance of features (..., C, M), in their precision."""
    # The root is homogeneous; features near one keep the powers of their scale that occur within range.
    unit = power_of_two(X)
    root = unit * _by_smaller_side(X / unit, method, centered)
    return pack_triu(root) if packed else root


def _by_smaller_side(X: Tensor, method: IterativeMethod, centered: bool) -> Tensor:
    """The same matrix function p of A = Y Yᵀ, written with the smaller of A and Yᵀ Y: p(0) √t I + Y f(Yᵀ Y) Yᵀ."""
    C, M = X.shape[-2:]
    if not fewer_positions(X) or method.gradient == "lyapunov" or not method.through_gram:
        exact = dataclasses.replace(method, gradient="exact") if method.gradient == "auto" else method
        return apply(IterativeRoot, apply(Covariance, X, centered), exact, "root")
    Xc, mean = center(X, centered)
    Y = Xc / root_of(M)
    gram = zero_where_constant(apply(Gram, Y), mean)
    root = product(product(Y, apply(IterativeRoot, gram, method, "factor")), transpose(Y))
    if not method.at_zero:
        return root
    eye = torch.eye(C, dtype=X.dtype, device=X.device)
    return root + method.at_zero * torch.where(is_zero(gram), 0.0, positive_scale(gram, method)).sqrt() * eye


class IterativeRoot(Function):
    """t^p f(A / t) with a matrix iteration f, a scale t of the matrix, and p = 1/2 or -1/2.

    The exact backward runs the iteration once more with the gradient as its tangent (see ``_dual``) and adds what
    reaches A through t; only A is kept. The Lyapunov backward solves for the gradient with the computed root.
    """

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
        keep(ctx, *((A, output) if ctx.by_lyapunov else (A,)))

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> tuple[Tensor, None, None]:
        derivative: Any = _lyapunov_derivative if ctx.by_lyapunov else _gradient_of_steps
        return derivative(*ctx.saved_tensors, symmetrize(G), ctx.method, ctx.wanted), None, None

    @staticmethod
    def tangent(ctx: Any, along_A: Tensor, *_: Any) -> Tensor:
        derivative: Any = _lyapunov_derivative if ctx.by_lyapunov else _tangent_of_steps
        return derivative(*ctx.saved_tensors, symmetrize(along_A), ctx.method, ctx.wanted)


def _lyapunov_derivative(A: Tensor, root: Tensor, G: Tensor, method: IterativeMethod, wanted: Wanted) -> Tensor:
    """Its own adjoint: the gradient, and the derivative along a tangent."""
    with autocast_off(G.device.type):
        # The inverse root T has T T = A⁻¹, so T dT + dT T = -T T dA T T.
        right = G if wanted == "root" else -(root @ (root @ G @ root) @ root)
        solution = newton_schulz_solution(root, right, method.lyapunov_iterations)
        return first_derivative_only(solution, method, A, G)


def _gradient_of_steps(A: Tensor, G: Tensor, method: IterativeMethod, wanted: Wanted) -> Tensor:
    with autocast_off(G.device.type):
        t = positive_scale(A, method)
        B = A / t
        result: Dual = method.evaluate(Dual(B, G), wanted)
        exponent = 0.5 if wanted == "root" else -0.5
        along_scale = exponent * _inner(G, result.value) - _inner(result.tangent, B)
        grad = _power(t, wanted) / t * (result.tangent + along_scale * _scale_gradient(A, t, method))
        return torch.where(is_zero(A), torch.zeros_like(grad), grad)


def _tangent_of_steps(A: Tensor, H: Tensor, method: IterativeMethod, wanted: Wanted) -> Tensor:
    """The adjoint of the gradient: not the same where the scale depends on A."""
    with autocast_off(H.device.type):
        t = positive_scale(A, method)
        B = A / t
        along_scale = _inner(_scale_gradient(A, t, method), H) / t
        result: Dual = method.evaluate(Dual(B, H / t - along_scale * B), wanted)
        exponent = 0.5 if wanted == "root" else -0.5
        along = _power(t, wanted) * (result.tangent + exponent * along_scale * result.value)
        return torch.where(is_zero(A), torch.zeros_like(along), along)


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
        return identity_like(A)
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


def newton_schulz_solution(S: Tensor, G: Tensor, iterations: int) -> Tensor:
    """The iterative solution for symmetric G, in the precision of S; zero for a zero S."""
    norm = torch.linalg.vector_norm(S, dim=(-2, -1), keepdim=True)
    zero = norm == 0
    norm = torch.where(zero, 1.0, norm)
    b, c = S / norm, torch.where(zero, 0.0, G) / norm
    for step in range(iterations):
        D = product(b, c)
        bQ = product(b, D - 0.5 * transpose(D))
        c = 1.5 * c - 0.5 * (bQ + transpose(bQ))
        if step < iterations - 1:
            b = 1.5 * b - 0.5 * product(b, product(b, transpose(b)))  # symmetric; Dynamo takes no tensor twice
    return 0.5 * c
