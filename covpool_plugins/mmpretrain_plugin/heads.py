"""Linear classifiers that take their width from the neck in front of them, and the two classifiers of So-ViT."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmpretrain.models.heads import ClsHead, LinearClsHead, MultiLabelLinearClsHead
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ..checks import check_integer
from ..errors import OptionError, ShapeError
from ..pooling import create_pool
from .active_method import adopt_method
from .covariance_pooling import check_method, latest_width

GIVE = "set in_channels=None, or in_channels="


class WidthOfNeck(BaseModule):
    """Goes before a linear head of MMPretrain: the vectors of several stages are concatenated, their width is inferred.

    Args:
        num_classes: number of classes or labels.
        in_channels: length of the vectors. By default that of the ``CovariancePooling`` that was built last, which in
            a model is its neck: also one of a list, and for each head of a ``MultiTaskHead``. A head that is built
            before any neck takes its width in ``init_weights``, or from its first input.
        kwargs: of the head of MMPretrain.

    Raises:
        OptionError: when built with a number that is not positive; in ``init_weights``, if there is no neck yet.
        ShapeError: in ``forward``, for features that are not (B, in_channels).
    """

    def __init__(self, num_classes: int, in_channels: int | None = None, **kwargs: Any) -> None:
        name, width = type(self).__name__, latest_width()
        check_integer(f"{name}: num_classes", num_classes)
        if in_channels is None:
            in_channels = width
        else:
            check_integer(f"{name}: in_channels", in_channels)
            if width not in (None, in_channels):  # no error: another neck may come between
                given = f"in_channels is {in_channels}, the neck that was built last gives {width} numbers per image"
                print_log(f"{name}: {given}; {GIVE}{width}", "current", logging.WARNING)
        super().__init__(num_classes=num_classes, in_channels=in_channels or 1, **kwargs)
        self.in_channels = in_channels
        if in_channels is None:
            self.fc: nn.Linear = nn.LazyLinear(num_classes)

    def init_weights(self) -> None:
        if self.in_channels is None:
            width = latest_width()
            if width is None:
                raise OptionError(
                    f"{type(self).__name__}: give in_channels, the out_channels of the neck (print(neck) shows it)"
                )
            self._take(torch.zeros(1, width, device=self.fc.weight.device))
        super().init_weights()

    def pre_logits(self, feats: Tensor | Sequence[Tensor]) -> Tensor:
        """The vectors (B, in_channels) that the classifier takes."""
        name = type(self).__name__
        stages = (feats,) if isinstance(feats, Tensor) else tuple(feats)
        if any(stage.ndim != 2 for stage in stages):
            shapes = ", ".join(str(tuple(stage.shape)) for stage in stages)
            raise ShapeError(f"{name}: expected vectors (B, D) from a neck, got {shapes}")
        vectors = torch.cat(stages, dim=1)
        if self.fc.weight.dtype == torch.float16:
            vectors = vectors.half()  # pools give float32 where float16 may not hold their vectors
        width = vectors.shape[1]
        if self.in_channels is None:
            self._take(vectors)
        elif self.in_channels != width:
            raise ShapeError(f"{name}: the neck gives {width} numbers per image, not {self.in_channels}; {GIVE}{width}")
        return vectors

    @torch.no_grad()
    def _take(self, vectors: Tensor) -> None:
        """Make the lazy classifier, in place: an optimizer may hold its weights."""
        self.in_channels = vectors.shape[1]
        self.fc(vectors)


@MODELS.register_module()
class SecondOrderClsHead(WidthOfNeck, LinearClsHead):
    """MMPretrain's ``LinearClsHead`` for the vectors of ``CovariancePooling``, see :class:`WidthOfNeck`."""


@MODELS.register_module()
class SecondOrderMultiLabelHead(WidthOfNeck, MultiLabelLinearClsHead):
    """MMPretrain's ``MultiLabelLinearClsHead`` for the vectors of ``CovariancePooling``, see :class:`WidthOfNeck`."""


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
        loss = loss or dict(type="CrossEntropyLoss", loss_weight=1.0)
        super().__init__(loss=loss, topk=topk, cal_acc=cal_acc, init_cfg=init_cfg)
        self.num_classes, self.in_channels = num_classes, in_channels
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
        return torch.add(self.fc(vector), self.cls_fc(token))
