"""The Lyapunov equation S R + R S = G."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..checks import check_integer
from ..errors import ShapeError
from .methods.base import LYAPUNOV, Method, check_field, resolve_method
from .spectral import null_threshold
from .tensors import (
    apply,
    autocast_off,
    check_floating,
    check_square,
    guarded_eigh,
    symmetrize,
    transpose,
    working_dtype,
)


@dataclass(frozen=True)
class EigenLyapunov(Method):
    """R = U [(Uᵀ G U)_ij / (s_i + s_j)] Uᵀ in the eigenbasis of S; zero where both eigenvalues are.

    Examples:
        >>> S = torch.diag(torch.tensor([1.0, 0.0]))
        >>> lyapunov(S, torch.ones(2, 2), EigenLyapunov())
        tensor([[0.5000, 1.0000],
                [1.0000, 0.0000]])
    """


@dataclass(frozen=True)
class NewtonSchulzLyapunov(Method):
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

    iterations: int = 9

    def __post_init__(self) -> None:
        check_field(self, "iterations", check_integer, 1)

    def exportable(self, function: str) -> bool:
        return True


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
    if isinstance(chosen, NewtonSchulzLyapunov):
        with autocast_off(S.device.type):
            return newton_schulz_solution(work, symmetrize(right), chosen.iterations).to(G.dtype)
    return apply(LyapunovSolution, work, right).to(G.dtype)


class LyapunovSolution(torch.autograd.Function):
    """R = lyap(S, G). With L = lyap(S, R̄) the gradients are L for G and -(L Rᵀ + Rᵀ L) for S."""

    generate_vmap_rule = True

    @staticmethod
    def forward(S: Tensor, G: Tensor) -> Tensor:
        with autocast_off(S.device.type):
            s, U = guarded_eigh(S)
            s = torch.where(s <= null_threshold(s), 0.0, s)
            total = s.unsqueeze(-1) + s.unsqueeze(-2)
            null = total == 0
            return U @ torch.where(null, 0.0, (U.mT @ G @ U) / torch.where(null, 1.0, total)) @ U.mT

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, H: Tensor) -> tuple[Tensor, Tensor]:
        S, R = ctx.saved_tensors
        L = apply(LyapunovSolution, S, H)
        with autocast_off(S.device.type):
            return -symmetrize(L @ R.mT + R.mT @ L), L


def newton_schulz_solution(S: Tensor, G: Tensor, iterations: int) -> Tensor:
    """The iterative solution for symmetric G, in the precision of S; zero for a zero S."""
    norm = torch.linalg.vector_norm(S, dim=(-2, -1), keepdim=True)
    zero = norm == 0
    norm = torch.where(zero, 1.0, norm)
    b, c = S / norm, torch.where(zero, 0.0, G) / norm
    for step in range(iterations):
        D = b @ c
        bQ = b @ (D - 0.5 * transpose(D))
        c = 1.5 * c - 0.5 * (bQ + transpose(bQ))
        if step < iterations - 1:
            b = 1.5 * b - 0.5 * b @ (b @ b)
    return 0.5 * c
