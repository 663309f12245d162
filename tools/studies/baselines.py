"""What the methods are measured against: the published layers in their plain form, and PyTorch's own autograd.

Each is written from the papers' formulas, product by product, and keeps what the released layers keep, so that time and
memory are those of the published form; only their repeated checks for overflow are left out. Features (B, C, M) go in,
packed roots (B, C(C+1)/2) come out; or matrices (B, C, C) in, matrices out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from math import comb
from typing import Any

import torch
from torch import Tensor

from covpool_plugins.tables import Table

PADE_DEGREE = 50
NEWTON_SCHULZ_STEPS = 5
MPA_DEGREE = 5
LYAPUNOV_STEPS = 9


@dataclass(frozen=True)
class Baseline:
    """A route from features, and the same from a given covariance, in a working precision.

    Args:
        from_matrix: (A,) -> root (B, C, C) for A in the working precision.
        dtype: the working precision of the published layer.
        operator: which operator it is; empty for the square root with its exact gradient.
    """

    from_matrix: Callable[[Tensor], Tensor]
    dtype: torch.dtype
    operator: str = ""

    def __call__(self, X: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Packed roots of the covariances of X, in the dtype of X; ``dtype`` replaces the working precision."""
        A = CentringCovariance.apply(X, dtype or self.dtype)
        return UpperTriangle.apply(self.from_matrix(A)).to(X.dtype)


BASELINES: Table[Baseline] = Table("baseline")
SVD_PADE, ISQRT, MPA = "svdpade published (f64)", "isqrt-5 published (f64)", "mpa published (f32)"


class CentringCovariance(torch.autograd.Function):
    """X J Xᵀ with the centring matrix J = (I - 11ᵀ / M) / M of each sample."""

    @staticmethod
    def forward(ctx: Any, X: Tensor, dtype: torch.dtype) -> Tensor:
        B, _, M = X.shape
        J = (torch.eye(M, dtype=dtype, device=X.device) - 1 / M) / M
        J, work = J.repeat(B, 1, 1), X.to(dtype)
        ctx.dtype = X.dtype
        ctx.save_for_backward(work, J)
        return work.bmm(J).bmm(work.mT)

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> tuple[Tensor, None]:
        work, J = ctx.saved_tensors
        return (G + G.mT).bmm(work).bmm(J).to(ctx.dtype), None


class UpperTriangle(torch.autograd.Function):
    """The upper triangle row by row; the gradient is put back there, the rest is zero."""

    @staticmethod
    def forward(ctx: Any, S: Tensor) -> Tensor:
        ctx.shape = S.shape
        C = S.shape[-1]
        ctx.index = torch.ones(C, C, device=S.device).triu().flatten().nonzero().squeeze(-1)
        return S.flatten(1)[:, ctx.index]

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> Tensor:
        full = G.new_zeros(ctx.shape).flatten(1)
        full[:, ctx.index] = G
        return full.view(ctx.shape)


class SVDStep(torch.autograd.Function):
    """U and the dense diagonal matrix of λ, by SVD; the gradient through U divides by differences of eigenvalues.

    Eigenvalues that cannot be told from zero are set to zero, so that the figures are not about how a null space is
    treated.
    """

    @staticmethod
    def forward(ctx: Any, A: Tensor) -> tuple[Tensor, Tensor]:
        U, values, _ = torch.linalg.svd(A)
        rounding = A.shape[-1] * torch.finfo(A.dtype).eps * values[:, :1]
        diagonal = torch.where(values <= rounding, 0.0, values).diag_embed()
        ctx.save_for_backward(U, diagonal)
        return U, diagonal

    @staticmethod
    def backward(ctx: Any, grad_U: Tensor, grad_diagonal: Tensor) -> Tensor:
        U, diagonal = ctx.saved_tensors
        K = pade_quotients(diagonal.diagonal(dim1=-2, dim2=-1))
        inner = K.mT * U.mT.bmm(grad_U) + grad_diagonal
        return U.bmm(inner).bmm(U.mT)


class RootStep(torch.autograd.Function):
    """U √λ Uᵀ with dense diagonal matrices, and separate gradients of U and of λ."""

    @staticmethod
    def forward(ctx: Any, U: Tensor, diagonal: Tensor) -> Tensor:
        ctx.save_for_backward(U, diagonal)
        return U.bmm(diagonal.sqrt()).bmm(U.mT)

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> tuple[Tensor, Tensor]:
        U, diagonal = ctx.saved_tensors
        values = diagonal.diagonal(dim1=-2, dim2=-1)
        zero = values == 0
        inverse = torch.where(zero, 0.0, torch.where(zero, 1.0, values).rsqrt()).diag_embed()
        grad_U = (G + G.mT).bmm(U).bmm(diagonal.sqrt())
        grad_values = 0.5 * inverse.bmm(U.mT).bmm(G).bmm(U).diagonal(dim1=-2, dim2=-1)
        return grad_U, grad_values.diag_embed()


