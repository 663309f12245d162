"""A linear classifier that knows how long second-order vectors are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, get_args

import torch
from mmpretrain.models.heads import LinearClsHead
from mmpretrain.registry import MODELS
from torch import Tensor

from ..checks import check_integer
from ..errors import OptionError, ShapeError
from ..linalg import Vectorize
from ..pooling import CovariancePool
from .channels import stage_channels


@MODELS.register_module()
class SecondOrderClsHead(LinearClsHead):
    """``LinearClsHead`` for the vectors of ``CovariancePooling``; those of several stages are concatenated.

    The width of the classifier is given directly, or follows from the channels that the covariance is taken over:
    ``feature_channels=256`` stands for ``in_channels=32896``.

    Args:
        num_classes: number of classes.
        in_channels: numbers per image, as in ``LinearClsHead``.
        feature_channels: instead of ``in_channels``, the channels of the covariance (the neck's ``reduce_channels``,
            256 by default); a list when the neck pools several stages.
        vectorize: as in the neck, ``triu`` for C(C+1)/2 or ``full`` for C² numbers; goes with ``feature_channels``.
        kwargs: ``loss``, ``topk``, ``cal_acc``, ``init_cfg`` of ``LinearClsHead``.

    Raises:
        OptionError: when built with both or neither of ``in_channels`` and ``feature_channels``, or with what is not
            positive.
        ShapeError: in ``forward``, for features that are not (B, in_channels).
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int | None = None,
        *,
        feature_channels: int | Sequence[int] | None = None,
        vectorize: Vectorize = "triu",
        **kwargs: Any,
    ) -> None:
        if (in_channels is None) == (feature_channels is None):
            raise OptionError(
                "SecondOrderClsHead takes one of in_channels and feature_channels, "
                f"got in_channels={in_channels!r} and feature_channels={feature_channels!r}"
            )
        if feature_channels is not None:
            in_channels = sum(_width(c, vectorize) for c in stage_channels("feature_channels", feature_channels))
        else:
            check_integer("in_channels", in_channels)
        super().__init__(num_classes=num_classes, in_channels=in_channels, **kwargs)
        self.feature_channels = feature_channels
        self.vectorize = vectorize

    def pre_logits(self, feats: Tensor | Sequence[Tensor]) -> Tensor:
        """The vectors (B, in_channels) that the classifier takes."""
        stages = (feats,) if isinstance(feats, Tensor) else tuple(feats)
        if any(stage.ndim != 2 for stage in stages):
            shapes = ", ".join(str(tuple(stage.shape)) for stage in stages)
            raise ShapeError(f"SecondOrderClsHead: expected vectors (B, D) from a neck, got {shapes}")
        vectors = torch.cat(stages, dim=1)
        width = vectors.shape[1]
        if width != self.in_channels:
            raise ShapeError(
                f"SecondOrderClsHead: the neck gives {width} numbers per image, the classifier takes "
                f"{self.in_channels}; set the head's {self._fitting(width)}"
            )
        return vectors

    def _fitting(self, width: int) -> str:
        """The option that makes the classifier ``width`` wide, in the words that it was built with."""
        if self.feature_channels is None:
            return f"in_channels={width}"
        if isinstance(self.feature_channels, int):
            for vectorize in sorted(get_args(Vectorize), key=lambda name: name != self.vectorize):
                channels = math.isqrt(2 * width if vectorize == "triu" else width)  # C² < C (C+1) < (C+1)²
                if channels > 0 and _width(channels, vectorize) == width:
                    other = "" if vectorize == self.vectorize else f", vectorize={vectorize!r}"
                    return f"feature_channels={channels}{other}"
        return f"in_channels={width} instead of feature_channels"


def _width(channels: int, vectorize: Vectorize) -> int:
    """Numbers in the vector of a covariance over ``channels``."""
    return CovariancePool(channels, reduce_channels=None, vectorize=vectorize).out_features
