"""Linear classifiers that take their width from the neck in front of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmpretrain.models.heads import LinearClsHead, MultiLabelLinearClsHead
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ..checks import check_integer
from ..errors import OptionError, ShapeError
from .covariance_pooling import latest_width


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
                print_log(f"{name}: {given}; set in_channels=None, or in_channels={width}", "current", logging.WARNING)
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
            raise ShapeError(
                f"{name}: the neck gives {width} numbers per image, not {self.in_channels}; set in_channels={width}"
            )
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
