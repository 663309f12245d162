"""The head of So-ViT: second-order pooled visual tokens and the class token, each with its own classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import check_classes
from ..pooling import POOLS, CrossCovariancePool, create_pool, pool_options

REDUCTION = "conv-bn-relu"


def create_token_pool(
    name: str,
    in_channels: int,
    reduce_channels: int | Sequence[int] | None = None,
    options: dict[str, Any] | None = None,
    **factory: Any,
) -> nn.Module:
    """The pool of tokens (B, 1 + N, in_channels), class token first, behind the reduction of So-ViT.

    Args:
        name: one of :func:`covpool_plugins.list_pools`.
        in_channels: channels of the tokens.
        reduce_channels: after the reduction. Of two numbers the cross covariance takes both, any other pool the first;
            ``None`` leaves the reduction out. Pools without a reduction ignore it.
        options: of the pool and of its matrix method; they override the arguments above.

    Raises:
        UnknownNameError: for a pool that does not exist.
        OptionError: for an option that it does not take.
    """
    if isinstance(reduce_channels, Sequence) and POOLS[name] is not CrossCovariancePool:
        reduce_channels = reduce_channels[0]
    defaults: dict[str, Any] = {"reduce_channels": reduce_channels}
    if {**defaults, **(options or {})}["reduce_channels"] is not None:
        defaults["reduction"] = REDUCTION
    known = pool_options(name, of_parts=False)
    options = {option: value for option, value in defaults.items() if option in known} | (options or {})
    return create_pool(name, in_channels, input_fmt="NLC", num_prefix_tokens=1, **options, **factory)


class TokenHead(nn.Module):
    """Logits of the second-order pooled visual tokens plus those of the class token.

    Args:
        in_features: channels of the tokens.
        num_classes: outputs of both classifiers; 0 leaves them out.
        global_pool: name of the pool; the empty string leaves pooling out, which needs ``num_classes=0``.
        reduce_channels, pool_options: see :func:`create_token_pool`.
        drop_rate: dropout of the pooled vector.

    Attributes:
        fc: classifier of the pooled vector.
        cls_fc: classifier of the class token.
        num_features: length of the pooled vector and of the class token together.

    Raises:
        UnknownNameError, OptionError: for an argument out of its range.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        global_pool: str = "mpa",
        reduce_channels: int | Sequence[int] | None = None,
        pool_options: dict[str, Any] | None = None,
        drop_rate: float = 0.0,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.reduce_channels = reduce_channels
        self.pool_options = dict(pool_options or {})
        self.dropout = nn.Dropout(drop_rate)
        check_classes(num_classes, global_pool)
        self._build_pool(global_pool, factory)
        self._build_classifiers(num_classes, factory)

    def reset(
        self,
        num_classes: int,
        global_pool: str | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """New classifiers; the pool and what it has learned stay unless ``global_pool`` names another one.

        Raises:
            UnknownNameError, OptionError: for an argument out of its range.
        """
        name = self.global_pool if global_pool is None else global_pool
        factory: dict[str, Any] = dict(device=device, dtype=dtype)
        check_classes(num_classes, name)
        if name != self.global_pool:
            self._build_pool(name, factory)
        self._build_classifiers(num_classes, factory)
        self.train(self.training)

    def _build_pool(self, name: str, factory: dict[str, Any]) -> None:
        self.pool: nn.Module = nn.Identity()
        width = 0
        if name:
            self.pool = create_token_pool(name, self.in_features, self.reduce_channels, self.pool_options, **factory)
            width = int(self.pool.out_features)  # type: ignore[arg-type]
        self.global_pool = name
        self.num_features = width + self.in_features

    def _build_classifiers(self, num_classes: int, factory: dict[str, Any]) -> None:
        self.num_classes = num_classes
        self.fc: nn.Module = nn.Identity()
        self.cls_fc: nn.Module = nn.Identity()
        if num_classes:
            self.fc = nn.Linear(self.num_features - self.in_features, num_classes, **factory)
            self.cls_fc = nn.Linear(self.in_features, num_classes, **factory)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        if not self.global_pool:
            return x
        vector, token = self.dropout(self.pool(x)), x[:, 0]
        if pre_logits or not self.num_classes:
            return torch.cat([vector, token], dim=1)
        return self.fc(vector) + self.cls_fc(token)
