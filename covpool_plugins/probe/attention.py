"""Attentive pooling, the learned first-order baseline of probes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..checks import check_integer


class AttentivePool(nn.Module):
    """A learned query attends to the positions: layer norm, multi-head cross-attention, C numbers.

    Args:
        in_channels: C.
        heads: a divisor of C; by default the greatest common divisor of 8 and C.

    Source: the attentive probe of Chen et al., "Context autoencoder for self-supervised representation learning",
    IJCV 2024, with one query and without the block's multilayer perceptron.

    Raises:
        OptionError: for ``heads`` that are no positive integer.

    Examples:
        >>> from covpool_plugins.probe.attention import AttentivePool
        >>> AttentivePool(16)(torch.randn(2, 49, 16)).shape
        torch.Size([2, 16])
    """

    def __init__(self, in_channels: int, *, heads: int | None = None) -> None:
        super().__init__()
        heads = math.gcd(8, in_channels) if heads is None else heads
        check_integer("heads", heads)
        self.out_features = in_channels
        self.norm = nn.LayerNorm(in_channels)
        self.query = nn.Parameter(torch.randn(1, 1, in_channels) * in_channels**-0.5)
        self.attention = nn.MultiheadAttention(in_channels, heads, batch_first=True)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Vectors (B, C) of tokens (B, M, C); ``mask`` (B, M) is true where a position counts."""
        tokens = self.norm(x)
        query = self.query.expand(len(x), -1, -1)
        ignored = None if mask is None else ~mask
        return self.attention(query, tokens, tokens, key_padding_mask=ignored, need_weights=False)[0][:, 0]
