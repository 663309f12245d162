"""Singular-value power normalisation: powers of the leading singular values, from a few matrix-vector products.

A triplet comes from the power iteration, begun at a vector u₀ (``weight``): v ∝ Rᵀ u, u ∝ R v, σ = uᵀ R v. Because
σ u = R v, what is left after k triplets is R = Q (I - V Vᵀ) with the orthonormal V = (v₁ ... v_k), whether the
iteration has converged or not. So no R is ever formed: the iteration projects a vector instead, and the result is

    f Q + Σ_k (σ_k^(α-1) - f) Q v_k v_kᵀ,     f = 1 / (σ_n^(1-α) + ε)

where nothing is divided by a σ that is zero.
"""

from __future__ import annotations

from math import prod
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..checks import check_choice, check_integer, check_number, is_integer
from ..errors import OptionError, ShapeError
from ..linalg import covariance
from ..linalg.covariance import fewer_positions
from ..linalg.tensors import autocast_off, power_of_two, product, transpose
from ..tables import About
from .base import POOLS
from .covariance_pool import CovariancePool, Normalization
from .positions import counted
from .reduction import DEFAULT_CHANNELS, reduced_channels

Start = Literal["learned", "ones"]
STARTS: tuple[str, ...] = get_args(Start)

# In units of rounding of the bound of ‖Q‖_F: a start that the deflation leaves less of is rounding, not a direction.
NULL = 16
EPS = 1e-5


