"""The ResNets for small pictures that the whitening experiments train on CIFAR."""

# No postponed annotations: TorchScript reads them.

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from ..checks import check_choice, check_integer
from ..errors import OptionError

BLOCKS: dict[str, Any] = {"basic": BasicBlock, "bottleneck": Bottleneck}
REDUCTIONS = (1, 1, 2, 4, 8)


class CifarResNet(ResNet):
    """timm's ResNet for pictures of 32x32: a 3x3 stem without stride or max-pooling, and four stages.

    The default is ResNet-18; ResNet-50 has ``layers=(3, 4, 6, 3)`` and ``block='bottleneck'``. The last map has 4x4
    positions. State-dict keys are those of timm's ResNets. The whitening experiments replace ``bn1``.

    Args:
        layers: blocks of each of the four stages.
        block: ``basic`` or ``bottleneck``.
        zero_init_last: zeros for the first weights of the last norm of a block, as timm has them and the experiments
            have not.
        options: of timm's ``ResNet``.

    Source: He, Zhang, Ren & Sun, "Deep Residual Learning for Image Recognition", CVPR 2016; in this form in Wang, Dang,
    Hu, Fua & Salzmann, "Backpropagation-Friendly Eigendecomposition", NeurIPS 2019 (ResNet-18), and in Song,
    Sebe & Wang, "Fast Differentiable Matrix Square Root", ICLR 2022 (ResNet-50).

    Raises:
        OptionError: for another block, or for other than four stages.
    """

    if TYPE_CHECKING:  # TorchScript would read it
        conv1: Any
        maxpool: nn.Module  # type: ignore[assignment]

    def __init__(
        self,
        layers: Sequence[int] = (2, 2, 2, 2),
        block: str = "basic",
        num_classes: int = 10,
        in_chans: int = 3,
        zero_init_last: bool = False,
        **options: Any,
    ) -> None:
        check_choice("block", block, BLOCKS)
        if len(layers) != len(REDUCTIONS) - 1:
            raise OptionError(f"layers must be the numbers of blocks of 4 stages, got {layers!r}")
        for count in layers:
            check_integer("layers", count)
        super().__init__(BLOCKS[block], tuple(layers), num_classes, in_chans, zero_init_last=zero_init_last, **options)
        factory = dict(device=self.conv1.weight.device, dtype=self.conv1.weight.dtype)
        self.conv1 = nn.Conv2d(in_chans, self.conv1.out_channels, 3, padding=1, bias=False, **factory)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.maxpool = nn.Identity()
        for stage, reduction in zip(self.feature_info, REDUCTIONS, strict=True):
            stage["reduction"] = reduction
