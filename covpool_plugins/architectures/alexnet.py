"""AlexNet with batch norm, the smallest network of the second-order pooling experiments."""

# No postponed annotations: what torch.fx traces is scripted with the annotations as they are.

from typing import Any

import torch
from torch import Tensor, nn

from ..checks import check_flag
from .backbone import Backbone


class AlexNetLayer(nn.Module):
    """Max-pooling with stride 2 if ``pool`` is set, convolution, batch norm, ReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int,
        pool: bool = False,
        batch_norm: bool = True,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(3, stride=2) if pool else nn.Identity()
        # The bias has no effect in front of batch norm; the original's checkpoints have it.
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=padding, **factory)
        self.norm = nn.BatchNorm2d(out_channels, **factory) if batch_norm else nn.Identity()
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(self.pool(x))))


class AlexNet(Backbone):
    """The five convolutions of AlexNet, each with batch norm; average pooling and one linear classifier.

    Max-pooling precedes the second and the third convolution and does not follow the last: a head gets 13x13 positions
    at 224x224. There are no fully connected layers of 4096; the original puts them behind the second-order vector when
    it trains from scratch.

    Args:
        num_classes: outputs; 0 returns the pooled vector.
        in_chans: channels of the images, which are at least 31x31.
        global_pool: ``avg``, or the empty string for the unpooled map, which needs ``num_classes=0``.
        drop_rate: dropout before the classifier.
        batch_norm: ``False`` leaves it out, as in the AlexNet of fast-MPN-COV (CVPR 2018).

    Source: Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014, for the widths; Song,
    Sebe & Wang, "Why Approximate Matrix Square Root Outperforms Accurate SVD in Global Covariance Pooling?", ICCV 2021,
    for the batch norm.

    Raises:
        OptionError: for an argument out of its range.
    """

    stages = (("layer1",), ("layer2",), ("layer3",), ("layer4",), ("layer5",))

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
        check_flag("batch_norm", batch_norm)
        strides = {"layer1": (64, 4), "layer2": (192, 8), "layer3": (384, 16), "layer4": (256, 16), "layer5": (256, 16)}
        info = [dict(num_chs=width, reduction=stride, module=name) for name, (width, stride) in strides.items()]
        super().__init__(in_chans, drop_rate, info)
        shared: dict[str, Any] = dict(batch_norm=batch_norm, device=device, dtype=dtype)
        self.layer1 = AlexNetLayer(in_chans, 64, 11, stride=4, padding=2, **shared)
        self.layer2 = AlexNetLayer(64, 192, 5, padding=2, pool=True, **shared)
        self.layer3 = AlexNetLayer(192, 384, 3, padding=1, pool=True, **shared)
        self.layer4 = AlexNetLayer(384, 256, 3, padding=1, **shared)
        self.layer5 = AlexNetLayer(256, 256, 3, padding=1, **shared)
        self.init_weights()
        self.reset_classifier(num_classes, global_pool)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of the parameters of the stem and of every layer; layers are the finest blocks there are."""
        return dict(stem=r"^layer1\.", blocks=r"^layer(\d+)")

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) to the last map (B, 256, H / 16, W / 16), rounded down."""
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = self._run_stages(x)
        else:
            x = self.layer1(x)
            x = self.layer2(x)
            x = self.layer3(x)
            x = self.layer4(x)
            x = self.layer5(x)
        return x
