"""A linear classifier that takes its width from the neck in front of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmpretrain.models.heads import LinearClsHead
from mmpretrain.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from ..checks import check_integer
from ..errors import OptionError, ShapeError
from .covariance_pooling import CovariancePooling


@MODELS.register_module()
class SecondOrderClsHead(LinearClsHead):
    """``LinearClsHead`` for the vectors of ``CovariancePooling``; those of several stages are concatenated.

    Without ``in_channels`` the classifier is built when the head becomes a part of a model with a neck, and is as wide
    as the neck's vectors; a head without a model takes the width of its first input, as :class:`torch.nn.LazyLinear`.

    Args:
        num_classes: number of classes.
        in_channels: length of the vectors; the neck's ``out_channels`` by default.
        kwargs: ``loss``, ``topk``, ``cal_acc``, ``init_cfg`` of ``LinearClsHead``.

    Raises:
        OptionError: when built with a number that is not positive; in a model whose neck has no ``out_channels``.
        ShapeError: in a model whose neck is a ``CovariancePooling`` of another width; in ``forward``, for features
            that are not (B, in_channels).
    """

    def __init__(self, num_classes: int, in_channels: int | None = None, **kwargs: Any) -> None:
        check_integer("SecondOrderClsHead: num_classes", num_classes)
        if in_channels is not None:
            check_integer("SecondOrderClsHead: in_channels", in_channels)
        super().__init__(num_classes=num_classes, in_channels=in_channels or 1, **kwargs)
        self.in_channels = in_channels
        if in_channels is None:
            self.fc: nn.Linear = nn.LazyLinear(num_classes)

    def fit(self, neck: nn.Module | None) -> None:
        """Take the width of a neck, or check that it is the head's.

        Raises:
            OptionError, ShapeError: as in the description of the class.
        """
        width = getattr(neck, "out_channels", None)
        if self.in_channels is None and isinstance(self.fc, nn.LazyLinear):
            if not isinstance(width, int):
                kind = "no neck" if neck is None else f"the neck {type(neck).__name__}, which has no out_channels"
                raise OptionError(f"SecondOrderClsHead: in_channels is needed, the model has {kind}")
            self.in_channels = width
            self.fc = nn.Linear(width, self.num_classes)
        elif isinstance(neck, CovariancePooling):
            self._check_width(neck.out_channels)

    def pre_logits(self, feats: Tensor | Sequence[Tensor]) -> Tensor:
        """The vectors (B, in_channels) that the classifier takes."""
        stages = (feats,) if isinstance(feats, Tensor) else tuple(feats)
        if any(stage.ndim != 2 for stage in stages):
            shapes = ", ".join(str(tuple(stage.shape)) for stage in stages)
            raise ShapeError(f"SecondOrderClsHead: expected vectors (B, D) from a neck, got {shapes}")
        vectors = torch.cat(stages, dim=1)
        self._check_width(vectors.shape[1])
        # Pools give float32 where float16 may not hold their vectors.
        return vectors.half() if self.fc.weight.dtype == torch.float16 else vectors

    def _check_width(self, width: int) -> None:
        if self.in_channels not in (None, width):
            raise ShapeError(
                f"SecondOrderClsHead: the neck gives {width} numbers per image, in_channels is {self.in_channels}; "
                f"leave it out or set it to {width}"
            )


def _fit_to_neck(model: nn.Module, name: str, head: nn.Module | None) -> None:
    """The model is the first to see both: MMPretrain builds heads without showing them the neck."""
    if isinstance(head, SecondOrderClsHead):
        neck = getattr(model, "neck", model)  # a container without necks is no model yet
        if neck is None or (isinstance(neck, nn.Module) and neck is not model):
            head.fit(neck)


register_module_module_registration_hook(_fit_to_neck)
