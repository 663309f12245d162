"""Matrices in the tangent spaces of metrics of covariances, for a linear classifier there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..checks import check_flag, check_number
from ..errors import OptionError
from ..linalg import (
    Compute,
    IterativeMethod,
    Method,
    Vectorize,
    covariance,
    covariance_powm,
    covariance_sqrt,
    pack_triu,
    resolve_method,
)
from ..linalg.tensors import autocast_off, finite_matrices, identity_like, trace, transpose, working_dtype
from ..tables import About
from .base import COVARIANCE_OPTIONS, POOLS
from .covariance_pool import CovariancePool
from .normalizations import Normalization, _working


class ScaledPower(Normalization):
    """(1/θ) A^θ, or with ``tangent`` (1/θ) (A^θ - I), the tangent space of the power-Euclidean metric at I.

    Args:
        method: of the square root for θ = 1/2, a name or object; ``isqrt``, five Newton-Schulz steps, as released.
        theta: θ, 0 < θ <= 1; the power is taken by an eigen-decomposition where it is not 1/2.
        tangent: subtract the identity.
        options: fields of the method, for example ``iterations=7``.

    Source: Chen, Song, Wu, Sebe & others, "Understanding Matrix Function Normalizations in Covariance Pooling through
    the Lens of Riemannian Geometry" (ScalePow-EMLR and Pow-TMLR of RiemGCP), ICLR 2025.

    Raises:
        UnknownNameError, OptionError: for a method or an option that does not exist, or one outside its range.

    Examples:
        >>> x = torch.tensor([[1.0, 1.0, -1.0, -1.0], [2.0, -2.0, 2.0, -2.0]]).view(1, 2, 2, 2)  # variances 1 and 4
        >>> create_pool("powtmlr", 2, reduce_channels=None, iterations=15)(x).round(decimals=4)
        tensor([[0., 0., 2.]])
    """

    in_range = False

    def __init__(
        self, method: str | Method = "isqrt", *, theta: float = 0.5, tangent: bool = False, **options: Any
    ) -> None:
        super().__init__()
        name = "powtmlr" if tangent else "scalepow"
        check_number(f"{name}: theta", theta, "(0, 1]")
        check_flag("tangent", tangent)
        if theta != 0.5 and options:
            raise OptionError(f"{name}: theta={theta} is no square root, and takes no option {next(iter(options))!r}")
        self.method = resolve_method(method, **options)
        self.theta = float(theta)
        self.tangent = tangent

    @property
    def is_exportable(self) -> bool:
        return self.theta == 0.5 and self.method.exportable("sqrtm")

    @property
    def is_iterative(self) -> bool:
        return self.theta == 0.5 and isinstance(self.method, IterativeMethod)

    def forward(self, X: Tensor, centered: bool, compute: Compute, vectorize: Vectorize) -> Tensor:
        if self.theta == 0.5:
            F = covariance_sqrt(X.to(working_dtype(X.dtype)), self.method, centered=centered, compute=compute)
        else:
            F = covariance_powm(_working(X, compute), self.theta, centered)
        with autocast_off(X.device.type):
            if self.tangent:
                F = F - identity_like(F)
            F = F / self.theta
        return (pack_triu(F) if vectorize == "triu" else F.flatten(1)).to(working_dtype(X.dtype))

    def extra_repr(self) -> str:
        return f"{self.method}, theta={self.theta:g}, tangent={self.tangent}"


class LogCholesky(Normalization):
    """⌊L⌋ + ⌊L⌋ᵀ + 2 log diag L for the Cholesky factor L of A + ε I; ⌊L⌋ is strictly lower.

    The tangent space of the log-Cholesky metric at I. Features whose covariance is large beside ε have an ε that its
    rounding cannot make up for: C times the precision times the trace, at least.

    Args:
        eps: ε, an absolute variance.

    Source: Chen, Song, Wu, Sebe & others, "Understanding Matrix Function Normalizations in Covariance Pooling through
    the Lens of Riemannian Geometry" (Cho-TMLR of RiemGCP), ICLR 2025, with the power one as in the authors' code.

    Raises:
        OptionError: unless ε is a positive number.

    Examples:
        >>> x = torch.tensor([[1.0, 1.0, -1.0, -1.0], [2.0, -2.0, 2.0, -2.0]]).view(1, 2, 2, 2)  # variances 1 and 4
        >>> create_pool("cholesky", 2, reduce_channels=None)(x).round(decimals=4)
        tensor([[0.0000, 0.0000, 1.3863]])
    """

    def __init__(self, *, eps: float = 1e-6) -> None:
        super().__init__()
        check_number("cholesky: eps", eps, "(0, inf)")
        self.eps = float(eps)

    def of_features(self, X: Tensor, centered: bool) -> Tensor:
        A = covariance(X, centered)
        rounding = A.shape[-1] * torch.finfo(A.dtype).eps * trace(A.detach())
        A = A + rounding.clamp_min(self.eps) * identity_like(A)
        finite = finite_matrices(A)
        L = torch.linalg.cholesky_ex(torch.where(finite, A, identity_like(A)))[0]
        lower = L.tril(-1)
        F = lower + transpose(lower) + torch.diag_embed(2 * L.diagonal(dim1=-2, dim2=-1).log())
        return torch.where(finite, F, torch.nan)

    def extra_repr(self) -> str:
        return f"eps={self.eps:g}"


def scalepow(in_channels: int, *, method: str | Method = "isqrt", theta: float = 0.5, **options: Any) -> CovariancePool:
    return power_pool(in_channels, "scalepow", method, theta, False, options)


def powtmlr(in_channels: int, *, method: str | Method = "isqrt", theta: float = 0.5, **options: Any) -> CovariancePool:
    return power_pool(in_channels, "powtmlr", method, theta, True, options)


def power_pool(
    in_channels: int, pool_type: str, method: str | Method, theta: float, tangent: bool, options: dict[str, Any]
) -> CovariancePool:
    shared = {name: options.pop(name) for name in (*COVARIANCE_OPTIONS, "device", "dtype") if name in options}
    normalization = ScaledPower(method, theta=theta, tangent=tangent, **options)
    return CovariancePool(in_channels, pool_type=pool_type, normalization=normalization, **shared)


def cholesky(in_channels: int, *, eps: float = 1e-6, **shared: Any) -> CovariancePool:
    return CovariancePool(in_channels, pool_type="cholesky", normalization=LogCholesky(eps=eps), **shared)


POOLS.add(
    "scalepow",
    scalepow,
    About("(1/θ) A^θ of the covariance A, θ = 1/2 by 5 Newton-Schulz steps", "exact for these steps", "ICLR 2025"),
)
POOLS.add(
    "powtmlr",
    powtmlr,
    About("(1/θ) (A^θ - I), θ = 1/2 by 5 Newton-Schulz steps", "exact for these steps", "ICLR 2025"),
)
POOLS.add(
    "cholesky",
    cholesky,
    About("Cholesky factor of the covariance, on its diagonal the logarithms", "exact", "ICLR 2025"),
)
