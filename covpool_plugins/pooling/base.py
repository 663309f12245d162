"""What all pools share: input layouts, the two halves of a forward pass, the table of names."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..errors import ExportError, OptionError, ShapeError
from ..tables import Table

InputFormat = Literal["NCHW", "NHWC", "NLC"]
INPUT_FORMATS: tuple[str, ...] = get_args(InputFormat)


class Pool(nn.Module):
    """Feature maps or tokens to one vector per image.

    ``forward(x)`` is ``represent(features(x))``: ``features`` brings any layout to (B, C, M), M positions row by
    row, and reduces the channels; ``represent`` makes the vector. Explanations work on the features in between.

    Args:
        pool_type: the name in the table of pools.
        in_channels: channels of the input.
        out_features: length of the vector.
        input_fmt: ``NCHW`` (B, C, H, W), ``NHWC`` (B, H, W, C) or ``NLC`` (B, N, C).
        num_prefix_tokens: how many leading tokens (class token, registers) to leave out; ``NLC`` only.
    """

    def __init__(
        self,
        pool_type: str,
        in_channels: int,
        out_features: int,
        input_fmt: InputFormat = "NCHW",
        num_prefix_tokens: int = 0,
    ) -> None:
        super().__init__()
        if input_fmt not in INPUT_FORMATS:
            raise OptionError(f"input_fmt must be one of {', '.join(INPUT_FORMATS)}, got {input_fmt!r}")
        if num_prefix_tokens < 0 or (num_prefix_tokens and input_fmt != "NLC"):
            raise OptionError(f"num_prefix_tokens={num_prefix_tokens} needs input_fmt='NLC', got {input_fmt!r}")
        self.pool_type = pool_type
        self.in_channels = in_channels
        self.out_features = out_features
        self.input_fmt = input_fmt
        self.num_prefix_tokens = num_prefix_tokens

    def features(self, x: Tensor) -> Tensor:
        """Features (B, C, M) that ``represent`` takes, for an input in the layout of this pool."""
        return self.to_maps(x).flatten(2)

    def represent(self, X: Tensor) -> Tensor:
        """Vectors (B, out_features) for features (B, C, M)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.represent(self.features(x))

    def to_maps(self, x: Tensor) -> Tensor:
        """View of the input as maps (B, C, H, W); N tokens become N x 1 positions."""
        channels_at = -1 if self.input_fmt in ("NHWC", "NLC") else 1
        if x.ndim != len(self.input_fmt) or x.shape[channels_at] != self.in_channels:
            raise ShapeError(
                f"{self.pool_type} pool: expected {self.input_fmt} with {self.in_channels} channels, "
                f"got shape {tuple(x.shape)}"
            )
        if self.input_fmt == "NLC":
            maps = x[:, self.num_prefix_tokens :].mT.unsqueeze(-1)
        else:
            maps = x.permute(0, 3, 1, 2) if self.input_fmt == "NHWC" else x
        if maps.shape[2] == 0 or maps.shape[3] == 0:
            raise ShapeError(f"{self.pool_type} pool: no positions to pool over, got shape {tuple(x.shape)}")
        return maps

    def __prepare_scriptable__(self) -> Pool:
        raise ExportError(
            f"torch.jit.script cannot compile the {self.pool_type} pool; use torch.compile, torch.export or "
            "torch.jit.trace"
        )

    def extra_repr(self) -> str:
        return f"{self.pool_type!r}, {self.in_channels} -> {self.out_features}, input_fmt={self.input_fmt!r}"


PoolFactory = Callable[..., Pool]
POOLS: Table[PoolFactory] = Table("pool")


def list_pools() -> list[str]:
    """Names that :func:`create_pool` takes."""
    return list(POOLS)


def pool_options(name: str) -> list[str]:
    """Names of the options that a pool itself takes, without those of its matrix method."""
    parameters = inspect.signature(POOLS[name]).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in ("method", "device", "dtype")]


def create_pool(
    name: str,
    in_channels: int,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> Pool:
    """Build a pool by name.

    Args:
        name: one of :func:`list_pools`.
        in_channels: channels of the input.
        options: options of the pool (``input_fmt``, ``reduce_channels``, ...) and of its matrix method
            (``iterations``, ...).

    Raises:
        UnknownNameError: for a name that is not in the table.
        OptionError: for an option that the pool does not take.
    """
    factory = POOLS[name]
    try:
        inspect.signature(factory).bind(in_channels, device=device, dtype=dtype, **options)
    except TypeError as error:
        raise OptionError(f"pool {name!r}: {error}") from None
    return factory(in_channels, device=device, dtype=dtype, **options)
