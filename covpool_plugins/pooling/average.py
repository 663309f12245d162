"""First-order pooling, for comparison."""

from __future__ import annotations

import torch
from torch import Tensor

from ..tables import About
from .base import LAYOUT_OPTIONS, POOLS, InputFormat, Pool
from .positions import mean_over_positions


class AveragePool(Pool):
    """Global average pooling: the mean over the positions, C numbers.

    Examples:
        >>> AveragePool(8)(torch.randn(2, 8, 7, 7)).shape
        torch.Size([2, 8])
    """

    shared_options = LAYOUT_OPTIONS

    def __init__(
        self,
        in_channels: int,
        *,
        input_fmt: InputFormat = "NCHW",
        num_prefix_tokens: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        del device, dtype  # no parameters; taken so that every pool is built alike
        super().__init__(in_channels, pool_type="gap", input_fmt=input_fmt, num_prefix_tokens=num_prefix_tokens)

    def represent(self, X: Tensor, mask: Tensor | None = None) -> Tensor:
        return mean_over_positions(X, mask).squeeze(-1)


POOLS.add("gap", AveragePool, About("global average pooling", "-", "for comparison"))