def _quotient_coefficients(degree: int) -> tuple[list[float], list[float]]:
    """Two polynomials with p(x) / q(x) = 1 / (1 - x), ascending: p has the coefficients 2^-k, q is (1 - x) p.

    The [50/50] Padé approximant of the geometric series is 1 / (1 - x) with an arbitrary common factor, which rounding
    decides in the released table of coefficients; this is a well-behaved one at the same cost.
    """
    p = [0.5**k for k in range(degree)] + [0.0]
    return p, [p[0]] + [p[k] - p[k - 1] for k in range(1, degree + 1)]


def pade_quotients(values: Tensor) -> Tensor:
    """1 / (λ_i - λ_j) = ± p(x) / q(x) / λ_max with x = λ_min / λ_max, by Horner's rule on the matrix; zero for ties."""
    rows, columns = values.unsqueeze(-1), values.unsqueeze(-2)
    largest = torch.maximum(rows, columns)
    tie = rows == columns
    x = torch.where(tie, 0.0, torch.minimum(rows, columns) / largest)
    numerator, denominator = (_horner(c, x) for c in _quotient_coefficients(PADE_DEGREE))
    return torch.where(tie, 0.0, torch.sign(rows - columns) * numerator / (denominator * largest))


def _horner(coefficients: list[float], x: Tensor) -> Tensor:
    total = torch.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        total = total * x + c
    return total


class NewtonSchulzSteps(torch.autograd.Function):
    """Coupled Newton-Schulz steps with trace scaling, and their gradient step by step.

    All iterates are kept, in two buffers with a slot for each step, one of which stays empty, as in the released layer.
    """

    @staticmethod
    def forward(ctx: Any, A: Tensor) -> Tensor:
        eye3 = 3 * torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
        trace = A.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
        B = A / trace
        T = 0.5 * (eye3 - B)
        Ys, Zs = (A.new_zeros(len(A), NEWTON_SCHULZ_STEPS, *A.shape[1:]) for _ in range(2))
        Ys[:, 0], Zs[:, 0] = B.bmm(T), T
        for k in range(1, NEWTON_SCHULZ_STEPS - 1):
            T = 0.5 * (eye3 - Zs[:, k - 1].bmm(Ys[:, k - 1]))
            Ys[:, k], Zs[:, k] = Ys[:, k - 1].bmm(T), T.bmm(Zs[:, k - 1])
        Y, Z = Ys[:, NEWTON_SCHULZ_STEPS - 2], Zs[:, NEWTON_SCHULZ_STEPS - 2]
        result = 0.5 * Y.bmm(eye3 - Z.bmm(Y))
        ctx.save_for_backward(A, B, result, trace, Ys, Zs)
        return result * trace.sqrt()

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> Tensor:
        A, B, result, trace, Ys, Zs = ctx.saved_tensors
        # The steps are those of symmetric matrices, whose gradients are symmetric.
        G = 0.5 * (G + G.mT)
        eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
        along_trace = (G * result).sum((-2, -1), keepdim=True) / (2 * trace.sqrt())
        dP = G * trace.sqrt()
        Y, Z = Ys[:, NEWTON_SCHULZ_STEPS - 2], Zs[:, NEWTON_SCHULZ_STEPS - 2]
        dY = 0.5 * (dP.bmm(3 * eye - Y.bmm(Z)) - Z.bmm(Y).bmm(dP))
        dZ = -0.5 * Y.bmm(dP).bmm(Y)
        for k in range(NEWTON_SCHULZ_STEPS - 3, -1, -1):
            Y, Z = Ys[:, k], Zs[:, k]
            YZ, ZY = 3 * eye - Y.bmm(Z), Z.bmm(Y)
            dY, dZ = (
                0.5 * (dY.bmm(YZ) - Z.bmm(dZ).bmm(Z) - ZY.bmm(dY)),
                0.5 * (YZ.bmm(dZ) - Y.bmm(dY).bmm(Y) - dZ.bmm(ZY)),
            )
        dB = 0.5 * (dY.bmm(3 * eye - B) - dZ - B.bmm(dY))
        along_trace = along_trace - (dB * A).sum((-2, -1), keepdim=True) / trace**2
        return dB / trace + along_trace * eye


