"""Vectors that do not grow with the size of the features, made into sums of what the positions contribute."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..linalg.tensors import power_of_two
from .covariance_pool import CovariancePool
from .positions import mean_over_positions, only

SMALLEST = 2.0**-80


def of_unit_size(X: Tensor) -> Tensor:
    """Features (B, C, M) over a power of two near their largest entry, for vectors that do not depend on their size.

    Zeros, without gradient, for features below 1e-24: the gradient of such a vector, of degree -1 in the features,
    would leave the range of float32.
    """
    unit = power_of_two(X)
    return torch.where(unit > SMALLEST, X / unit, 0.0)


def squared_size(X: Tensor, mask: Tensor | None = None, centered: bool = False) -> Tensor:
    """Σ x² (B, 1) of features (B, C, M), over the positions that count."""
    if centered:
        X = only(X - mean_over_positions(X, mask), mask)
    return X.square().sum((-2, -1)).unsqueeze(-1)


class HeldSizePool(CovariancePool):
    """A covariance pool whose vector F(X) keeps its size, or shrinks, when the features grow.

    Its ``entries`` are F(X) ‖X‖^(2 k). A contribution map holds the factor ‖X‖^(2 k) at its value and shares out the
    rest, as it does for vectors normalised in length; F(X) itself is no sum over the positions.

    Args:
        power: k, enough of it for entries that grow faster than the features.
        options: as for :class:`CovariancePool`.

    Examples:
        >>> pool, X = create_pool("maxexp", 8, reduce_channels=None), torch.randn(2, 8, 49)
        >>> torch.allclose(pool.represent(2 * X), pool.represent(X), atol=1e-5)
        True
        >>> torch.allclose(pool.entries(2 * X), 4 * pool.entries(X), rtol=1e-4)
        True
    """

    def __init__(self, in_channels: int, *, power: int = 1, **options: Any) -> None:
        super().__init__(in_channels, **options)
        self.power = power

    def entries(self, X: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().entries(X, mask) * squared_size(X, mask, self.centered) ** self.power

    def represent(self, X: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.in_precision(self.elementwise(super().entries(X, mask)), X)