class SingularValuePower(Normalization):
    """Σ_{k<n} σ_k^α u_k v_kᵀ + (Q - Σ_{k<n} σ_k u_k v_kᵀ) / σ_n^(1-α): svPN, for any matrix Q.

    The n largest singular values are raised to the power α, the others scaled like the n-th. With many iterations and
    ``n=None`` this is U S^α Vᵀ, for a covariance its power α; with ``n=1`` it is Q / σ̂₁^(1-α). With few iterations and
    n > 1 the result for a covariance is only nearly symmetric.

    As the released code does, the n-th triplet is powered itself and ε added: σ_n^α u_n v_nᵀ and the rest after n
    triplets over σ_n^(1-α) + ε, which for ε = 0 is the formula above. Where the iteration finds fewer than n triplets
    (the rank is lower, or the start is orthogonal to what is left), the last one found stands for the n-th, or without
    any a bound of them: ‖Q‖_F, or ‖L‖_F ‖R‖_F for Q = L Rᵀ. A zero matrix gives zeros.

    Args:
        channels: C₁, the rows of Q; the power iteration begins at a vector of that length.
        columns: C₂, the columns of Q; ``channels`` by default.
        alpha: α, 0 < α <= 1.
        iterations: of the power method, each two matrix-vector products.
        n: how many singular values; ``None`` for all, and no scaled rest. Starting every triplet at the same
            vector, one iteration finds one triplet only, so that n > 1 needs ``iterations`` >= 2.
        start: ``learned``, the parameter ``weight`` (channels,), which begins as the same pseudo-random normal numbers
            every time; or ``ones``, without parameter (nothing is found where the rows of Q add to zero, as those of
            layer-normalised features do).
        eps: ε, which keeps the rest of matrices below ε^(1/(1-α)) small; zero makes the map homogeneous. Not for
            ``n=None``.

    Source: Xie, Zeng, Wang, Zhang & Li, "So-ViT: Mind Visual Tokens for Vision Transformer", arXiv 2104.10935, 2021.

    Examples:
        >>> create_pool("svpn", 64, reduce_channels=16, n=3, iterations=2)(torch.randn(2, 64, 7, 7)).shape
        torch.Size([2, 136])
    """

    products_only = True
    needs_float64 = False
    shown = ("alpha", "iterations", "n", "start", "eps")

    def __init__(
        self,
        channels: int,
        columns: int | None = None,
        *,
        alpha: float = 0.5,
        iterations: int = 1,
        n: int | None = 1,
        start: Start = "learned",
        eps: float = EPS,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.shape = (channels, channels if columns is None else columns)
        check_number("svpn: alpha", alpha, "(0, 1]")
        check_number("svpn: eps", eps, "[0, 1)")
        check_integer("svpn: iterations", iterations)
        if n is not None and (not is_integer(n) or n > min(self.shape)):
            raise OptionError(f"svpn: n must be an integer from 1 to {min(self.shape)} or None, got {n!r}")
        if iterations == 1 and n != 1 and min(self.shape) > 1:
            raise OptionError(f"svpn: n={n} needs iterations >= 2, got 1, which finds a single triplet")
        if n is None and eps != EPS:
            raise OptionError(f"svpn: n=None leaves no rest, and takes no option 'eps', got {eps}")
        check_choice("svpn: start", start, STARTS)
        self.alpha = float(alpha)
        self.in_range = alpha <= 0.5
        self.iterations = iterations
        self.n = n
        self.start = start
        self.eps = float(eps)
        self.weight: nn.Parameter | None = None
        if start == "learned":
            # A generator of its own: pools built twice are the same pool, and the global generator is left alone.
            self.weight = nn.Parameter(torch.empty(channels, device=device, dtype=dtype))
            self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The vector that the power iteration begins at when nothing has been learned."""
        if self.weight is not None and not self.weight.is_meta:
            generator = torch.Generator("cpu").manual_seed(0)
            self.weight.copy_(torch.randn(self.shape[0], generator=generator, device="cpu"))

    def of_features(self, X: Tensor, centered: bool) -> Tensor:
        if not fewer_positions(X):
            return self.function(covariance(X, centered))
        Xc = counted(X, None, centered)
        return self.of_product(Xc / X.shape[-1], Xc)

    def function(self, A: Tensor) -> Tensor:
        """The normalised matrices (..., C₁, C₂), computed in the precision they come in.

        Raises:
            ShapeError: for matrices of another shape.
        """
        if A.shape[-2:] != self.shape:
            raise ShapeError(f"svpn: expected matrices (..., {self.shape[0]}, {self.shape[1]}), got {tuple(A.shape)}")
        return self.of_product(A)

    def of_product(self, L: Tensor, R: Tensor | None = None) -> Tensor:
        """``function(L Rᵀ)`` for L (..., C₁, M) and R (..., C₂, M), or of L.

        For few positions the product is formed once, with the result.
        """
        with autocast_off(L.device.type):
            scales = [power_of_two(part) for part in (L, R) if part is not None]
            L, R = L / scales[0], R if R is None else R / scales[1]
            if R is not None and (isinstance(L.shape[-1], torch.SymInt) or L.shape[-1] > min(self.shape)):
                L, R = product(L, transpose(R)), None  # less work, or that is open
            V, QV, values, last = self._triplets(L, R)
            factor: Tensor | float = 0.0  # of the rest
            if self.n is not None:
                # Powers of each scale, because their product may leave the range.
                eps = prod([scale ** (self.alpha - 1) for scale in scales], start=self.eps)
                empty = last <= 0
                damped = _power(last, 1 - self.alpha) + eps
                factor = torch.where(empty, 0.0, 1 / torch.where(empty, 1.0, damped))
            columns = QV * (_power(values, self.alpha - 1) - factor)
            if R is None:
                F = product(columns, transpose(V)) + factor * L
            elif self.n is None:
                F = product(columns, transpose(V))
            else:
                F = product(torch.cat([factor * L, columns], -1), transpose(torch.cat([R, V], -1)))
            return prod([scale**self.alpha for scale in scales]) * F

    def _triplets(self, L: Tensor, R: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """V (..., C₂, n), Q V (..., C₁, n), the singular values (..., 1, n) and the last that is not zero (..., 1, 1).

        Of Q = L Rᵀ or L. A triplet that was not found is zero in all of them.
        """
        bound = _norm(L) if R is None else _norm(L) * _norm(R)
        floor = NULL * torch.finfo(L.dtype).eps * bound.detach()
        begin = self._start(L)
        last = bound
        vectors: list[Tensor] = []
        images: list[Tensor] = []
        values: list[Tensor] = []
        for _ in range(min(self.shape) if self.n is None else self.n):
            u = begin
            V = torch.cat(vectors, -1) if vectors else None
            for _ in range(self.iterations):
                v = product(transpose(L), u)
                v = v if R is None else product(R, v)
                if V is not None:
                    v = v - product(V, product(transpose(V), v))
                v, _ = _unit(v, floor)
                Qv = product(L, v if R is None else product(transpose(R), v))
                u, value = _unit(Qv, floor)
            last = torch.where(value == 0, last, value)
            vectors.append(v)
            images.append(Qv)
            values.append(value)
        return torch.cat(vectors, -1), torch.cat(images, -1), torch.cat(values, -1), last

    def _start(self, Q: Tensor) -> Tensor:
        """u₀ (..., C₁, 1), of length one."""
        weight = Q.new_ones(self.shape[0]) if self.weight is None else self.weight.to(Q.dtype)
        u, _ = _unit(weight.unsqueeze(-1), weight.new_zeros(1, 1))
        return u.expand(*Q.shape[:-2], -1, -1)


def _norm(Q: Tensor) -> Tensor:
    return torch.linalg.vector_norm(Q, dim=(-2, -1), keepdim=True)


def _unit(x: Tensor, floor: Tensor) -> tuple[Tensor, Tensor]:
    """x / ‖x‖ for columns x (..., n, 1), and ‖x‖ (..., 1, 1); zeros, without gradient, for ‖x‖ <= floor."""
    norm = torch.linalg.vector_norm(x, dim=-2, keepdim=True)
    null = norm <= floor
    return torch.where(null, 0.0, x) / torch.where(null, 1.0, norm), torch.where(null, 0.0, norm)


def _power(values: Tensor, exponent: float) -> Tensor:
    """values^exponent; zero, without gradient, where they are zero."""
    null = values <= 0
    return torch.where(null, 0.0, torch.where(null, 1.0, values) ** exponent)


def svpn(
    in_channels: int,
    *,
    alpha: float = 0.5,
    iterations: int = 1,
    n: int | None = 1,
    start: Start = "learned",
    eps: float = EPS,
    reduce_channels: int | str | None = "default",
    **shared: Any,
) -> CovariancePool:
    channels = reduced_channels(in_channels, reduce_channels, DEFAULT_CHANNELS)
    shared |= dict(
        normalization=SingularValuePower(channels, alpha=alpha, iterations=iterations, n=n, start=start, eps=eps),
        reduce_channels=reduce_channels,
    )
    return CovariancePool(in_channels, pool_type="svpn", **shared)


POOLS.add(
    "svpn",
    svpn,
    About("covariance with powers of its singular values, by power iteration", "exact for these steps", "So-ViT, 2021"),
)
