"""The ResNets for small pictures that the whitening experiments train on CIFAR."""

# No postponed annotations: what torch.fx traces is scripted with the annotations as they are.

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import check_choice, check_integer
from ..errors import OptionError
from .backbone import Backbone

WIDTHS = (64, 128, 256, 512)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, added to their input; the input is projected where the shape changes."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int = 1, **factory: Any) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride=stride, padding=1, bias=False, **factory)
        self.bn1 = nn.BatchNorm2d(width, **factory)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False, **factory)
        self.bn2 = nn.BatchNorm2d(width, **factory)
        self.act2 = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = _projection(in_channels, width, stride, factory)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.act1(self.bn1(self.conv1(x)))
        return self.act2(self.bn2(self.conv2(x)) + shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with batch norm, added to their input; the 3x3 has the stride."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int = 1, **factory: Any) -> None:
        super().__init__()
        out_channels = self.expansion * width
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False, **factory)
        self.bn1 = nn.BatchNorm2d(width, **factory)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False, **factory)
        self.bn2 = nn.BatchNorm2d(width, **factory)
        self.act2 = nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False, **factory)
        self.bn3 = nn.BatchNorm2d(out_channels, **factory)
        self.act3 = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = _projection(in_channels, out_channels, stride, factory)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.act2(self.bn2(self.conv2(x)))
        return self.act3(self.bn3(self.conv3(x)) + shortcut)


BLOCKS: dict[str, type[BasicBlock] | type[Bottleneck]] = {"basic": BasicBlock, "bottleneck": Bottleneck}


class CifarResNet(Backbone):
    """ResNet for pictures of 32x32: a 3x3 stem without stride or max-pooling, and four stages.

    The default is ResNet-18; ResNet-50 has ``layers=(3, 4, 6, 3)`` and ``block='bottleneck'``. The last map has 4x4
    positions. State-dict keys are those of timm's ResNets. The whitening experiments replace ``bn1``.

    Args:
        num_classes: outputs; 0 returns the pooled vector.
        in_chans: channels of the images.
        global_pool: ``avg``, or the empty string for the unpooled map, which needs ``num_classes=0``.
        drop_rate: dropout before the classifier.
        layers: blocks of each of the four stages.
        block: ``basic`` or ``bottleneck``.

    Source: He, Zhang, Ren & Sun, "Deep Residual Learning for Image Recognition", CVPR 2016; in this form in Wang, Dang,
    Hu, Fua & Salzmann, "Backpropagation-Friendly Eigendecomposition", NeurIPS 2019 (ResNet-18), and in Song,
    Sebe & Wang, "Fast Differentiable Matrix Square Root", ICLR 2022 (ResNet-50).

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
        layers: Sequence[int] = (2, 2, 2, 2),
        block: str = "basic",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_choice("block", block, BLOCKS)
        if len(layers) != len(WIDTHS):
            raise OptionError(f"layers must be the numbers of blocks of {len(WIDTHS)} stages, got {layers!r}")
        for count in layers:
            check_integer("layers", count)
        kind = BLOCKS[block]
        info: list[dict[str, Any]] = [dict(num_chs=WIDTHS[0], reduction=1, module="act1")]
        for number, width in enumerate(WIDTHS):
            info.append(dict(num_chs=kind.expansion * width, reduction=2**number, module=f"layer{number + 1}"))
        super().__init__(in_chans, drop_rate, info)
        factory: dict[str, Any] = dict(device=device, dtype=dtype)
        self.conv1 = nn.Conv2d(in_chans, WIDTHS[0], 3, padding=1, bias=False, **factory)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0], **factory)
        self.act1 = nn.ReLU(inplace=True)
        first, second, third, _ = (kind.expansion * width for width in WIDTHS)
        self.layer1 = _stage(kind, WIDTHS[0], WIDTHS[0], layers[0], 1, factory)
        self.layer2 = _stage(kind, first, WIDTHS[1], layers[1], 2, factory)
        self.layer3 = _stage(kind, second, WIDTHS[2], layers[2], 2, factory)
        self.layer4 = _stage(kind, third, WIDTHS[3], layers[3], 2, factory)
        self.init_weights()
        self.reset_classifier(num_classes, global_pool)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of the parameters of the stem and of every block, or of every stage."""
        return dict(stem=r"^(?:conv1|bn1)\.", blocks=r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)")

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) to the last map (B, 512 or 2048, H / 8, W / 8), rounded up."""
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = self._run_stages(x)
        else:
            x = self.act1(self.bn1(self.conv1(x)))
            x = self.layer1(x)
            x = self.layer2(x)
            x = self.layer3(x)
            x = self.layer4(x)
        return x


def _stage(
    kind: type[BasicBlock] | type[Bottleneck],
    in_channels: int,
    width: int,
    count: int,
    stride: int,
    factory: dict[str, Any],
) -> nn.Sequential:
    following = [kind(kind.expansion * width, width, **factory) for _ in range(count - 1)]
    return nn.Sequential(kind(in_channels, width, stride, **factory), *following)


def _projection(in_channels: int, out_channels: int, stride: int, factory: dict[str, Any]) -> nn.Module | None:
    """Convolution and norm that bring a block's input to the shape of its output, if the two differ."""
    if stride == 1 and in_channels == out_channels:
        return None
    convolution = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False, **factory)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels, **factory))
