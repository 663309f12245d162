"""Two networks and the outer product of their maps: bilinear models with two streams.

Source: Lin, RoyChowdhury & Maji, "Bilinear CNN Models for Fine-grained Visual Recognition", ICCV 2015.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..checks import check_classes, check_integer, check_number
from ..errors import OptionError, ShapeError
from ..pooling import BilinearPool, Pool
from ..pooling.base import InputFormat

GLOBAL_POOLS = ("bilinear", "")
ReduceChannels = int | Sequence[int] | None


class Stream(NamedTuple):
    """A network without pooling and classifier.

    Attributes:
        network: images (B, in_chans, H, W) to maps or tokens.
        channels: of these.
        input_fmt: their layout, ``NCHW``, ``NHWC`` or ``NLC``.
        num_prefix_tokens: class and register tokens in front, ``NLC`` only.
    """

    network: nn.Module
    channels: int
    input_fmt: InputFormat = "NCHW"
    num_prefix_tokens: int = 0


class SideBySide(nn.Module):
    """The maps of the streams on one grid, concatenated along the channels: (B, C₁ + C₂, H, W).

    The finer grid is averaged down to the coarser (``adaptive_avg_pool2d``), height and width separately. Tokens have
    no grid to resize: the other stream must have as many positions, which are taken row by row.

    Raises:
        ShapeError: from ``forward``, for tokens and another number of positions.
    """

    def __init__(self, streams: Sequence[Stream]) -> None:
        super().__init__()
        self.layouts = nn.ModuleList(
            Pool(s.channels, pool_type="bilinear", input_fmt=s.input_fmt, num_prefix_tokens=s.num_prefix_tokens)
            for s in streams
        )

    def forward(self, *outputs: Tensor) -> Tensor:
        maps = [layout.to_maps(x) for layout, x in zip(self.layouts, outputs, strict=True)]  # type: ignore[operator]
        if len({x.shape[2:] for x in maps}) > 1:
            maps = self._resized(maps)
        return torch.cat(maps, dim=1)

    def _resized(self, maps: list[Tensor]) -> list[Tensor]:
        if any(layout.input_fmt == "NLC" for layout in self.layouts):
            counts = [x[0, 0].numel() for x in maps]
            if len(set(counts)) > 1:
                raise ShapeError(
                    f"two streams with tokens need as many positions each, got {counts[0]} and {counts[1]}"
                )
            return [x.flatten(2).unsqueeze(-1) for x in maps]
        grid = (min(x.shape[2] for x in maps), min(x.shape[3] for x in maps))
        return [x if x.shape[2:] == grid else F.adaptive_avg_pool2d(x, grid) for x in maps]


class TwoStreamPool(nn.Module):
    """Maps (B, C₁ + C₂, H, W) to their bilinear vectors (B, R₁ R₂), see :class:`BilinearPool`.

    Args:
        channels: (C₁, C₂); with (C,) the only map stands for both.
        reduce_channels: (R₁, R₂), or one number for both, behind a 1x1 convolution, batch norm and ReLU; ``None``
            takes all channels, as published.
        eps: of the signed root.

    Raises:
        OptionError: for an option out of its range.
    """

    pool_type = "bilinear"

    def __init__(
        self,
        channels: Sequence[int],
        *,
        reduce_channels: ReduceChannels = None,
        eps: float = 1e-8,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        widths = reduce_channels if isinstance(reduce_channels, Sequence) else [reduce_channels] * len(channels)
        if len(widths) != len(channels):
            raise OptionError(f"reduce_channels must be one number or {len(channels)}, got {reduce_channels!r}")
        self.channels = list(channels)
        self.inputs = nn.ModuleList(
            Pool(count, pool_type="bilinear", reduce_channels=width, device=device, dtype=dtype)
            for count, width in zip(channels, widths, strict=True)
        )
        self.bilinear = BilinearPool(*(pool.channels for pool in self.inputs), eps=eps)  # type: ignore[arg-type]
        self.out_features = self.bilinear.out_features

    def forward(self, x: Tensor) -> Tensor:
        parts = x.split(self.channels, dim=1)
        features = [pool.features(part) for pool, part in zip(self.inputs, parts, strict=True)]  # type: ignore[operator]
        return self.bilinear.represent(*features)


class Unpooled(nn.Identity):
    """Stands for no pool; timm reads its empty name."""

    pool_type = ""


class TwoStreamNet(nn.Module):
    """Two networks, the bilinear pool of their maps, dropout and a linear classifier; it behaves like a timm model.

    ``forward_features`` gives the maps of both streams in one tensor, (B, C₁ + C₂, H, W), see :class:`SideBySide`.

    Args:
        first: the first stream.
        second: the second; by default the first stands for both and shares all weights, which is the pool ``bcnn`` of
            one network, with one forward pass.
        num_classes: outputs; 0 returns the pooled vector.
        drop_rate: dropout before the classifier.
        pool_options: of :class:`TwoStreamPool`: ``reduce_channels`` and ``eps``.

    Attributes:
        num_features: channels of the maps, C₁ + C₂.
        head_hidden_size: length of the pooled vector.

    Raises:
        OptionError: for an argument out of its range.
    """

    def __init__(
        self,
        first: Stream,
        second: Stream | None = None,
        *,
        num_classes: int = 1000,
        drop_rate: float = 0.0,
        pool_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_number("drop_rate", drop_rate, "[0, 1)")
        streams = [first] if second is None else [first, second]
        self.stream_a = first.network
        self.stream_b = None if second is None else second.network
        self.side_by_side = SideBySide(streams)
        self.channels = tuple(stream.channels for stream in streams)
        self.num_features = sum(self.channels)
        self.pool_options = dict(pool_options or {})
        self.dropout = nn.Dropout(drop_rate)
        self._build_pool("bilinear")
        self.reset_classifier(num_classes)

    @property
    def streams(self) -> list[nn.Module]:
        """The networks: one if they are shared."""
        return [stream for stream in (self.stream_a, self.stream_b) if stream is not None]

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) to the maps of both streams, (B, C₁ + C₂, H', W')."""
        return self.side_by_side(*(stream(x) for stream in self.streams))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The maps of both streams to the logits (B, num_classes), or to what enters the classifier."""
        x = self.global_pool(x)
        if not self.global_pool.pool_type:
            return x
        x = self.dropout(x)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def get_classifier(self, name_only: bool = False) -> nn.Module | str:
        """The classifier, or its name."""
        return "fc" if name_only else self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """New classifier on the device and in the dtype of the weights; the pool stays unless another one is named.

        Args:
            num_classes: outputs; 0 returns the pooled vector.
            global_pool: ``bilinear``, or the empty string for the maps, which needs ``num_classes=0``; ``None`` keeps
                what is there, and puts the pool back where there is none and classes are asked for.

        Raises:
            OptionError: for anything else.
        """
        check_integer("num_classes", num_classes, 0)
        pool_type = self.global_pool.pool_type or "bilinear" * bool(num_classes) if global_pool is None else global_pool
        if pool_type not in GLOBAL_POOLS:
            raise OptionError(f"global_pool must be 'bilinear' or '', got {pool_type!r}")
        check_classes(num_classes, pool_type)
        if pool_type != self.global_pool.pool_type:
            self._build_pool(pool_type)
        self.num_classes = num_classes
        self.fc: nn.Module = (
            nn.Linear(self.head_hidden_size, num_classes, **self._factory()) if num_classes else nn.Identity()
        )
        self.train(self.training)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Switch gradient checkpointing of the streams on or off."""
        for stream in self.streams:
            stream.set_grad_checkpointing(enable)  # type: ignore[operator]

    def _build_pool(self, pool_type: str) -> None:
        self.global_pool: TwoStreamPool | Unpooled = Unpooled()
        self.head_hidden_size = self.num_features
        if pool_type:
            self.global_pool = TwoStreamPool(self.channels, **self.pool_options, **self._factory())
            self.head_hidden_size = self.global_pool.out_features

    def _factory(self) -> dict[str, Any]:
        reference = next(self.parameters(), torch.empty(0))
        return {"device": reference.device, "dtype": reference.dtype}
