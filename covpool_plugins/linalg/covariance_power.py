"""Powers and the logarithm of the covariance of features, in one step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import check_number
from .covariance_square_root import Vectorize, check_root_options, covariance_sqrt
from .exports import is_product_of_roots, power_of_root
from .feature_functions import FeatureFunction, Rule, decompose_features, function_of_features
from .methods.base import Compute, SpectralMethod, check_exportable
from .packing import pack_triu
from .spectral import AlongExponent, Power, check_learned
from .tensors import apply, check_features, exporting, working_dtype


def covariance_powm(
    X: Tensor,
    p: float | Tensor,
    centered: bool = True,
    *,
    compute: Compute = "mixed",
    vectorize: Vectorize = "full",
) -> Tensor:
    """``powm(covariance(X), p)`` in one step: faster, more accurate, and with a second derivative.

    The covariance A of fewer positions than channels is singular, and a power of it has no second derivative as a
    function of A; as a function of features that keep their rank it has one.

    Args:
        X: features (..., C, M), C channels at M positions; half precision is computed in float32.
        p: the exponent, or a 0-dimensional tensor of it, see :func:`powm`.
        centered: subtract the mean over the positions.
        compute, vectorize: as of :func:`covariance_sqrt`.

    Returns:
        Matrices (..., C, C), or (..., C(C+1)/2) for ``triu``, in the dtype of ``X``.

    Raises:
        ShapeError, DtypeError: if ``X`` is not a batch of floating point features.
        OptionError: for an option that does not exist, or if ``p`` is not a finite number.

    Examples:
        >>> X = torch.randn(2, 8, 5, dtype=torch.float64)
        >>> torch.allclose(covariance_powm(X, 0.5), covariance_sqrt(X, "exact"))
        True
    """
    check_features(X)
    check_root_options(compute, vectorize)
    if exporting() and not isinstance(p, Tensor) and is_product_of_roots(p):
        F = power_of_root(covariance_sqrt(X, "exact", centered=centered, compute=compute), p)
        return pack_triu(F) if vectorize == "triu" else F
    check_exportable(Power(1.0), Power.__name__)
    work = X.to(torch.float64 if compute == "float64" else working_dtype(X.dtype))
    mixed, packed = compute == "mixed", vectorize == "triu"
    if not isinstance(p, Tensor):
        return function_of_features(work, Rule(Power(p), centered, mixed, packed)).to(X.dtype)
    check_learned(p)
    exponent = p.double()
    rule = Rule(Power(exponent.detach()), centered, mixed, False)
    values, U, V = decompose_features(work, rule)
    F = apply(FeatureFunction, work, values, U, V, rule)
    F = apply(AlongExponent, F, exponent, values, U.to(F.dtype))
    return (pack_triu(F) if packed else F).to(X.dtype)


def covariance_log1p(
    X: Tensor,
    eps: float,
    centered: bool = True,
    *,
    compute: Compute = "mixed",
    vectorize: Vectorize = "full",
) -> Tensor:
    """log(I + covariance(X) / eps) in one step.

    Args:
        X: features (..., C, M), C channels at M positions; half precision is computed in float32.
        eps: the variance that the logarithm is bounded by; positive.
        centered: subtract the mean over the positions.
        compute, vectorize: as of :func:`covariance_sqrt`.

    Returns:
        Matrices (..., C, C), or (..., C(C+1)/2) for ``triu``, in the dtype of ``X``.

    Raises:
        ShapeError, DtypeError: if ``X`` is not a batch of floating point features.
        OptionError: for an option that does not exist, or unless ``eps`` is a positive number.

    Examples:
        >>> X = torch.randn(2, 8, 5, dtype=torch.float64)
        >>> expected = logm(torch.eye(8, dtype=torch.float64) + covariance(X) / 0.1)
        >>> torch.allclose(covariance_log1p(X, 0.1), expected)
        True
    """
    check_features(X)
    check_root_options(compute, vectorize)
    check_exportable(Log1p(1.0), "log1p")
    check_number("eps", eps, "(0, inf)")
    work = X.to(torch.float64 if compute == "float64" else working_dtype(X.dtype))
    return function_of_features(work, Rule(Log1p(eps), centered, compute == "mixed", vectorize == "triu")).to(X.dtype)


@dataclass(frozen=True)
class Log1p(SpectralMethod):
    """log(1 + λ / ε)."""

    eps: float

    def values(self, eigenvalues: Tensor) -> Tensor:
        return torch.log1p(eigenvalues / self.eps)

    def divided_differences(self, first: Tensor, second: Tensor) -> Tensor:
        low, gap = torch.minimum(first, second) + self.eps, (first - second).abs()
        tie = gap == 0
        return torch.where(tie, 1 / low, torch.log1p(gap / low) / torch.where(tie, 1.0, gap))

    @property
    def derivatives_at_zero(self) -> float:
        return float("inf")

    def derivative(self, eigenvalues: Tensor, order: int) -> Tensor | None:
        shifted = eigenvalues + self.eps
        return -(shifted**-2) if order == 2 else -6 * shifted**-4
