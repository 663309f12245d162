"""Our own networks under timm's roof: ``timm.create_model('alexnet')`` and ``timm.create_model('resnet18_cifar')``."""

from __future__ import annotations

from typing import Any

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from ..architectures import AlexNet, CifarResNet

__all__ = ["alexnet", "resnet18_cifar"]

# Mean and standard deviation over all pixels of the training pictures.
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)

# register_model reads this when it decorates a function below. No weights have been published.
SHARED: dict[str, Any] = dict(url="", interpolation="bilinear", classifier="fc")
IMAGENET: dict[str, Any] = dict(
    num_classes=1000, input_size=(3, 224, 224), crop_pct=0.875, mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD
)
CIFAR10: dict[str, Any] = dict(num_classes=10, input_size=(3, 32, 32), crop_pct=1.0, mean=CIFAR10_MEAN, std=CIFAR10_STD)
default_cfgs = generate_default_cfgs(
    {
        "alexnet": dict(**SHARED, **IMAGENET, pool_size=(13, 13), first_conv="layer1.conv"),
        "resnet18_cifar": dict(**SHARED, **CIFAR10, pool_size=(4, 4), first_conv="conv1"),
    }
)


def _feature_cfg() -> dict[str, Any]:
    """A new one for every model: timm changes it."""
    return dict(out_indices=(0, 1, 2, 3, 4), feature_cls="getter")


@register_model
def alexnet(pretrained: bool = False, **kwargs: Any) -> AlexNet:
    """AlexNet with batch norm; see :class:`covpool_plugins.architectures.AlexNet`."""
    return build_model_with_cfg(AlexNet, "alexnet", pretrained, feature_cfg=_feature_cfg(), **kwargs)


@register_model
def resnet18_cifar(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-18 for pictures of 32x32; see :class:`covpool_plugins.architectures.CifarResNet`."""
    return build_model_with_cfg(CifarResNet, "resnet18_cifar", pretrained, feature_cfg=_feature_cfg(), **kwargs)