class PadeRoot(torch.autograd.Function):
    """The [5/5] Padé approximant of the root (or its inverse) by LU, and the iterative Lyapunov solution backward."""

    @staticmethod
    def forward(ctx: Any, A: Tensor, inverse: bool) -> Tensor:
        eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
        norm = torch.linalg.vector_norm(A, dim=(-2, -1), keepdim=True)
        Z = eye - A / norm
        power, (P, Q) = Z, (c[0] * eye for c in _pade_rows())
        for k in range(1, MPA_DEGREE + 1):
            P, Q = (total + c[k] * power for total, c in zip((P, Q), _pade_rows(), strict=True))
            power = power.bmm(Z) if k < MPA_DEGREE else power
        root = torch.linalg.solve(P, Q) / norm.sqrt() if inverse else torch.linalg.solve(Q, P) * norm.sqrt()
        ctx.inverse = inverse
        ctx.save_for_backward(root)
        return root

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> tuple[Tensor, None]:
        (root,) = ctx.saved_tensors
        if ctx.inverse:
            square = root.bmm(root)
            G = -square.bmm(G).bmm(square)
        return lyapunov_steps(root, G), None


def _pade_rows() -> tuple[list[float], list[float]]:
    P, Q = pade_coefficients(MPA_DEGREE)
    return [float(c) for c in P], [float(c) for c in Q]


def lyapunov_steps(S: Tensor, G: Tensor) -> Tensor:
    """S R + R S = G by the sign iteration as published: six products in each of eight steps, five in the ninth."""
    norm = torch.linalg.vector_norm(S, dim=(-2, -1), keepdim=True)
    eye3 = 3 * torch.eye(S.shape[-1], dtype=S.dtype, device=S.device)
    b, c = S / norm, G / norm
    for step in range(LYAPUNOV_STEPS):
        factor = eye3 - b.bmm(b)
        c = 0.5 * (c.bmm(factor) - b.mT.bmm(b.mT.bmm(c) - c.bmm(b)))
        b = 0.5 * b.bmm(factor) if step < LYAPUNOV_STEPS - 1 else b
    return 0.5 * c


def published_inverse_root(A: Tensor) -> Tensor:
    """A^(-1/2) of matrices (B, C, C) by the Padé approximant, as published."""
    return PadeRoot.apply(A, True)


def _eigh_root(A: Tensor) -> Tensor:
    values, U = torch.linalg.eigh(A)
    return (U * values.clamp_min(torch.finfo(A.dtype).eps).sqrt().unsqueeze(-2)) @ U.mT


def _published_svd_root(A: Tensor) -> Tensor:
    return RootStep.apply(*SVDStep.apply(A))


BASELINES.add(SVD_PADE, Baseline(_published_svd_root, torch.float64))
BASELINES.add(
    ISQRT, Baseline(NewtonSchulzSteps.apply, torch.float64, f"{NEWTON_SCHULZ_STEPS} Newton-Schulz steps, trace scaling")
)
BASELINES.add(
    MPA,
    Baseline(
        lambda A: PadeRoot.apply(A, False),
        torch.float32,
        f"Padé approximant of degree {MPA_DEGREE}, {LYAPUNOV_STEPS} Lyapunov steps backward",
    ),
)
if hasattr(torch.linalg, "matrix_sqrth"):
    BASELINES.add("torch.linalg.matrix_sqrth, autograd (f64)", Baseline(torch.linalg.matrix_sqrth, torch.float64))
BASELINES.add("torch.linalg.eigh, autograd (f64)", Baseline(_eigh_root, torch.float64))
BASELINES.add("torch.linalg.eigh, autograd (f32)", Baseline(_eigh_root, torch.float32))


@cache
def pade_coefficients(degree: int) -> tuple[tuple[Fraction, ...], tuple[Fraction, ...]]:
    """Numerator and denominator of the [degree/degree] Padé approximant of √(1 - z), ascending, exact.

    From ((1 + r)^(2 d + 1) ± (1 - r)^(2 d + 1)) with r = √(1 - z): their quotient, times r, is the approximant.
    """
    order = 2 * degree + 1

    def even_part(offset: int) -> tuple[Fraction, ...]:
        # Σ binom(order, 2 k + offset) (1 - z)^k, expanded in z and normalised to one at z = 0.
        total = [Fraction(0)] * (degree + 1)
        for k in range(degree + 1):
            for j in range(k + 1):
                total[j] += comb(order, 2 * k + offset) * comb(k, j) * (-1) ** j
        return tuple(c / total[0] for c in total)

    return even_part(0), even_part(1)
