"""AlexNet with batch norm, the smallest network of the second-order pooling experiments."""

# No postponed annotations: TorchScript reads them.

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import torch
from timm.layers import create_classifier
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..checks import check_choice, check_classes, check_flag, check_integer, check_number

# Of each layer: channels, kernel size, stride and padding of the convolution, and how much smaller its map is.
LAYERS = ((64, 11, 4, 2, 4), (192, 5, 1, 2, 8), (384, 3, 1, 1, 16), (256, 3, 1, 1, 16), (256, 3, 1, 1, 16))
POOLED = (1, 2)  # the layers that begin with max-pooling


class AlexNet(nn.Module):
    """The five convolutions of AlexNet, each with batch norm and ReLU; pooling and one linear classifier.

    Max-pooling precedes the second and the third convolution and does not follow the last: a head gets 13x13 positions
    at 224x224. There are no fully connected layers of 4096; the original puts them behind the second-order vector when
    it trains from scratch.

    Args:
        num_classes: outputs; 0 returns the pooled vector.
        in_chans: channels of the images, which are at least 31x31.
        global_pool: of timm's, or the empty string for the unpooled map, which needs ``num_classes=0``.
        drop_rate: dropout before the classifier.
        batch_norm: ``False`` leaves it out, as in the AlexNet of fast-MPN-COV (CVPR 2018).

    Source: Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014, for the widths; Song,
    Sebe & Wang, "Why Approximate Matrix Square Root Outperforms Accurate SVD in Global Covariance Pooling?", ICCV 2021,
    for the batch norm.

    Raises:
        OptionError: for an argument out of its range.
    """

    if TYPE_CHECKING:  # TorchScript would read it
        layer1: Any
        layer2: Any
        layer3: Any
        layer4: Any
        layer5: Any
        fc: nn.Module

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        batch_norm: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_classes(num_classes, global_pool)
        check_integer("in_chans", in_chans)
        check_flag("batch_norm", batch_norm)
        check_number("drop_rate", drop_rate, "[0, 1]")
        factory: dict[str, Any] = dict(device=device, dtype=dtype)
        self.in_chans, self.drop_rate, self.grad_checkpointing = in_chans, float(drop_rate), False
        self.feature_info = []
        width = in_chans
        for index, (channels, kernel, stride, padding, reduction) in enumerate(LAYERS):
            # The bias has no effect in front of batch norm; the original's checkpoints have it.
            parts: dict[str, nn.Module] = dict(
                pool=nn.MaxPool2d(3, stride=2) if index in POOLED else nn.Identity(),
                conv=nn.Conv2d(width, channels, kernel, stride=stride, padding=padding, **factory),
                norm=nn.BatchNorm2d(channels, **factory) if batch_norm else nn.Identity(),
                act=nn.ReLU(inplace=True),
            )
            nn.init.kaiming_normal_(parts["conv"].weight, mode="fan_out", nonlinearity="relu")  # type: ignore[arg-type]
            nn.init.zeros_(parts["conv"].bias)  # type: ignore[arg-type]
            self.add_module(f"layer{index + 1}", nn.Sequential(OrderedDict(parts)))
            self.feature_info.append(dict(num_chs=channels, reduction=reduction, module=f"layer{index + 1}"))
            width = channels
        self.num_features = self.head_hidden_size = width
        self.num_classes = num_classes
        self.global_pool, self.fc = create_classifier(width, num_classes, pool_type=global_pool, **factory)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of the parameters of the stem and of every layer; layers are the finest blocks there are."""
        return dict(stem=r"^layer1\.", blocks=r"^layer(\d+)")

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Switch gradient checkpointing on or off."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self, name_only: bool = False) -> nn.Module | str:
        """The classifier, or its name."""
        return "fc" if name_only else self.fc

    @torch.jit.ignore
    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """New pooling and classifier on the device and in the dtype of the weights."""
        pool_type = self.global_pool.pool_type if global_pool is None else global_pool
        check_classes(num_classes, pool_type)
        weight = self.layer1.conv.weight
        factory = dict(device=weight.device, dtype=weight.dtype)
        self.num_classes = num_classes
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=pool_type, **factory)
        self.train(self.training)

    @torch.jit.ignore
    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The maps of some layers, as timm's models give them.

        Args:
            x: images (B, in_chans, H, W).
            indices: layers, negative ones from the end; an integer for that many last ones; all by default.
            norm: without effect: no norm follows the layers.
            stop_early: do not compute the layers behind the last one chosen.
            output_fmt: ``NCHW`` only.
            intermediates_only: return just the list.

        Returns:
            The last map computed and the list of the chosen ones, in the order of the layers.

        Raises:
            OptionError: for another ``output_fmt``.
        """
        check_choice("output_fmt", output_fmt, ("NCHW",))
        chosen, last = feature_take_indices(len(LAYERS), indices)
        intermediates = []
        for index, layer in enumerate(self._layers()):
            if stop_early and index > last:
                break
            x = checkpoint(layer, x, use_reentrant=False) if self.grad_checkpointing and index else layer(x)
            if index in chosen:
                intermediates.append(x)
        return intermediates if intermediates_only else (x, intermediates)

    @torch.jit.ignore
    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the layers behind the last one chosen, and the classifier; return the chosen ones counted from 0."""
        chosen, last = feature_take_indices(len(LAYERS), indices)
        for index in range(last + 1, len(LAYERS)):
            setattr(self, f"layer{index + 1}", nn.Identity())
        self.num_features = self.head_hidden_size = LAYERS[last][0]
        if prune_head or last + 1 < len(LAYERS):
            self.reset_classifier(0, "")
        return chosen

    def _layers(self) -> list[nn.Module]:
        return [self.layer1, self.layer2, self.layer3, self.layer4, self.layer5]

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) to the last map (B, 256, H / 16, W / 16), rounded down."""
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return self.forward_intermediates(x, 1)[0]
        x = self.layer1(x)
        x = self.layer2(x)
        x = self.layer3(x)
        x = self.layer4(x)
        return self.layer5(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last map to the logits (B, num_classes), or to what enters the classifier."""
        x = self.global_pool(x)
        if self.drop_rate > 0.0:
            x = F.dropout(x, p=self.drop_rate, training=self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))
