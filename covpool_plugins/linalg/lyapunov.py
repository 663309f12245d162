"""The Lyapunov equation S R + R S = G."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..checks import check_integer
from ..errors import ShapeError
from .iterations import newton_schulz_solution
from .methods.base import LYAPUNOV, Method, option, resolve_method
from .tensors import (
    Function,
    apply,
    autocast_off,
    check_floating,
    check_square,
    guarded_eigh,
    keep,
    kept,
    null_threshold,
    product,
    symmetrize,
    transpose,
    working_dtype,
)


class LyapunovMethod(Method):
    """How the Lyapunov equation is solved."""

    def solve(self, S: Tensor, G: Tensor) -> Tensor:
        """R for symmetric S and any G of one shape and dtype, in that dtype."""
        raise NotImplementedError


@dataclass(frozen=True)
class EigenLyapunov(LyapunovMethod):
    """R = U [(Uᵀ G U)_ij / (s_i + s_j)] Uᵀ in the eigenbasis of S; zero where both eigenvalues are.

    Examples:
        >>> S = torch.diag(torch.tensor([1.0, 0.0]))
        >>> lyapunov(S, torch.ones(2, 2), EigenLyapunov())
        tensor([[0.5000, 1.0000],
                [1.0000, 0.0000]])
    """

    def solve(self, S: Tensor, G: Tensor) -> Tensor:
        dtype, S, G = S.dtype, S.double(), G.double()
        with autocast_off(S.device.type):
            s, U = guarded_eigh(S.detach())
            s = torch.where(s <= null_threshold(s, dtype), 0.0, s)
        return apply(LyapunovSolution, S, G, s, U).to(dtype)


@dataclass(frozen=True)
class NewtonSchulzLyapunov(LyapunovMethod):
    """Newton-Schulz steps for the sign of [[S, G], [0, -S]], whose corner tends to 2 R.

    With D = b c and Q = D - Dᵀ / 2 a step is c <- (3 c - b Q - (b Q)ᵀ) / 2, b <- (3 b - b³) / 2: four products, and two
    in the last; the published form has six. On a singular S the result is structurally wrong: the block between range
    and null space comes out as half of its value.

    Args:
        iterations: number of steps.

    Source: Lin & Maji, BMVC 2017, eq. 10; Song, Sebe & Wang, ICLR 2022, eq. 15-17.

    Examples:
        >>> S = torch.diag(torch.tensor([1.0, 2.0]))
        >>> lyapunov(S, torch.ones(2, 2), NewtonSchulzLyapunov(iterations=12))
        tensor([[0.5000, 0.3333],
                [0.3333, 0.2500]])
    """

    iterations: int = option(9, check_integer, 1)

    def exportable(self, function: str) -> bool:
        return True

    def solve(self, S: Tensor, G: Tensor) -> Tensor:
        with autocast_off(S.device.type):
            return newton_schulz_solution(S, symmetrize(G), self.iterations)


LYAPUNOV.add("exact", EigenLyapunov())
LYAPUNOV.add("newton_schulz", NewtonSchulzLyapunov())


def lyapunov(S: Tensor, G: Tensor, method: str | Method = "exact", **options: Any) -> Tensor:
    """The solution R (..., C, C) of S R + R S = G.

    Args:
        S: symmetric positive semi-definite matrices (..., C, C).
        G: right-hand sides (..., C, C) of the same shape.
        method: ``exact`` (eigenbasis; differentiable any number of times) or ``newton_schulz`` (matrix products only,
            for symmetric G).
        options: replace fields of the method, for example ``iterations=12``.

    Returns:
        The solutions (..., C, C) in the dtype of ``G``, computed in float32 at least.

    Raises:
        ShapeError, DtypeError: for other shapes or dtypes.
        UnknownNameError, OptionError: for a method or option that does not exist.

    Examples:
        >>> S = torch.diag(torch.tensor([1.0, 2.0]))
        >>> R = lyapunov(S, torch.ones(2, 2))
        >>> R
        tensor([[0.5000, 0.3333],
                [0.3333, 0.2500]])
        >>> S @ R + R @ S
        tensor([[1., 1.],
                [1., 1.]])
    """
    check_square(S, "S")
    check_floating(G, "G")
    if G.shape != S.shape:
        raise ShapeError(f"S and G must have one shape, got {tuple(S.shape)} and {tuple(G.shape)}")
    chosen = resolve_method(method, "lyapunov", **options)
    dtype = torch.promote_types(working_dtype(S.dtype), working_dtype(G.dtype))
    work, right = symmetrize(S.to(dtype)), G.to(dtype)
    assert isinstance(chosen, LyapunovMethod)
    return chosen.solve(work, right).to(G.dtype)


class LyapunovSolution(Function):
    """R = lyap(S, G), from S = U diag(s) Uᵀ. It is its own adjoint in G, and along dS it is lyap(S, -(dS R + R dS))."""

    @staticmethod
    def forward(S: Tensor, G: Tensor, s: Tensor, U: Tensor) -> Tensor:
        with autocast_off(S.device.type):
            total = s.unsqueeze(-1) + s.unsqueeze(-2)
            null = total == 0
            return U @ torch.where(null, 0.0, (U.mT @ G @ U) / torch.where(null, 1.0, total)) @ U.mT

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        S, _, s, U = inputs
        keep(ctx, S, s, U, output)

    @staticmethod
    def backward(ctx: Any, H: Tensor) -> tuple:
        S, s, U, R = kept(ctx)
        L = apply(LyapunovSolution, S, H, s, U)
        return -symmetrize(product(L, transpose(R)) + product(transpose(R), L)), L, None, None

    @staticmethod
    def tangent(ctx: Any, along_S: Tensor | None, along_G: Tensor | None, *_: Any) -> Tensor:
        S, s, U, R = kept(ctx)
        right = torch.zeros_like(R) if along_G is None else along_G
        if along_S is not None:
            along_S = symmetrize(along_S)
            right = right - product(along_S, R) - product(R, along_S)
        return apply(LyapunovSolution, S, right, s, U)
