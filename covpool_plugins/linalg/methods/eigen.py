"""Square roots by eigen-decomposition: one small function K(λ_i, λ_j) per published gradient.

All of them stand for 1 / (λ_i - λ_j) in (√λ_i - √λ_j) / (λ_i - λ_j). Written without that difference, each is the exact
K = 1 / (√λ_i + √λ_j) times a factor, with x = λ_min / λ_max:

================  =================================  =====================================================
method            factor                             so, for nearly equal eigenvalues
================  =================================  =====================================================
``exact``         1                                  right
``svdpade``       1                                  right
``svdtaylor``     1 - x^101                          too small: 36 % at x = 0.99, 90 % at 0.999
``svdpi``         1 - x^20                           too small: 82 % at x = 0.99
``svdtrunc``      min(1, cap |λ_i - λ_j|)            too small where the difference is below 1e-10
``svdtopn``       1 on the n largest                 right for the matrix that is left
``svdoriginal``   1, computed by the difference      rounding noise
================  =================================  =====================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...checks import check_choice, check_integer, check_number
from ...tables import About
from .base import (
    INVERSE_ROOTS,
    ROUTES,
    SQUARE_ROOTS,
    EigenMethod,
    SpectralMethod,
    option,
    sum_or_infinity,
)

BY_EIGH = "square root of the covariance, by eigen-decomposition"


def partial_sum(first: Tensor, second: Tensor, last: int) -> Tensor:
    """1 - x^(last + 1), x = λ_min / λ_max, the share of the geometric series up to x^last; one for exact ties."""
    largest = torch.maximum(first, second)
    ratio = torch.minimum(first, second) / torch.where(largest == 0, 1.0, largest)
    return torch.where(ratio == 1, 1.0, 1 - ratio ** (last + 1))


@dataclass(frozen=True)
class Exact(EigenMethod):
    """The exact gradient, K = 1 / (√λ_i + √λ_j): the Lyapunov solution in the eigenbasis.

    Finite for equal eigenvalues; no difference is ever divided.

    ``svdpade``, SVD with the Padé approximant of the geometric series as its gradient, is this too. The paper writes
    1 / (λ_i - λ_j) = (1 / λ_i) · 1 / (1 - x) with x = λ_j / λ_i <= 1, and replaces the geometric series 1 / (1 - x) by
    its [50/50] Padé approximant. That approximant *is* 1 / (1 - x): for every degree of denominator above zero the
    rational approximant of a geometric series is the series' sum, and the coefficients of the released code are
    rounding noise around a common factor. The quotient (√λ_i - √λ_j) / (λ_i (1 - x)) is (1 / √λ_max) / (1 + √x)
    without the cancellation: the exact K. It agrees with the released code but for ties, where that code returns noise.

    Args:
        route: ``eigh``; ``products``, the same root by matrix products alone (``minimax`` with enough steps for the
            precision; eigenvalues below 1e-8 of the norm, computed in float32 1e-4, come out too small); or ``auto``:
            products on a GPU and while a graph is exported (``torch.export``, ONNX), elsewhere eigh.

    Source: Lin & Maji, "Improved Bilinear Pooling with CNNs", BMVC 2017, eq. 9; for ``svdpade`` Song, Sebe & Wang, "Why
    Approximate Matrix Square Root Outperforms Accurate SVD in Global Covariance Pooling?", ICCV 2021, eq. 15-17.

    Examples:
        >>> A = torch.eye(2, requires_grad=True)
        >>> sqrtm(A, Exact()).sum().backward()
        >>> A.grad
        tensor([[0.5000, 0.5000],
                [0.5000, 0.5000]])
    """

    route: str = option("auto", check_choice, ROUTES)  # type: ignore[misc]

    def curvature(self, values: Tensor, E: Tensor, D: Tensor) -> Tensor:
        """S S'' + S'' S = -(R L + L R) with the solutions R and L for E and D."""
        K, z = self.coefficients(values, values), ExactInverse().values(values).unsqueeze(-1)
        R, L = K * E, K * D
        # What zero eigenvalues add on matrices that keep their rank: f[0, 0, λ] is λ^(-3/2) there.
        null = ((values == 0).unsqueeze(-1) & (values == 0).unsqueeze(-2)).to(E.dtype)
        half = null * (R @ (z * L)) + z**3 * (E @ (null * D) + D @ (null * E)) - K * (R @ L)
        return half + half.mT

    @property
    def quotient(self) -> SpectralMethod:
        return ExactInverse()


@dataclass(frozen=True)
class SVDTaylor(EigenMethod):
    """The geometric series cut off after a power of x.

    Close to a tie the gradient tends to zero off the diagonal. At an exact tie it jumps to the exact one, which alone
    does not depend on the choice of eigenvectors.

    Args:
        degree: the last power, the paper's K.

    Source: Song, Sebe & Wang, ICCV 2021, eq. 14.

    Examples:
        >>> SVDTaylor().factor(torch.ones(1), torch.tensor([0.99]))  # of the exact K for λ = 1 and 0.99
        tensor([0.6376])
    """

    degree: int = option(100, check_integer, 0)

    def factor(self, first: Tensor, second: Tensor) -> Tensor:
        return partial_sum(first, second, self.degree)


@dataclass(frozen=True)
class SVDPI(EigenMethod):
    """The gradient of the power iteration that would find each eigenvector from itself.

    It is the geometric series (1 / λ_i) Σ_k (λ_j / λ_i)^k cut off after as many powers as there are iterations. At
    exact ties it jumps like that of :class:`SVDTaylor`.

    Args:
        iterations: number of power iterations.

    Source: Wang et al., "Backpropagation-Friendly Eigendecomposition", NeurIPS 2019, eq. 9-12.

    Examples:
        >>> SVDPI().factor(torch.ones(1), torch.tensor([0.99]))  # of the exact K for λ = 1 and 0.99
        tensor([0.1821])
    """

    iterations: int = option(19, check_integer, 1)

    def factor(self, first: Tensor, second: Tensor) -> Tensor:
        return partial_sum(first, second, self.iterations)


@dataclass(frozen=True)
class SVDTrunc(EigenMethod):
    """1 / (λ_i - λ_j) cut off at a largest value.

    Args:
        cap: that value.

    Source: Song, Sebe & Wang, ICCV 2021, section 3.3.

    Examples:
        >>> SVDTrunc(cap=10.0).factor(torch.ones(1), torch.tensor([0.99]))  # of the exact K for λ = 1 and 0.99
        tensor([0.1000])
    """

    cap: float = option(1e10, check_number, "(0, inf)")

    def factor(self, first: Tensor, second: Tensor) -> Tensor:
        gap = (first - second).abs()
        return torch.where(gap == 0, 1.0, (self.cap * gap).clamp_max(1.0))


@dataclass(frozen=True)
class SVDTopN(EigenMethod):
    """The n largest eigenvalues; the others count as zero, forward and backward.

    The released code leaves out the 50 smallest: ``n = C - 50``, the default for the papers' 256 channels.

    Args:
        n: how many eigenvalues are kept.

    Source: Song, Sebe & Wang, ICCV 2021, section 3.3.

    Examples:
        >>> sqrtm(torch.diag(torch.tensor([9.0, 4.0, 1.0])), SVDTopN(n=2)).diagonal()
        tensor([3., 2., 0.])
    """

    route: ClassVar[Any] = "eigh"
    n: int = option(206, check_integer, 1)

    def truncate(self, eigenvalues: Tensor) -> Tensor:
        dropped = eigenvalues.shape[-1] - self.n
        if dropped <= 0:
            return eigenvalues
        return torch.cat([torch.zeros_like(eigenvalues[..., :dropped]), eigenvalues[..., dropped:]], dim=-1)


@dataclass(frozen=True)
class SVDOriginal(EigenMethod):
    """The plain formula with 1 / (λ_i - λ_j), kept within the range of the floating point numbers.

    For comparison: nearly equal eigenvalues have rounding noise for a gradient. Exact ties have the exact K.

    Source: Ionescu, Vantzos & Sminchisescu, "Matrix Backpropagation for Deep Networks with Structured Layers",
    ICCV 2015, eq. 13; the overflow check is that of the ICCV 2021 code.

    Examples:
        >>> A = torch.eye(2, requires_grad=True)
        >>> sqrtm(A, SVDOriginal()).sum().backward()
        >>> A.grad
        tensor([[0.5000, 0.5000],
                [0.5000, 0.5000]])
    """

    def factor(self, first: Tensor, second: Tensor) -> Tensor:
        gap = first - second
        largest = torch.finfo(gap.dtype).max
        share = (first.sqrt() - second.sqrt()) * (first.sqrt() + second.sqrt())
        return torch.where(gap == 0, 1.0, share * gap.reciprocal().clamp(-largest, largest))


@dataclass(frozen=True)
class ExactInverse(SpectralMethod):
    """The inverse root and its exact gradient, K = -1 / (√λ_i √λ_j (√λ_i + √λ_j)).

    Eigenvalues that count as zero stay zero (the Moore-Penrose inverse).

    Args:
        route: as of :class:`Exact`, but eigh by default: by matrix products, the matrix must be positive definite.

    Examples:
        >>> inv_sqrtm(torch.diag(torch.tensor([4.0, 0.0])), ExactInverse()).diagonal()
        tensor([0.5000, 0.0000])
    """

    route: str = option("eigh", check_choice, ROUTES)  # type: ignore[misc]

    def values(self, eigenvalues: Tensor) -> Tensor:
        zero = eigenvalues == 0
        return torch.where(zero, 0.0, torch.where(zero, 1.0, eigenvalues).rsqrt())

    def coefficients(self, values: Tensor, others: Tensor) -> Tensor:
        # By sums and products, which are faster than masks: a zero root has a zero inverse here.
        a, b = (v.sqrt() for v in (values, others))
        p, q = (torch.where(v == 0, 0.0, v.reciprocal()) for v in (a, b))
        regular = (p.unsqueeze(-1) * q.unsqueeze(-2)).div_(sum_or_infinity(a.unsqueeze(-1), b.unsqueeze(-2)))
        one_zero = torch.stack([p**3, (a == 0).to(p)], -1) @ torch.stack([(b == 0).to(q), q**3], -2)
        return one_zero.sub_(regular)

    def curvature(self, values: Tensor, E: Tensor, D: Tensor) -> Tensor:
        """Of Z = S⁻¹: Z' = -Z S' Z, so Z'' = Z (S'_E Z S'_D + S'_D Z S'_E - S'') Z with the root's S' and S''."""
        root = Exact()
        K, z = root.coefficients(values, values), self.values(values)
        along_E, along_D = K * E, K * D
        mixed = (along_E * z.unsqueeze(-2)) @ along_D
        inner = mixed + mixed.mT - root.curvature(values, E, D)
        return z.unsqueeze(-1) * inner * z.unsqueeze(-2)


SQUARE_ROOTS.add("exact", Exact(), About(BY_EIGH, "exact", "BMVC 2017"))
SQUARE_ROOTS.add("svdpade", Exact(), About(BY_EIGH, "exact; the published Padé quotient equals it", "ICCV 2021"))
SQUARE_ROOTS.add("svdtaylor", SVDTaylor(), About(BY_EIGH, "approximate: Taylor series of degree 100", "ICCV 2021"))
SQUARE_ROOTS.add("svdpi", SVDPI(), About(BY_EIGH, "approximate: 19 power iterations", "NeurIPS 2019"))
SQUARE_ROOTS.add("svdtrunc", SVDTrunc(), About(BY_EIGH, "approximate: 1 / (λi - λj) capped at 1e10", "ICCV 2021"))
SQUARE_ROOTS.add(
    "svdtopn",
    SVDTopN(),
    About(
        "square root of the 206 largest eigenvalues",
        "approximate: as if the other eigenvalues stayed zero",
        "ICCV 2021",
    ),
)
SQUARE_ROOTS.add("svdoriginal", SVDOriginal(), About(BY_EIGH, "1 / (λi - λj), unstable; for comparison", "ICCV 2015"))
INVERSE_ROOTS.add("exact", ExactInverse())
