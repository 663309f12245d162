"""Global Gaussian embedding: mean and covariance in one matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..checks import check_number
from ..errors import OptionError
from ..linalg import Method
from ..tables import About
from .base import POOLS, widened
from .covariance_pool import CovariancePool, Weighting
from .positions import mean_over_positions, only


class GaussianEmbedding(Weighting):
    """Features X (B, C, M), and a channel of ones, (B, C + 1, M); the mean counts β times.

    Their second moment is [[Σ + β² μμᵀ, β μ], [β μᵀ, 1]] with mean μ and covariance Σ of X, which is the Gaussian
    N(β μ, Σ) as a symmetric positive definite matrix.

    Args:
        weight: β, a positive number; one as published.

    Source: Wang, Li & Zhang, "G2DeNet: Global Gaussian Distribution Embedding Network and Its Application to Visual
    Recognition", CVPR 2017.

    Raises:
        OptionError: unless β is a positive number.

    Examples:
        >>> X = torch.tensor([[[1.0, 3.0]]])  # mean 2, variance 1
        >>> Y = GaussianEmbedding()(X)
        >>> Y @ Y.mT / 2
        tensor([[[5., 2.],
                 [2., 1.]]])
    """

    added_channels = 1

    def __init__(self, *, weight: float = 1.0) -> None:
        super().__init__()
        check_number("gaussian: weight", weight, "(0, inf)")
        self.weight = float(weight)

    def forward(self, X: Tensor, mask: Tensor | None = None) -> Tensor:
        wide = widened(X)
        if self.weight != 1:
            wide = wide + (self.weight - 1) * mean_over_positions(wide, mask)
        return only(torch.cat([wide, torch.ones_like(wide[:, :1])], dim=1), mask)

    def extra_repr(self) -> str:
        return f"weight={self.weight:g}"


def gaussian(
    in_channels: int,
    *,
    method: str | Method = "svdpade",
    weight: float = 1.0,
    centered: bool = False,
    **options: Any,
) -> CovariancePool:
    if centered is not False:
        raise OptionError(f"gaussian: centered must be False, for the matrix holds the mean, got {centered!r}")
    options |= dict(method=method, centered=False, weighting=GaussianEmbedding(weight=weight))
    return CovariancePool(in_channels, pool_type="gaussian", **options)


POOLS.add(
    "gaussian",
    gaussian,
    About("square root of [[Σ + μμᵀ, μ], [μᵀ, 1]], mean and covariance in one matrix", "exact", "CVPR 2017"),
)
