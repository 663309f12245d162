"""Second-order pooling as a neck, between any backbone and a linear head."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from mmengine.analysis.complexity_analysis import _DEFAULT_SUPPORTED_FLOP_OPS as FLOP_COUNTERS
from mmengine.model import BaseModule
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ..checks import check_flag, is_integer
from ..errors import OptionError, ShapeError
from ..pooling import Pool, create_pool, pool_options
from .active_method import adopt_method

MAPS_OF_BACKBONES = (
    "a VisionTransformer gives tokens with out_type='raw', ConvNeXt maps with gap_before_final_norm=False, "
    "VGG maps with num_classes=-1"
)


@MODELS.register_module()
class CovariancePooling(BaseModule):
    """Feature maps or tokens of a backbone to one vector per image, by any pool of ``covpool_plugins.pooling``.

    Takes what the backbone returns: a tuple of stages gives a tuple of (B, D) vectors, a tensor gives a tensor. Of
    several stages only the last is pooled, unless ``in_channels`` lists the channels of each.

    Args:
        in_channels: channels of the last stage, or a list with the channels of every stage.
        pool: name of the pool, one of :func:`covpool_plugins.list_pools`.
        cls_token: append the class token, the first of the prefix tokens, to the pooled vector: the logits of a linear
            classifier are then the sum of those of the token and those of the second-order vector, as in So-ViT.
        init_cfg: MMEngine's initialisation config.
        options: options of the pool and of its matrix method, for example ``reduce_channels=128``,
            ``input_fmt='NLC'``, ``num_prefix_tokens=1``, ``iterations=3``. ``None`` for an option that the pool does
            not have is ignored, so that a config can undo an option of the config it inherits.

    Raises:
        UnknownNameError, OptionError: when built with a pool or an option that does not exist.
        ShapeError: in ``forward``, for features with other channels or another number of stages.

    Attributes:
        pool: the pool, or an ``nn.ModuleList`` with one per stage.
        out_channels: numbers in all output vectors together, the ``in_channels`` of the head; ``print(neck)`` shows it.
    """

    def __init__(
        self,
        in_channels: int | Sequence[int],
        pool: str = "svdpade",
        cls_token: bool = False,
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        stages = list(in_channels) if isinstance(in_channels, Sequence) else [in_channels]
        if not stages or not all(is_integer(channels) for channels in stages):
            raise OptionError(f"in_channels must be a positive integer or a list of them, got {in_channels!r}")
        check_flag("cls_token", cls_token)
        options = {name: value for name, value in options.items() if value is not None or name in pool_options(pool)}
        if "method" in options and "method" not in pool_options(pool):
            chosen = f"the pool is chosen by pool={options['method']!r}"
            raise OptionError(f"pool {pool!r} has no option 'method'; {chosen}")
        pools = [create_pool(pool, channels, **options) for channels in stages]
        if cls_token and not pools[0].num_prefix_tokens:
            raise OptionError("cls_token=True needs input_fmt='NLC' and num_prefix_tokens of at least 1")
        self.cls_token = cls_token
        self.pool: Pool | nn.ModuleList = pools[0] if isinstance(in_channels, int) else nn.ModuleList(pools)
        self.out_channels = sum(pool.out_features for pool in pools) + cls_token * sum(stages)
        self.register_load_state_dict_pre_hook(adopt_method)  # of a run with SwitchMethodHook
        _latest.set(weakref.ref(self))

    def forward(self, inputs: Tensor | Sequence[Tensor]) -> Tensor | tuple[Tensor, ...]:
        """Vectors (B, D) for a tensor, a tuple of them for a tuple of stages."""
        stages = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
        if isinstance(self.pool, Pool):
            stages, pools = stages[-1:], nn.ModuleList([self.pool])
        else:
            pools = self.pool
        if len(stages) != len(pools):
            raise ShapeError(f"in_channels is for {len(pools)} stages, the backbone returned {len(stages)}")
        outputs = tuple(self._vector(pool, stage) for pool, stage in zip(pools, stages, strict=True))
        return outputs[0] if isinstance(inputs, Tensor) else outputs

    def _vector(self, pool: nn.Module, features: Tensor) -> Tensor:
        if features.ndim == 2:
            shape = tuple(features.shape)
            raise ShapeError(f"CovariancePooling takes maps or tokens, the backbone gave {shape}; {MAPS_OF_BACKBONES}")
        # A trace keeps no gradients; without them the pools are plain operations, which MMPretrain's get_flops counts.
        with torch.set_grad_enabled(torch.is_grad_enabled() and not torch.jit.is_tracing()):
            vector = pool(features)
        return torch.cat([vector, features[:, 0].to(vector.dtype)], dim=1) if self.cls_token else vector

    def extra_repr(self) -> str:
        return f"out_channels={self.out_channels}"


# Of the neck that this thread has built last.
_latest: ContextVar[Callable[[], CovariancePooling | None]] = ContextVar("latest", default=lambda: None)


def latest_width() -> int | None:
    """``out_channels`` of the :class:`CovariancePooling` that was built last, if it still exists.

    MMPretrain's models build their neck right before their head, and do not show it to the head.
    """
    neck = _latest.get()()
    return None if neck is None else neck.out_channels


def count_eigh(inputs: list[Any], outputs: list[Any]) -> int:
    """Multiplications of ``eigh``, half of 9 n³ operations: Golub & Van Loan, "Matrix Computations", 2013, 8.3."""
    *batch, n, _ = inputs[0].type().sizes()
    return round(4.5 * n**3) * int(torch.tensor(batch).prod())


FLOP_COUNTERS.setdefault("aten::linalg_eigh", count_eigh)
