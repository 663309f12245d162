"""Pools of which larger features make no larger vector."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .covariance_pool import CovariancePool
from .positions import mean_over_positions


class ScaleFreePool(CovariancePool):
    """A covariance pool whose vector does not grow with the scale of the features.

    Such a vector is no sum of what the positions contribute. Its ``entries`` are: the vector times the power of the
    total variance that makes them of degree two in the features. So a contribution map holds the total variance at its
    value and shares out the rest, as it does for vectors normalised in length.

    Args:
        degree: that of the vector in the features, 0 or -2.
        options: as for :class:`CovariancePool`.
    """

    def __init__(self, in_channels: int, *, degree: int = 0, **options: Any) -> None:
        super().__init__(in_channels, **options)
        self.degree = degree

    def entries(self, X: Tensor, mask: Tensor | None = None) -> Tensor:
        Xc = X - mean_over_positions(X, mask) if self.centered else X
        if mask is not None:
            Xc = Xc.masked_fill(~mask.unsqueeze(1), 0.0)
        total = Xc.square().sum((-2, -1)).unsqueeze(-1)
        return self.represent(X, mask) * total ** (1 - self.degree // 2)

    def represent(self, X: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().entries(X, mask).to(X.dtype)
