"""The two classifiers of So-ViT as a head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmpretrain.models.heads import ClsHead
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ..checks import check_integer
from ..errors import ShapeError
from ..pooling import create_pool
from .active_method import adopt_method
from .covariance_pooling import check_method


@MODELS.register_module()
class SoViTHead(ClsHead):
    """Logits of the second-order pooled visual tokens plus those of the class token.

    Takes the raw tokens (B, 1 + N, in_channels), class token first, of ``so_vit_7`` in a ``TIMMBackbone`` or of another
    transformer. Keys are those of the original's two classifiers.

    Args:
        num_classes: number of classes.
        in_channels: channels of the tokens.
        pool: name of the pool, one of :func:`covpool_plugins.list_pools`.
        reduce_channels: channels after the reduction, a 1x1 convolution with batch norm; ``None`` to keep all. Of two
            numbers ``crosscov`` takes both, any other pool the first.
        drop_rate: dropout of the pooled vector.
        loss, topk, cal_acc, init_cfg: of ``ClsHead``.
        options: of the pool and of its matrix method, for example ``iterations=3``.

    Raises:
        UnknownNameError, OptionError: when built with a pool or an option that does not exist.
        ShapeError: in ``forward``, for anything but tokens of ``in_channels`` channels.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        pool: str = "mpa",
        reduce_channels: int | Sequence[int] | None = 48,
        drop_rate: float = 0.0,
        loss: dict[str, Any] | nn.Module | None = None,
        topk: int | tuple[int, ...] = (1,),
        cal_acc: bool = False,
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
        **options: Any,
    ) -> None:
        check_integer("SoViTHead: num_classes", num_classes)
        check_integer("SoViTHead: in_channels", in_channels)
        loss = dict(type="CrossEntropyLoss", loss_weight=1.0) if loss is None else loss
        super().__init__(loss=loss, topk=topk, cal_acc=cal_acc, init_cfg=init_cfg)
        self.num_classes = num_classes
        self.in_channels = in_channels
        check_method(pool, options)
        if isinstance(reduce_channels, Sequence) and pool != "crosscov":
            reduce_channels = reduce_channels[0]
        if reduce_channels is not None:
            options = dict(reduce_channels=reduce_channels, reduction="conv-bn-relu", **options)
        self.pool = create_pool(pool, in_channels, input_fmt="NLC", num_prefix_tokens=1, **options)
        self.dropout = nn.Dropout(drop_rate)
        self.fc = nn.Linear(self.pool.out_features, num_classes)
        self.cls_fc = nn.Linear(in_channels, num_classes)
        self.register_load_state_dict_pre_hook(adopt_method)  # of a run with SwitchMethodHook

    def pre_logits(self, feats: Tensor | Sequence[Tensor]) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """The pooled vector and the class token, (B, D) each, that the two classifiers take."""
        tokens = feats if isinstance(feats, Tensor) else feats[-1]
        if tokens.ndim != 3 or tokens.shape[2] != self.in_channels:
            raise ShapeError(
                f"SoViTHead: expected tokens (B, N, {self.in_channels}), got {tuple(tokens.shape)}; "
                "a backbone gives them with out_type='raw'"
            )
        return self.dropout(self.pool(tokens)), tokens[:, 0]

    def forward(self, feats: Tensor | Sequence[Tensor]) -> Tensor:
        """Logits (B, num_classes) for the tokens of a backbone, or for the last of a tuple of them."""
        vector, token = self.pre_logits(feats)
        logits: Tensor = torch.add(self.fc(vector), self.cls_fc(token))
        return logits
