"""Matrix iterations for the root and the inverse root, of matrices and of features."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ._dual import Dual
from .covariance import Covariance, center, fewer_positions, zero_where_constant
from .packing import pack_triu
from .tensors import (
    Function,
    apply,
    autocast_off,
    finite_matrices,
    first_derivative_only,
    identity_like,
    keep,
    kept,
    power_of_two,
    product,
    symmetrize,
    trace,
    transpose,
)

if TYPE_CHECKING:
    from .methods.base import IterativeMethod, Wanted


def iterative_root(A: Tensor, method: IterativeMethod, wanted: Wanted) -> Tensor:
    """What ``wanted`` says of symmetric matrices (..., n, n), in their precision: t^p f(A / t) with a scale t of A.

    A Lyapunov gradient is that of the root, to which t is a constant.
    """
    unit = power_of_two(A, 2)
    B, t, zero = _scaled(A / unit, method)
    if _by_lyapunov(method, wanted):
        t = t.detach()
    root = unit ** _exponent(wanted) * apply(IterativeRoot, B, t, method, wanted)
    return torch.where(finite_matrices(A), torch.where(zero, 0.0, root), torch.nan)


def iterative_root_of_features(X: Tensor, method: IterativeMethod, centered: bool, packed: bool) -> Tensor:
    """The root of the covariance of features (..., C, M), in their precision."""
    # The root is homogeneous; features near one keep the powers of their scale that occur within range.
    unit = power_of_two(X)
    root = unit * _by_smaller_side(X / unit, method, centered)
    return pack_triu(root) if packed else root


def _by_smaller_side(X: Tensor, method: IterativeMethod, centered: bool) -> Tensor:
    """The same matrix function p of A = Y Yᵀ / M, by the smaller of A and B = Yᵀ Y / M: p(0) √t I + Y f(B) Yᵀ / M."""
    C, M = X.shape[-2:]
    if not fewer_positions(X) or method.gradient == "lyapunov" or not method.through_gram:
        exact = dataclasses.replace(method, gradient="exact") if method.gradient == "auto" else method
        return iterative_root(apply(Covariance, X, centered, False), exact, "root")
    Y, mean = center(X, centered)
    gram = zero_where_constant(apply(Covariance, Y, False, True), mean)
    root = product(product(Y, iterative_root(gram, method, "factor") / M), transpose(Y))
    if not method.at_zero:
        return root
    _, t, zero = _scaled(gram, method)
    eye = torch.eye(C, dtype=X.dtype, device=X.device)
    return root + method.at_zero * torch.where(zero, 0.0, t.sqrt()) * eye


def _scaled(A: Tensor, method: IterativeMethod) -> tuple[Tensor, Tensor, Tensor]:
    """A (..., n, n) with the identity for zero matrices, its scale, and which are zero; these two (..., 1, 1)."""
    zero = (A == 0).all(dim=-1, keepdim=True).all(dim=-2, keepdim=True)
    A = torch.where(zero, identity_like(A), A)
    if method.scaling == "trace":
        return A, trace(A), zero
    norm = (A if method.scaling == "frobenius" else product(A, A)).square().sum(dim=(-2, -1), keepdim=True).sqrt()
    return A, norm if method.scaling == "frobenius" else norm.sqrt(), zero


def _by_lyapunov(method: IterativeMethod, wanted: Wanted) -> bool:
    return method.gradient != "exact" and wanted != "factor"


class IterativeRoot(Function):
    """t^p f(A / t) with a matrix iteration f, a scale t of the matrix, and p = 1/2 or -1/2; only A and t are kept.

    The exact derivative, which is its own adjoint but for t, runs the iteration once more with a tangent (see
    ``_dual``). The Lyapunov derivative solves the equation with the computed root.
    """

    @staticmethod
    def forward(A: Tensor, t: Tensor, method: IterativeMethod, wanted: Wanted) -> Tensor:
        with autocast_off(A.device.type):
            return t ** _exponent(wanted) * method.evaluate(A / t, wanted)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        *scaled, method, wanted = inputs
        keep(ctx, *scaled, *([output] if _by_lyapunov(method, wanted) else []), method, wanted)

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        A, t, *root, method, wanted = kept(ctx)
        G = symmetrize(G)
        with autocast_off(G.device.type):
            if root:
                return _lyapunov_derivative(A, root[0], G, method, wanted), None, None, None
            B, p = A / t, _exponent(wanted)
            value, tangent = method.evaluate(Dual(B, G), wanted)
            along_t = t ** (p - 1) * (p * G * value - tangent * B).sum(dim=(-2, -1), keepdim=True)
            return t ** (p - 1) * tangent, along_t, None, None

    @staticmethod
    def tangent(ctx: Any, along_A: Tensor, along_t: Tensor, *_: Any) -> Tensor:
        A, t, *root, method, wanted = kept(ctx)
        H = symmetrize(along_A)
        with autocast_off(H.device.type):
            if root:
                return _lyapunov_derivative(A, root[0], H, method, wanted)
            B, p, rate = A / t, _exponent(wanted), along_t / t
            value, tangent = method.evaluate(Dual(B, H / t - rate * B), wanted)
            return t**p * (tangent + p * rate * value)


def _lyapunov_derivative(A: Tensor, root: Tensor, G: Tensor, method: IterativeMethod, wanted: Wanted) -> Tensor:
    """Its own adjoint: the gradient, and the derivative along a tangent."""
    # The inverse root T has T dT + dT T = -T T dA T T, for T T = A⁻¹.
    right = G if wanted == "root" else -(root @ (root @ G @ root) @ root)
    solution = newton_schulz_solution(root, right, method.lyapunov_iterations)
    return first_derivative_only(solution, method, A, G)


def _exponent(wanted: Wanted) -> float:
    return 0.5 if wanted == "root" else -0.5


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
