"""The ResNet for small pictures that the whitening experiments train on CIFAR."""

# No postponed annotations: what torch.fx traces is scripted with the annotations as they are.

from typing import Any

import torch
from torch import Tensor, nn

from .backbone import Backbone

WIDTHS = (64, 128, 256, 512)
BLOCKS_PER_STAGE = 2


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, added to their input; the input is projected where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, **factory: Any) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False, **factory)
        self.bn1 = nn.BatchNorm2d(out_channels, **factory)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False, **factory)
        self.bn2 = nn.BatchNorm2d(out_channels, **factory)
        self.act2 = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            projection = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False, **factory)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(out_channels, **factory))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.act1(self.bn1(self.conv1(x)))
        return self.act2(self.bn2(self.conv2(x)) + shortcut)


class CifarResNet(Backbone):
    """ResNet-18 for pictures of 32x32: a 3x3 stem without stride or max-pooling, four stages of two basic blocks.

    The last map has 4x4 positions. State-dict keys are those of timm's ResNets. The experiments with whitening replace
    ``bn1``.

    Args:
        num_classes: outputs; 0 returns the pooled vector.
        in_chans: channels of the images.
        global_pool: ``avg``, or the empty string for the unpooled map, which needs ``num_classes=0``.
        drop_rate: dropout before the classifier.

    Source: He, Zhang, Ren & Sun, "Deep Residual Learning for Image Recognition", CVPR 2016; in this form in Wang, Dang,
    Hu, Fua & Salzmann, "Backpropagation-Friendly Eigendecomposition", NeurIPS 2019.

    Raises:
        OptionError: for an argument out of its range.
    """

    stages = (("conv1", "bn1", "act1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",))

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        info: list[dict[str, Any]] = [dict(num_chs=WIDTHS[0], reduction=1, module="act1")]
        for number, width in enumerate(WIDTHS):
            info.append(dict(num_chs=width, reduction=2**number, module=f"layer{number + 1}"))
        super().__init__(in_chans, drop_rate, info)
        factory: dict[str, Any] = dict(device=device, dtype=dtype)
        self.conv1 = nn.Conv2d(in_chans, WIDTHS[0], 3, padding=1, bias=False, **factory)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0], **factory)
        self.act1 = nn.ReLU(inplace=True)
        self.layer1 = _stage(WIDTHS[0], WIDTHS[0], 1, factory)
        self.layer2 = _stage(WIDTHS[0], WIDTHS[1], 2, factory)
        self.layer3 = _stage(WIDTHS[1], WIDTHS[2], 2, factory)
        self.layer4 = _stage(WIDTHS[2], WIDTHS[3], 2, factory)
        self.init_weights()
        self.reset_classifier(num_classes, global_pool)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of the parameters of the stem and of every block, or of every stage."""
        return dict(stem=r"^(?:conv1|bn1)\.", blocks=r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)")

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) to the last map (B, 512, H / 8, W / 8), rounded up."""
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = self._run_stages(x)
        else:
            x = self.act1(self.bn1(self.conv1(x)))
            x = self.layer1(x)
            x = self.layer2(x)
            x = self.layer3(x)
            x = self.layer4(x)
        return x


def _stage(in_channels: int, out_channels: int, stride: int, factory: dict[str, Any]) -> nn.Sequential:
    following = [BasicBlock(out_channels, out_channels, **factory) for _ in range(BLOCKS_PER_STAGE - 1)]
    return nn.Sequential(BasicBlock(in_channels, out_channels, stride, **factory), *following)
