"""Cross-covariance pooling: how two projections of the same features vary together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..checks import check_choice
from ..errors import OptionError
from ..linalg.tensors import autocast_off, product, transpose
from ..tables import About
from .base import LAYOUT_OPTIONS, POOLS, InputFormat, Pool
from .positions import counted, reduced_positions
from .reduction import reduced_channels
from .singular_value_power import SingularValuePower, Start

CrossNormalization = Literal["svpn", "none"]
NORMALIZATIONS: tuple[str, ...] = get_args(CrossNormalization)
DEFAULT_CHANNELS = 64


class CrossCovariancePool(Pool):
    """Ỹ Z̃ᵀ / M of two reductions Y (B, C₁, M) and Z (B, C₂, M) of the input, normalised, C₁ C₂ numbers row by row.

    The matrix is rectangular, or square without being symmetric, and has no square root; svPN raises its singular
    values to a power instead. ``features`` gives both reductions in one tensor (B, C₁ + C₂, M), Y first.

    Args:
        in_channels: channels of the input.
        reduce_channels: (C₁, C₂), or one number for both; by default 64, or ``in_channels`` where that is less.
            ``None`` leaves the reductions out: Y and Z are the input.
        reduction: for both, see :class:`Pool`.
        centered: subtract the means over the positions.
        normalization: ``svpn`` or ``none``.
        input_fmt, num_prefix_tokens: see :class:`Pool`.
        alpha, iterations, n, start, eps: of :class:`SingularValuePower`.

    Source: Xie, Zeng, Wang, Zhang & Li, "So-ViT: Mind Visual Tokens for Vision Transformer", arXiv 2104.10935, 2021.

    Raises:
        OptionError: for an option out of its range, or one that the normalisation does not have.

    Examples:
        >>> CrossCovariancePool(64, reduce_channels=(16, 8))(torch.randn(2, 64, 7, 7)).shape
        torch.Size([2, 128])
    """

    shared_options = LAYOUT_OPTIONS

    def __init__(
        self,
        in_channels: int,
        *,
        reduce_channels: int | str | Sequence[int] | None = "default",
        reduction: str | None = None,
        centered: bool = True,
        normalization: CrossNormalization = "svpn",
        alpha: float = 0.5,
        iterations: int = 1,
        n: int | None = 1,
        start: Start = "learned",
        eps: float = 1e-5,
        input_fmt: InputFormat = "NCHW",
        num_prefix_tokens: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_choice("crosscov: normalization", normalization, NORMALIZATIONS)
        rows, columns = _channels(in_channels, reduce_channels)
        super().__init__(
            in_channels,
            pool_type="crosscov",
            reduce_channels=None,
            input_fmt=input_fmt,
            num_prefix_tokens=num_prefix_tokens,
        )
        self.out_features = rows * columns
        self.both_channels = (rows, columns)
        self.centered = centered
        reduced = () if reduce_channels is None else self.both_channels
        self.reductions = nn.ModuleList(self.build_reductions(reduced, reduction, device=device, dtype=dtype))
        self.normalization: SingularValuePower | None = None
        if normalization == "svpn":
            options: dict[str, Any] = dict(alpha=alpha, iterations=iterations, n=n, start=start, eps=eps)
            self.normalization = SingularValuePower(rows, columns, **options, device=device, dtype=dtype)

    @property
    def needs_positions(self) -> bool:
        return self.centered is True

    def features(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Both reductions (B, C₁ + C₂, M), or the input itself (B, C, M) without them."""
        maps = self.to_maps(x)
        reductions = self.reductions if len(self.reductions) else [self.reduction]
        return torch.cat([reduced_positions(reduction, maps, mask) for reduction in reductions], dim=1)

    def represent(self, X: Tensor, mask: Tensor | None = None) -> Tensor:
        Y, Z = X.split(self.both_channels, dim=1) if len(self.reductions) else (X, X)
        with autocast_off(X.device.type):
            Yc, Zc = (counted(part, mask, self.centered) for part in (Y, Z))
            Yc = Yc / X.shape[-1]
            if self.normalization is None:
                Q = product(Yc, transpose(Zc))
            elif X.shape[-1] > min(self.both_channels):
                Q = self.normalization.function(product(Yc, transpose(Zc)))
            else:
                Q = self.normalization.of_product(Yc, Zc)
        return Q.flatten(1).to(X.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, channels={self.both_channels}, centered={self.centered}"


def _channels(in_channels: int, reduce_channels: int | str | Sequence[int] | None) -> tuple[int, int]:
    """C₁ and C₂."""
    if reduce_channels == "default":
        reduce_channels = min(DEFAULT_CHANNELS, in_channels)
    pair = reduce_channels if isinstance(reduce_channels, (list, tuple)) else (reduce_channels, reduce_channels)
    if len(pair) != 2 or (isinstance(reduce_channels, (list, tuple)) and None in pair):
        raise OptionError(f"reduce_channels must be one or two positive integers or None, got {reduce_channels!r}")
    rows, columns = (reduced_channels(in_channels, count) for count in pair)
    return rows, columns


POOLS.add(
    "crosscov",
    CrossCovariancePool,
    About("cross-covariance of two projections, normalised as in `svpn`", "exact for these steps", "So-ViT, 2021"),
)
