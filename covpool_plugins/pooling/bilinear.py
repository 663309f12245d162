"""Bilinear pooling of the features of two networks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..checks import check_integer
from ..errors import ShapeError
from ..linalg.tensors import autocast_off, product
from .base import InputFormat, Pool
from .elementwise import SignedRootL2
from .positions import count_positions


class BilinearPool(Pool):
    """X Yᵀ / M of two feature maps with the same positions, signed square root, l2: C₁ C₂ numbers, row by row.

    ``forward(x, y)`` takes (B, C₁, H, W) and (B, C₂, H, W), or any other layout, and ``mask=`` as any pool.
    ``forward(x)`` is ``forward(x, x)``, the pool ``bcnn``. It has no name in the table, where a pool takes one input.

    Args:
        in_channels: C₁, channels of the first input.
        second_channels: C₂, channels of the second; as many as of the first by default.
        eps: ε of the signed root, see :class:`SignedRootL2`.
        input_fmt: layout of both inputs, see :class:`Pool`.
        num_prefix_tokens: leading tokens to leave out of both, ``NLC`` only.

    Source: Lin, RoyChowdhury & Maji, "Bilinear CNN Models for Fine-grained Visual Recognition", ICCV 2015.

    Raises:
        OptionError: for an option outside its range.
        ShapeError: from ``forward``, if the inputs differ in batch or positions, or one is missing.

    Examples:
        >>> BilinearPool(8, 4)(torch.randn(2, 8, 7, 7), torch.randn(2, 4, 7, 7)).shape
        torch.Size([2, 32])
    """

    def __init__(
        self,
        in_channels: int,
        second_channels: int | None = None,
        *,
        eps: float = 1e-8,
        input_fmt: InputFormat = "NCHW",
        num_prefix_tokens: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        del device, dtype  # no parameters; taken so that every pool is built alike
        second = in_channels if second_channels is None else second_channels
        check_integer("second_channels", second)
        layout: dict[str, Any] = {"input_fmt": input_fmt, "num_prefix_tokens": num_prefix_tokens}
        super().__init__(in_channels, pool_type="bilinear", **layout)
        self.out_features = in_channels * second
        self.second_stream = Pool(second, pool_type="bilinear (second input)", **layout)
        self.elementwise = SignedRootL2(eps=eps)

    def forward(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Vectors (B, C₁ C₂) for one input, or for two with the same positions, of which the mask (B, M) is true."""
        X = self.features(x, mask)
        vectors = self.represent(X, None if y is None else self.second_stream.features(y, mask), mask)
        return vectors if mask is None else torch.where(mask.any(dim=-1, keepdim=True), vectors, 0.0)

    def represent(self, X: Tensor, Y: Tensor | None = None, mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Vectors (B, C₁ C₂) for features (B, C₁, M) and (B, C₂, M); ``Y`` is ``X`` unless given."""
        if Y is None:
            if self.second_stream.in_channels != self.in_channels:
                raise ShapeError(
                    f"bilinear pool of {self.in_channels} and {self.second_stream.in_channels} channels: "
                    "expected two inputs, got one"
                )
            Y = X
        if X.shape[::2] != Y.shape[::2]:
            raise ShapeError(
                "bilinear pool: expected inputs with the same batch and positions, got features "
                f"{tuple(X.shape)} and {tuple(Y.shape)}"
            )
        with autocast_off(X.device.type):
            dtype = torch.promote_types(torch.promote_types(X.dtype, Y.dtype), torch.float32)
            A = product(X.to(dtype), Y.to(dtype).transpose(1, 2)) / count_positions(X, mask)
            return self.elementwise(A.flatten(1)).to(torch.promote_types(X.dtype, Y.dtype))
