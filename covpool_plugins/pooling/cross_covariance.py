"""Cross-covariance pooling: how two projections of the same features vary together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..checks import check_choice, check_number, is_integer
from ..errors import OptionError
from ..linalg.tensors import autocast_off, product, transpose, working_dtype
from ..tables import About
from .base import LAYOUT_OPTIONS, POOLS, Pool
from .positions import counted, reduced_positions
from .reduction import reduced_channels
from .singular_value_power import EPS, SingularValuePower, Start

CrossNormalization = Literal["svpn", "none"]
NORMALIZATIONS: tuple[str, ...] = get_args(CrossNormalization)
Centered = bool | Literal["head"]
DEFAULT_CHANNELS = 64


class CrossCovariancePool(Pool):
    """Ỹ Z̃ᵀ / M of two reductions Y (B, C₁, M) and Z (B, C₂, M) of the input, normalised, C₁ C₂ numbers row by row.

    The matrix is rectangular, or square without being symmetric, and has no square root; svPN raises its singular
    values to a power instead. With ``heads=h`` both reductions are split into h groups of contiguous channels, and
    there is one matrix for each pair of groups, h · (C₁/h) · (C₂/h) numbers. ``features`` gives both reductions in one
    tensor (B, C₁ + C₂, M), Y first.

    Args:
        in_channels: channels of the input.
        reduce_channels: (C₁, C₂), or one number for both; by default 64, or ``in_channels`` where that is less.
            ``None`` leaves the reductions out: Y and Z are the input.
        reduction: for both, see :class:`Pool`; by default ``projection`` for several heads, as in SoT.
        heads: h, a divisor of C₁ and C₂. SoT-Small has ``reduce_channels=144, heads=6`` of 384 channels.
        centered: subtract the means over the positions, or with ``head`` one number from each head, the mean over its
            positions and channels, as SoT and the transformers of DropCov do, by default where there are several heads.
        normalization: ``svpn`` or ``none``, the latter as in the transformers of DropCov.
        token_dropout: in training, the probability with which a position is left out of a head; 0.2 in DropCov.
        entry_dropout: in training, that with which an entry of the result is; 0.5 in DropCov and SoT-Small.
        alpha, iterations, n, start, eps: of :class:`SingularValuePower`; all heads share its ``weight``.
        layout: ``input_fmt`` and ``num_prefix_tokens``, see :class:`Pool`.

    Source: Xie, Zeng, Wang, Zhang & Li, "So-ViT: Mind Visual Tokens for Vision Transformer" (later SoT), arXiv
    2104.10935, 2021; the dropouts: Wang et al., "DropCov", NeurIPS 2022. Several heads are those of the authors' code.

    Raises:
        OptionError: for an option out of its range, or one that the normalisation does not have.

    Examples:
        >>> CrossCovariancePool(64, reduce_channels=(16, 8))(torch.randn(2, 64, 7, 7)).shape
        torch.Size([2, 128])
        >>> CrossCovariancePool(64, reduce_channels=24, heads=6)(torch.randn(2, 64, 7, 7)).shape
        torch.Size([2, 96])
    """

    shared_options = LAYOUT_OPTIONS
    shown = ("both_channels", "heads", "centered", "one_mean")

    def __init__(
        self,
        in_channels: int,
        *,
        reduce_channels: int | str | Sequence[int] | None = "default",
        reduction: str | None = None,
        heads: int = 1,
        centered: Centered | None = None,
        normalization: CrossNormalization = "svpn",
        token_dropout: float = 0.0,
        entry_dropout: float = 0.0,
        alpha: float = 0.5,
        iterations: int = 1,
        n: int | None = 1,
        start: Start = "learned",
        eps: float = EPS,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **layout: Any,
    ) -> None:
        check_choice("crosscov: normalization", normalization, NORMALIZATIONS)
        if centered is not None:
            check_choice("crosscov: centered", centered, (True, False, "head"))
        check_number("crosscov: token_dropout", token_dropout, "[0, 1)")
        check_number("crosscov: entry_dropout", entry_dropout, "[0, 1)")
        rows, columns = _channels(in_channels, reduce_channels)
        if not is_integer(heads) or rows % heads or columns % heads:
            raise OptionError(f"crosscov: heads must be a divisor of {rows} and {columns} channels, got {heads!r}")
        unused = reduction if reduce_channels is None else None
        super().__init__(in_channels, pool_type="crosscov", reduce_channels=None, reduction=unused, **layout)
        self.heads = heads
        self.both_channels = (rows, columns)
        self.out_features = rows * columns // heads
        self.one_mean = centered == "head" or (centered is None and heads > 1)
        self.centered = self.needs_positions = centered is not False and not self.one_mean
        reduced = () if reduce_channels is None else self.both_channels
        if heads > 1 and reduced:
            reduction = reduction or "projection"
        self.reductions = nn.ModuleList(self.build_reduction(channels, reduction) for channels in reduced)
        self.token_dropout, self.entry_dropout = nn.Dropout(token_dropout), nn.Dropout(entry_dropout)
        self.normalization: SingularValuePower | None = None
        power: dict[str, Any] = dict(alpha=alpha, iterations=iterations, n=n, start=start, eps=eps)
        if normalization == "svpn":
            begin, end = (rows, columns) if heads == 1 else (columns // heads, rows // heads)
            self.normalization = SingularValuePower(begin, end, **power)
        else:
            for option, default in (SingularValuePower.__init__.__kwdefaults__ or {}).items():
                if power.get(option, default) != default:
                    raise OptionError(f"crosscov: normalization='none' has no option {option!r}, got {power[option]!r}")
        self.in_range = self.normalization is not None and self.normalization.in_range
        self.to(device=device, dtype=dtype)

    def features(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Both reductions (B, C₁ + C₂, M), or the input itself (B, C, M) without them."""
        maps = self.to_maps(x)
        reductions = self.reductions if len(self.reductions) else [self.reduction]
        return torch.cat([reduced_positions(reduction, maps, mask) for reduction in reductions], dim=1)

    def represent(self, X: Tensor, mask: Tensor | None = None) -> Tensor:
        Y, Z = X.split(self.both_channels, dim=1) if len(self.reductions) else (X, X)
        Y, Z = (
            part.to(working_dtype(X.dtype)).reshape(-1, self.heads, part.shape[1] // self.heads, part.shape[2])
            for part in (Y, Z)
        )
        with autocast_off(X.device.type):
            if self.training:
                kept = self.token_dropout(torch.ones_like(Y[:, :, :1]))  # the same positions of both
                Y, Z = Y * kept, Z * kept
            Yc, Zc = (self._center(part, mask) for part in (Y, Z))
            Yc = Yc / X.shape[-1]
            if self.normalization is None:
                Q = product(Yc, transpose(Zc))
            elif self.heads == 1:
                Q = self.normalization.of_product(Yc, Zc)
            else:  # SoT's power iteration begins on the right
                Q = transpose(self.normalization.of_product(Zc, Yc))
            return self.in_precision(self.entry_dropout(Q).flatten(1), X)

    def _center(self, Y: Tensor, mask: Tensor | None) -> Tensor:
        """Heads (B, h, C/h, M), such that the products of their positions over M are the cross-covariances."""
        if not self.one_mean:
            return counted(Y.flatten(1, 2), mask, self.centered).view_as(Y)
        # All entries of a head are the positions of one channel.
        if mask is not None:
            mask = mask[:, None, None].expand_as(Y).flatten(0, 1).flatten(1)
        return counted(Y.flatten(0, 1).flatten(1).unsqueeze(1), mask, True).view_as(Y)


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
    About(
        "cross-covariance of two projections in one or several heads, normalised as in `svpn`",
        "exact for these steps",
        "So-ViT, 2021",
    ),
)
