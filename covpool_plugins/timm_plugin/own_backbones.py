"""Networks that timm lacks, built on its ResNet: ``alexnet``, ``resnet18_cifar`` and ``resnet50_cifar``."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from ..checks import check_choice, check_flag, check_integer
from ..errors import OptionError

BLOCKS: dict[str, Any] = {"basic": BasicBlock, "bottleneck": Bottleneck}


class AlexNet(ResNet):
    """The five convolutions of AlexNet, each with batch norm and ReLU, as stem and stages of timm's ResNet.

    Max-pooling precedes the second and the third convolution and does not follow the last: a head gets 13x13 positions
    at 224x224. There are no fully connected layers of 4096; the original puts them behind the second-order vector when
    it trains from scratch.

    Args:
        num_classes: outputs; 0 returns the pooled vector.
        in_chans: channels of the images, which are at least 31x31.
        batch_norm: ``False`` leaves it out, as in the AlexNet of fast-MPN-COV (CVPR 2018).
        global_pool, drop_rate, device, dtype: as timm's ``ResNet`` has them.

    Source: Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014, for the widths; Song,
    Sebe & Wang, "Why Approximate Matrix Square Root Outperforms Accurate SVD in Global Covariance Pooling?", ICCV 2021,
    for the batch norm.
    """

    if TYPE_CHECKING:  # TorchScript would read it
        conv1: Any
        bn1: Any
        maxpool: Any

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        batch_norm: bool = True,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        check_flag("batch_norm", batch_norm)
        widths = (64, 192, 384, 256, 256)
        options: dict[str, Any] = dict(global_pool=global_pool, drop_rate=drop_rate, device=device, dtype=dtype)
        super().__init__(BLOCKS["basic"], (0, 0, 0, 0), num_classes, in_chans, channels=widths[1:], **options)
        factory: dict[str, Any] = dict(device=self.conv1.weight.device, dtype=self.conv1.weight.dtype)

        def layer(number: int, in_channels: int, kernel: int, **settings: Any) -> dict[str, nn.Module]:
            # The bias has no effect in front of batch norm; the original's checkpoints have it.
            conv = nn.Conv2d(in_channels, widths[number], kernel, **settings, **factory)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
            norm = nn.BatchNorm2d(widths[number], **factory) if batch_norm else nn.Identity()
            return dict(conv=conv, norm=norm, act=nn.ReLU(inplace=True))

        self.conv1, self.bn1, _ = layer(0, in_chans, 11, stride=4, padding=2).values()
        self.maxpool = nn.MaxPool2d(3, stride=2)
        for number in range(1, 5):
            kernel = 5 if number == 1 else 3
            parts = layer(number, widths[number - 1], kernel, padding=kernel // 2)
            if number == 2:
                parts = dict(pool=nn.MaxPool2d(3, stride=2), **parts)
            setattr(self, f"layer{number}", nn.Sequential(nn.Sequential(OrderedDict(parts))))
        for stage, width, reduction in zip(self.feature_info, widths, (4, 8, 16, 16, 16), strict=True):
            stage.update(num_chs=width, reduction=reduction)
        self.register_load_state_dict_pre_hook(_stages_of_resnet)


def _stages_of_resnet(model: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """The keys of version 0.1, in which AlexNet had five layers."""
    if f"{prefix}layer5.conv.weight" in state_dict:
        for key in [key for key in state_dict if key.startswith(f"{prefix}layer")]:
            new = re.sub(r"^layer1\.(conv|norm)", lambda m: {"conv": "conv1", "norm": "bn1"}[m[1]], key[len(prefix) :])
            new = re.sub(r"^layer(\d)", lambda m: f"layer{int(m[1]) - 1}.0", new)
            state_dict[prefix + new] = state_dict.pop(key)


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
        maxpool: Any

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
        if len(layers) != 4:
            raise OptionError(f"layers must be the numbers of blocks of 4 stages, got {layers!r}")
        for count in layers:
            check_integer("layers", count)
        super().__init__(BLOCKS[block], tuple(layers), num_classes, in_chans, zero_init_last=zero_init_last, **options)
        factory = dict(device=self.conv1.weight.device, dtype=self.conv1.weight.dtype)
        self.conv1 = nn.Conv2d(in_chans, self.conv1.out_channels, 3, padding=1, bias=False, **factory)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.maxpool = nn.Identity()
        for stage, reduction in zip(self.feature_info, (1, 1, 2, 4, 8), strict=True):
            stage["reduction"] = reduction


# Name -> class and its arguments.
MODELS: dict[str, tuple[type[ResNet], dict[str, Any]]] = {
    "alexnet": (AlexNet, {}),
    "resnet18_cifar": (CifarResNet, {}),
    "resnet50_cifar": (CifarResNet, dict(layers=(3, 4, 6, 3), block="bottleneck")),
}
__all__ = list(MODELS)

# Mean and standard deviation over all pixels of the training pictures.
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)
SHARED: dict[str, Any] = dict(url="", interpolation="bilinear", classifier="fc", first_conv="conv1")
IMAGENET: dict[str, Any] = dict(
    num_classes=1000, input_size=(3, 224, 224), crop_pct=0.875, mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD
)
CIFAR10: dict[str, Any] = dict(num_classes=10, input_size=(3, 32, 32), crop_pct=1.0, mean=CIFAR10_MEAN, std=CIFAR10_STD)
# register_model reads this when it decorates a function below. No weights have been published.
default_cfgs = generate_default_cfgs(
    {
        "alexnet": dict(**SHARED, **IMAGENET, pool_size=(13, 13)),
        "resnet18_cifar": dict(**SHARED, **CIFAR10, pool_size=(4, 4)),
        "resnet50_cifar": dict(**SHARED, **CIFAR10, pool_size=(4, 4)),
    }
)


def _entrypoint(name: str, network: type[ResNet], arguments: dict[str, Any]) -> Callable[..., ResNet]:
    def build(pretrained: bool = False, **kwargs: Any) -> ResNet:
        features = dict(out_indices=(0, 1, 2, 3, 4), feature_cls="getter")
        return build_model_with_cfg(network, name, pretrained, feature_cfg=features, **{**arguments, **kwargs})

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"See :class:`covpool_plugins.timm_plugin.own_backbones.{network.__name__}`."
    return build


for _name, (_network, _arguments) in MODELS.items():
    globals()[_name] = register_model(_entrypoint(_name, _network, _arguments))
