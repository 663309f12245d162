"""The head that takes the place of a timm model's pooling and classifier."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import OptionError
from ..pooling import create_pool, list_pools, pool_options


def list_heads() -> list[str]:
    """Names of the heads: one for every pool."""
    return list_pools()


class SecondOrderHead(nn.Module):
    """Pool, dropout, linear classifier, with the interface timm expects of a classifier head.

    Args:
        in_features: channels of the backbone's last feature map.
        num_classes: outputs of the classifier; 0 leaves it out.
        pool_type: name of the pool; the empty string leaves pooling out, which needs ``num_classes=0``.
        drop_rate: dropout before the classifier.
        pool_options: options for :func:`covpool_plugins.create_pool`.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        pool_type: str = "svdpade",
        drop_rate: float = 0.0,
        pool_options: dict[str, Any] | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_classes(num_classes, pool_type)
        self.in_features = in_features
        self.pool_options = dict(pool_options or {})
        self.dropout = nn.Dropout(drop_rate)
        self._build_pool(pool_type, device, dtype)
        self._build_classifier(num_classes, device, dtype)

    def reset(
        self,
        num_classes: int,
        pool_type: str | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """New classifier; the pool and what it has learned stay unless another ``pool_type`` is named.

        A new pool takes over those of the old one's options that it has too (``reduce_channels``, ...). Device and
        dtype are those of the head's parameters unless given.
        """
        reference = next(self.parameters(), torch.empty(0))
        device, dtype = device or reference.device, dtype or reference.dtype
        _check_classes(num_classes, self.pool_type if pool_type is None else pool_type)
        if pool_type is not None and pool_type != self.pool_type:
            if pool_type:
                shared = pool_options(pool_type, of_parts=False)
                self.pool_options = {k: v for k, v in self.pool_options.items() if k in shared}
            self._build_pool(pool_type, device, dtype)
        self._build_classifier(num_classes, device, dtype)
        self.train(self.training)

    def _build_pool(self, pool_type: str, device: torch.device | None, dtype: torch.dtype | None) -> None:
        self.pool_type = pool_type
        self.num_features = self.in_features
        self.global_pool: nn.Module = nn.Identity()
        if pool_type:
            pool = create_pool(pool_type, self.in_features, device=device, dtype=dtype, **self.pool_options)
            self.global_pool = pool
            self.num_features = pool.out_features

    def _build_classifier(self, num_classes: int, device: torch.device | None, dtype: torch.dtype | None) -> None:
        self.fc: nn.Module = nn.Identity()
        if num_classes:
            self.fc = nn.Linear(self.num_features, num_classes, device=device, dtype=dtype)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.global_pool(x)
        if not self.pool_type:
            return x
        x = self.dropout(x)
        return x if pre_logits else self.fc(x)


def _check_classes(num_classes: int, pool_type: str) -> None:
    if num_classes < 0:
        raise OptionError(f"num_classes must not be negative, got {num_classes}")
    if num_classes and not pool_type:
        raise OptionError(f"global_pool='' leaves nothing to classify: use num_classes=0, got {num_classes}")
