"""The head that takes the place of a timm model's pooling and classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import check_classes, check_integer
from ..errors import OptionError
from ..pooling import POOLS, create_pool, list_pools, pool_options
from ..pooling.base import InputFormat
from .clips import mean_over_frames

torch.fx.wrap("mean_over_frames")  # a leaf for any tracer: it looks at the shape
# What the heads of timm's families call their classifiers, for lines like ``model.head.l = nn.Linear(...)``.
NAMES_OF_CLASSIFIERS = ("linear", "l", "fc2", "proj")
PARTS = ("norm", "dropout", "global_pool", "hidden", "fc")


class Unpooled(nn.Identity):
    """Stands for no pool; timm reads its empty name."""

    pool_type = ""


def list_heads() -> list[str]:
    """Names of the heads: one for every pool.

    Examples:
        >>> "svdpade" in list_heads(), "gap" in list_heads()
        (True, True)
    """
    return list_pools()


def check_pool(name: str) -> None:
    """Raise unless there is such a pool.

    Raises:
        UnknownNameError: naming those that there are.
        OptionError: for timm's name of one that is called differently here.
    """
    if name == "avg":
        raise OptionError("global_pool='avg' is no pool of a second-order head; average pooling is called 'gap' here")
    POOLS[name]


class SecondOrderHead(nn.Module):
    """Norm, pool, dropout, linear classifier, with the interface timm expects of a classifier head.

    Args:
        in_features: channels of the backbone's last features.
        num_classes: outputs of the classifier; 0 leaves it out.
        pool_type: name of the pool; the empty string leaves pooling out, which needs ``num_classes=0``.
        drop_rate: dropout before the classifier.
        pool_options: options for :func:`covpool_plugins.create_pool`.
        input_fmt: ``NCHW``, ``NHWC`` or ``NLC``.
        num_prefix_tokens: class and register tokens in front, which are not pooled.
        fuse_class_token: append the class token to the pooled vector, so that the logits are the sum of those of the
            class token and those of the second-order vector, as in So-ViT.
        norm: what normalises the features before they are pooled.
        own_pool_type: the pool that a head without one gets with its next classifier; ``pool_type`` by default.
        hidden_features: widths of hidden layers between vector and classifier, each with ReLU and dropout, as
            fast-MPN-COV has them in AlexNet and VGG: ``(4096, 4096)``. They count as part of the pool: what
            ``pre_logits`` gives has passed them.
        frames: T, for features of the frames of clips, (B T, ...): a pool with this option gets it; what is not one
            vector for a clip then (all pools but ``temporal``) is averaged over the frames, as in temporal segment
            networks, in front of dropout and classifier. By default there are no clips.

    Raises:
        OptionError: for an option outside its range.

    Examples:
        >>> head = SecondOrderHead(64, 10, "isqrt", pool_options=dict(reduce_channels=16, iterations=3))
        >>> head(torch.randn(2, 64, 7, 7)).shape, head(torch.randn(2, 64, 7, 7), pre_logits=True).shape
        (torch.Size([2, 10]), torch.Size([2, 136]))
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        pool_type: str = "svdpade",
        drop_rate: float = 0.0,
        pool_options: dict[str, Any] | None = None,
        *,
        input_fmt: InputFormat = "NCHW",
        num_prefix_tokens: int = 0,
        fuse_class_token: bool = False,
        norm: nn.Module | None = None,
        own_pool_type: str | None = None,
        hidden_features: Sequence[int] = (),
        frames: int | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_classes(num_classes, pool_type)
        if frames is not None:
            check_integer("frames", frames)
        for width in hidden_features:
            check_integer("hidden_features", width)
        self.in_features = in_features
        self.pool_options = dict(pool_options or {})
        self.layout: dict[str, Any] = {"input_fmt": input_fmt, "num_prefix_tokens": num_prefix_tokens}
        self.fuse_token = fuse_class_token
        self.hidden_features = tuple(hidden_features)
        self.frames = frames
        self.norm: nn.Module = norm or nn.Identity()
        self.own_pool_type = own_pool_type or pool_type or "svdpade"
        self.options_are_for = pool_type or self.own_pool_type
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

        A new pool takes over the options that it shares with the old one (``reduce_channels``, ...), and a reduction
        that is the same. A head without a pool gets the one it was made for, fresh. Device and dtype are by default
        those of the head's parameters.
        """
        reference = next(self.parameters(), torch.empty(0))
        device, dtype = device or reference.device, dtype or reference.dtype
        if pool_type is None and num_classes and not self.pool_type:
            pool_type = self.own_pool_type
        check_classes(num_classes, self.pool_type if pool_type is None else pool_type)
        if pool_type:
            check_pool(pool_type)
        if pool_type is not None and pool_type != self.pool_type:
            self._build_pool(pool_type, device, dtype)
        self._build_classifier(num_classes, device, dtype)
        self.train(self.training)

    def _build_pool(self, pool_type: str, device: torch.device | None, dtype: torch.dtype | None) -> None:
        pool: nn.Module = Unpooled()
        width = self.in_features
        joined = 1
        if pool_type:
            options = self.options_for(pool_type)
            if self.frames is not None and takes_frames(pool_type):
                options["frames"] = self.frames
            pool = create_pool(pool_type, self.in_features, device=device, dtype=dtype, **self.layout | options)
            width = int(pool.out_features) + self.fuse_token * self.in_features  # type: ignore[arg-type]
            learned = getattr(getattr(self, "global_pool", None), "reduction", None)
            if learned is not None and str(learned) == str(pool.reduction):
                pool.reduction = learned
            joined = pool.frames if getattr(pool, "level", None) == "video" else 1  # type: ignore[assignment]
        self.frames_joined_by_pool, self.frames_averaged = joined, (self.frames or joined) // joined
        self.pool_type, self.global_pool, self.num_features = pool_type, pool, width
        self._build_hidden_layers(device, dtype)

    def _build_hidden_layers(self, device: torch.device | None, dtype: torch.dtype | None) -> None:
        layers: list[nn.Module] = []
        for width in self.hidden_features if self.pool_type else ():
            linear = nn.Linear(self.num_features, width, device=device, dtype=dtype)
            layers += [linear, nn.ReLU(inplace=True), nn.Dropout(self.dropout.p)]
            self.num_features = width
        # The head's own dropout stands behind the last.
        self.hidden: nn.Module = nn.Sequential(*layers[:-1]) if layers else nn.Identity()

    def options_for(self, pool_type: str) -> dict[str, Any]:
        """Those of the head's options that a pool takes; those of a method belong to the pool they were given for."""
        if pool_type == self.options_are_for:
            return dict(self.pool_options)
        shared = pool_options(pool_type, of_parts=False)
        return {name: value for name, value in self.pool_options.items() if name in shared}

    def _build_classifier(self, num_classes: int, device: torch.device | None, dtype: torch.dtype | None) -> None:
        self.fc: nn.Module = nn.Identity()
        if num_classes:
            self.fc = nn.Linear(self.num_features, num_classes, device=device, dtype=dtype)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in NAMES_OF_CLASSIFIERS:
            name = "fc"
        if isinstance(value, nn.Module) and name not in PARTS:
            raise OptionError(f"a second-order head has no part {name!r}; its classifier is head.fc")
        super().__setattr__(name, value)

    linear = l = fc2 = proj = property(lambda self: self.fc)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.norm(x)
        if not self.pool_type:
            return x
        vector = self.global_pool(x)
        if self.fuse_token:
            vector = torch.cat([vector, mean_over_frames(x[:, 0], self.frames_joined_by_pool)], dim=1)
        if next((p.dtype for layers in (self.hidden, self.fc) for p in layers.parameters()), None) == torch.float16:
            vector = vector.half()  # pools give float32 where float16 may not hold their vectors
        vector = self.dropout(mean_over_frames(self.hidden(vector), self.frames_averaged))
        if type(self.fc) is nn.Linear and self.fc._modules:  # head.fc.fc2 of a MetaFormer
            raise OptionError(
                f"head.fc is the classifier and cannot hold {next(iter(self.fc._modules))!r}: assign head.fc"
            )
        return vector if pre_logits else self.fc(vector)


def takes_frames(pool_type: str) -> bool:
    """Whether a pool knows about the frames of clips."""
    return "frames" in pool_options(pool_type, of_parts=False)
