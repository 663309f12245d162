"""Matrix-normalised covariance pooling: the square root of the covariance, by any method of ``linalg``."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import OptionError
from ..linalg import (
    Compute,
    Method,
    Vectorize,
    check_root_options,
    covariance_sqrt,
    list_methods,
    packed_size,
    resolve_method,
)
from .base import POOLS, InputFormat, Pool
from .reduction import REDUCTIONS

DEFAULT_CHANNELS = 256


class CovariancePool(Pool):
    """Reduction, covariance, matrix square root, upper triangle.

    Args:
        in_channels: channels of the input.
        method: name or object of the square-root method.
        reduce_channels: channels after the reduction; ``None`` leaves it out. The default is the papers' 256, or
            ``in_channels`` where that is less.
        reduction: ``conv-bn-relu`` (default for maps) or ``linear-ln`` (default for tokens).
        centered: subtract the mean over the positions.
        compute: ``mixed``, ``float32`` or ``float64``, see :func:`covpool_plugins.linalg.covariance_sqrt`.
        vectorize: ``triu``, the C(C+1)/2 upper entries in the order of ``torch.triu_indices``, or ``full``.
        input_fmt: ``NCHW``, ``NHWC`` or ``NLC``.
        num_prefix_tokens: leading tokens to leave out, ``NLC`` only.
        method_options: fields of the method, for example ``iterations=3``.
    """

    def __init__(
        self,
        in_channels: int,
        method: str | Method = "svdpade",
        *,
        reduce_channels: int | str | None = "default",
        reduction: str | None = None,
        centered: bool = True,
        compute: Compute = "mixed",
        vectorize: Vectorize = "triu",
        input_fmt: InputFormat = "NCHW",
        num_prefix_tokens: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **method_options: Any,
    ) -> None:
        if reduce_channels == "default":
            reduce_channels = min(DEFAULT_CHANNELS, in_channels)
        if reduce_channels is not None and (not isinstance(reduce_channels, int) or reduce_channels < 1):
            raise OptionError(f"reduce_channels must be a positive integer or None, got {reduce_channels!r}")
        check_root_options(compute, vectorize)
        channels = reduce_channels or in_channels
        name = method if isinstance(method, str) else type(method).__name__
        width = packed_size(channels) if vectorize == "triu" else channels**2
        super().__init__(name, in_channels, width, input_fmt, num_prefix_tokens)
        self.method = resolve_method(method, **method_options)
        self.centered = centered
        self.compute = compute
        self.vectorize = vectorize
        self.reduction: nn.Module = nn.Identity()
        if reduce_channels is not None:
            kind = REDUCTIONS[reduction or ("linear-ln" if input_fmt == "NLC" else "conv-bn-relu")]
            self.reduction = kind(in_channels, channels, device=device, dtype=dtype)

    def features(self, x: Tensor) -> Tensor:
        return self.reduction(self.to_maps(x)).flatten(2)

    def represent(self, X: Tensor) -> Tensor:
        return covariance_sqrt(
            X, self.method, centered=self.centered, compute=self.compute, vectorize=self.vectorize
        ).flatten(1)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, method={self.method}"


for _name in list_methods("sqrtm"):
    POOLS.add(_name, partial(CovariancePool, method=_name))
