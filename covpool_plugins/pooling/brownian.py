"""Brownian distance covariance: distances of the channels in place of their products."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..linalg import covariance
from ..linalg.tensors import power_of_two
from ..tables import About
from .base import POOLS
from .covariance_pool import CovariancePool
from .normalizations import Normalization
from .positions import counted


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

    def __init__(self, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.zeros((), device=device, dtype=dtype))

    @property
    def is_exportable(self) -> bool:
        return True

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
        return D - rows - rows.transpose(-2, -1) + rows.mean(-2, keepdim=True)


def bdc(
    in_channels: int, *, centered: bool = False, device: Any = None, dtype: Any = None, **shared: Any
) -> CovariancePool:
    factory: dict[str, Any] = dict(device=device, dtype=dtype)
    shared |= dict(normalization=BrownianDistance(**factory), centered=centered, **factory)
    return CovariancePool(in_channels, pool_type="bdc", **shared)


POOLS.add(
    "bdc",
    bdc,
    About("Brownian distance covariance of the channels, with a learned temperature", "exact", "CVPR 2022"),
)
