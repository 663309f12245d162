"""Functions of the covariance: powers, logarithms, tangent spaces of metrics, distances."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..checks import check_flag, check_number
from ..errors import OptionError
from ..linalg import (
    Compute,
    Method,
    Vectorize,
    covariance,
    covariance_log1p,
    covariance_powm,
    covariance_sqrt,
    pack_triu,
    resolve_method,
)
from ..linalg.spectral import expm1_neg, is_product_of_roots
from ..linalg.tensors import (
    autocast_off,
    exporting,
    finite_matrices,
    identity_like,
    power_of_two,
    product,
    trace,
    transpose,
    working_dtype,
)
from ..tables import About
from .base import widened
from .covariance_pool import Normalization, add_normalization
from .damped_sum import root_and_damped_sum
from .positions import counted

NEGLIGIBLE = 1e-60  # of the branch's square: its root is far below the rounding of one, and has a steep gradient


class MatrixPower(Normalization):
    """The power A^p, 0 < p <= 1; one half is the square root of MPN-COV.

    Args:
        p: the exponent.
        learn_p: make it a parameter; p = sigmoid(``logit_p``), so that it stays between 0 and 1.

    Source: Li et al., "Is Second-order Information Helpful for Large-scale Visual Recognition?", ICCV 2017, eq. 4.

    Examples:
        >>> create_pool("powcov", 8, p=0.3, learn_p=True).normalization
        MatrixPower(p=0.3, learn_p=True)
    """

    def __init__(self, *, p: float = 0.5, learn_p: bool = False) -> None:
        super().__init__()
        check_flag("powcov: learn_p", learn_p)
        check_number("powcov: p", p, "(0, 1)" if learn_p else "(0, 1]")
        self.fixed_p = float(p)
        self.logit_p = nn.Parameter(torch.full((), p).logit()) if learn_p else None
        self.in_range = p <= 0.5 and not learn_p
        self.products_only = not learn_p and is_product_of_roots(self.fixed_p)

    @property
    def p(self) -> float | Tensor:
        """The exponent; a 0-dimensional tensor with gradient if it is learned."""
        return self.fixed_p if self.logit_p is None else self.logit_p.sigmoid()

    def forward(self, X: Tensor, centered: bool, compute: Compute, vectorize: Vectorize) -> Tensor:
        return covariance_powm(widened(X), self.p, centered, compute=compute, vectorize=vectorize).flatten(1)

    def extra_repr(self) -> str:
        p = self.p
        shown = p.item() if isinstance(p, Tensor) and not p.is_meta else self.fixed_p
        return f"p={shown:.4g}, learn_p={self.logit_p is not None}"


class MatrixLogarithm(Normalization):
    """log(I + A / ε): the log-Euclidean representation log(A + ε I), less its constant log ε.

    ε bounds the logarithm of the small eigenvalues below; without the constant, which a classifier's bias makes up for,
    zero features give zeros.

    Args:
        eps: ε, an absolute variance, positive.

    Source: Ionescu, Vantzos & Sminchisescu, "Matrix Backpropagation for Deep Networks with Structured Layers",
    ICCV 2015, section 5.

    Examples:
        >>> create_pool("logcov", 8, reduce_channels=None, eps=1e-2)(torch.zeros(1, 8, 4, 4)).abs().sum()
        tensor(0.)
    """

    in_range = False
    shown = ("eps",)

    def __init__(self, *, eps: float = 1e-3) -> None:
        super().__init__()
        check_number("logcov: eps", eps, "(0, inf)")
        self.eps = float(eps)

    def forward(self, X: Tensor, centered: bool, compute: Compute, vectorize: Vectorize) -> Tensor:
        return covariance_log1p(widened(X), self.eps, centered, compute=compute, vectorize=vectorize).flatten(1)


class ScalingEigenBranch(Normalization):
    """(1 + ‖A^(1/2) exp(-A)‖_F) A^(1/2): the root, scaled by a branch that small eigenvalues drive.

    The released layer is NaN where an entry of the root is zero; elsewhere it computes this closed form. The norm needs
    the eigenvalues alone, which the root has: ‖A^(1/2) exp(-A)‖² = Σ λ exp(-2 λ).

    Source: Song, Sebe & Wang, "On the Eigenvalues of Global Covariance Pooling for Fine-grained Visual Recognition",
    T-PAMI 2022, section 4.

    Examples:
        >>> create_pool("seb", 8)(torch.randn(2, 8, 7, 7)).shape
        torch.Size([2, 36])
    """

    products_only = True

    def forward(self, X: Tensor, centered: bool, compute: Compute, vectorize: Vectorize) -> Tensor:
        if exporting():
            root = covariance_sqrt(X, "exact", centered=centered, compute=compute, vectorize=vectorize)
            A = covariance(X.to(self.precision(X.dtype, compute)), centered).double()
            squared = trace(A + product(A, expm1_neg(2 * A))).squeeze(-1)
        else:
            work = X.double() if compute == "float64" else widened(X)
            root, squared = root_and_damped_sum(work, centered, compute == "mixed", vectorize == "triu")
        zero = squared <= NEGLIGIBLE
        scale = 1 + torch.where(zero, 0.0, torch.where(zero, 1.0, squared).sqrt())
        return (root.flatten(1) * scale.to(root.dtype)).to(working_dtype(X.dtype))


class ScaledPower(Normalization):
    """(1/θ) A^θ, a scaled power of the covariance.

    Args:
        method: of the square root for θ = 1/2, a name or object; ``isqrt``, five Newton-Schulz steps, as released.
        theta: θ, 0 < θ <= 1; the power is taken by an eigen-decomposition where it is not 1/2.
        options: fields of the method, for example ``iterations=7``.

    Source: Chen, Song, Wu, Sebe & others, "Understanding Matrix Function Normalizations in Covariance Pooling through
    the Lens of Riemannian Geometry" (ScalePow-EMLR and Pow-TMLR of RiemGCP), ICLR 2025.

    Raises:
        UnknownNameError, OptionError: for a method or an option that does not exist, or one outside its range.

    Examples:
        >>> x = torch.tensor([[1.0, 1.0, -1.0, -1.0], [2.0, -2.0, 2.0, -2.0]]).view(1, 2, 2, 2)  # variances 1 and 4
        >>> create_pool("scalepow", 2, reduce_channels=None, iterations=15)(x).round(decimals=4)
        tensor([[2., 0., 4.]])
    """

    in_range = False
    shown = ("method", "theta")
    tangent: ClassVar[bool] = False

    def __init__(self, *, method: str | Method = "isqrt", theta: float = 0.5, **options: Any) -> None:
        super().__init__()
        name = "powtmlr" if self.tangent else "scalepow"
        check_number(f"{name}: theta", theta, "(0, 1]")
        if theta == 0.5:
            self.method = resolve_method(method, **options)
        elif method != "isqrt" or options:
            given = [*options, "method"][0]
            raise OptionError(f"{name}: theta={theta} is no square root, and takes no option {given!r}")
        self.theta = float(theta)

    def forward(self, X: Tensor, centered: bool, compute: Compute, vectorize: Vectorize) -> Tensor:
        wide = widened(X)
        if self.method is not None:
            F = covariance_sqrt(wide, self.method, centered=centered, compute=compute)
        else:
            F = covariance_powm(wide.to(self.precision(X.dtype, compute)), self.theta, centered)
        with autocast_off(X.device.type):
            if self.tangent:
                F = F - identity_like(F)
            F = F / self.theta
        return (pack_triu(F) if vectorize == "triu" else F.flatten(1)).to(wide.dtype)


class TangentPower(ScaledPower):
    """(1/θ) (A^θ - I), the tangent space of the power-Euclidean metric at I."""

    tangent = True


class LogCholesky(Normalization):
    """⌊L⌋ + ⌊L⌋ᵀ + 2 log diag L for the Cholesky factor L of A + ε I; ⌊L⌋ is strictly lower.

    The tangent space of the log-Cholesky metric at I. Features whose covariance is large beside ε have an ε that its
    rounding cannot make up for: C times the precision times the trace, at least.

    Args:
        eps: ε, an absolute variance, positive.

    Source: Chen, Song, Wu, Sebe & others, "Understanding Matrix Function Normalizations in Covariance Pooling through
    the Lens of Riemannian Geometry" (Cho-TMLR of RiemGCP), ICLR 2025, with the power one as in the authors' code.

    Examples:
        >>> x = torch.tensor([[1.0, 1.0, -1.0, -1.0], [2.0, -2.0, 2.0, -2.0]]).view(1, 2, 2, 2)  # variances 1 and 4
        >>> create_pool("cholesky", 2, reduce_channels=None)(x).round(decimals=4)
        tensor([[0.0000, 0.0000, 1.3863]])
    """

    shown = ("eps",)

    def __init__(self, *, eps: float = 1e-6) -> None:
        super().__init__()
        check_number("cholesky: eps", eps, "(0, inf)")
        self.eps = float(eps)

    def function(self, A: Tensor) -> Tensor:
        rounding = A.shape[-1] * torch.finfo(A.dtype).eps * trace(A.detach())
        A = A + rounding.clamp_min(self.eps) * identity_like(A)
        finite = finite_matrices(A)
        L = torch.linalg.cholesky_ex(torch.where(finite, A, identity_like(A)))[0]
        lower = L.tril(-1)
        F = lower + transpose(lower) + torch.diag_embed(2 * L.diagonal(dim1=-2, dim2=-1).log())
        return torch.where(finite, F, torch.nan)


class BrownianDistance(Normalization):
    """The double-centred distances of the channels, D - D̄_row - D̄_column + D̄ with D_ij = √(e^τ (a_ii + a_jj - 2 a_ij)).

    A = X Xᵀ / M is the second moment, so that D_ij is √(e^τ / M) times the distance of the channels i and j as vectors
    over the positions. It measures dependence that is not linear, too. Channels that are equal up to rounding have the
    distance zero without gradient; so do features that are all zero.

    Attributes:
        temperature: τ, a learned number, which begins at zero.

    Source: Xie, Long, Lv, Wang & Li, "Joint Distribution Matters: Deep Brownian Distance Covariance for Few-Shot
    Classification", CVPR 2022, from the formula.

    Examples:
        >>> pool = create_pool("bdc", 2, reduce_channels=None, vectorize="full")
        >>> pool(torch.tensor([[[[3.0]], [[1.0]]]])).detach()
        tensor([[-1.,  1.,  1., -1.]])
    """

    in_range = False
    products_only = True

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.zeros(()))

    def of_features(self, X: Tensor, centered: bool) -> Tensor:
        scale = power_of_two(X)
        Y = counted(X / scale, None, centered)
        Y = Y - Y.mean(-2, keepdim=True)  # which leaves the distances; their squares cancel less then
        squares = Y.square().mean(-1)
        sums = squares.unsqueeze(-1) + squares.unsqueeze(-2)
        distances = sums - 2 * covariance(Y, centered=False)
        null = distances <= 4 * sum(X.shape[-2:]) * torch.finfo(X.dtype).eps * sums.detach()
        D = torch.where(null, 0.0, torch.where(null, 1.0, distances).sqrt())
        D = scale * (0.5 * self.temperature.to(X.dtype)).exp() * D
        rows = D.mean(-1, keepdim=True)
        return D - rows - transpose(rows) + rows.mean(-2, keepdim=True)


add_normalization(
    "powcov",
    MatrixPower,
    About("power p of the covariance, p = 0.5 or learned (`learn_p=True`)", "exact, also for p", "ICCV 2017"),
)
add_normalization(
    "logcov",
    MatrixLogarithm,
    About("logarithm log(I + A / ε) of the covariance A", "exact", "ICCV 2015"),
)
add_normalization(
    "seb",
    ScalingEigenBranch,
    About("square root times a factor that its small eigenvalues raise", "exact", "T-PAMI 2022"),
)
add_normalization(
    "scalepow",
    ScaledPower,
    About("(1/θ) A^θ of the covariance A, θ = 1/2 by 5 Newton-Schulz steps", "exact for these steps", "ICLR 2025"),
)
add_normalization(
    "powtmlr",
    TangentPower,
    About("(1/θ) (A^θ - I), θ = 1/2 by 5 Newton-Schulz steps", "exact for these steps", "ICLR 2025"),
)
add_normalization(
    "cholesky",
    LogCholesky,
    About("Cholesky factor of the covariance, on its diagonal the logarithms", "exact", "ICLR 2025"),
)
add_normalization(
    "bdc",
    BrownianDistance,
    About("Brownian distance covariance of the channels, with a learned temperature", "exact", "CVPR 2022"),
    centered=False,
)
