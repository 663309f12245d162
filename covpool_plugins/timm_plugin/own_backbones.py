"""Networks that timm lacks, under its names: ``timm.create_model('alexnet')``, ``'resnet18_cifar'``, ``'so_vit_7'``."""

from __future__ import annotations

from typing import Any

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from .alexnet import AlexNet
from .resnet_cifar import CifarResNet
from .so_vit import SO_VITS, SoViT

__all__ = ["alexnet", "resnet18_cifar", "resnet50_cifar", "so_vit_7", "so_vit_10", "so_vit_14", "so_vit_19"]

# Mean and standard deviation over all pixels of the training pictures.
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)

# register_model reads this when it decorates a function below. No weights have been published.
SHARED: dict[str, Any] = dict(url="", interpolation="bilinear", classifier="fc")
IMAGENET: dict[str, Any] = dict(
    num_classes=1000, input_size=(3, 224, 224), crop_pct=0.875, mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD
)
CIFAR10: dict[str, Any] = dict(num_classes=10, input_size=(3, 32, 32), crop_pct=1.0, mean=CIFAR10_MEAN, std=CIFAR10_STD)
SO_VIT: dict[str, Any] = {
    **SHARED,
    **IMAGENET,
    "interpolation": "bicubic",
    "crop_pct": 0.9,
    "fixed_input_size": True,
    "pool_size": None,
    "first_conv": "patch_embed.stem",
    "classifier": ("head.fc", "head.cls_fc"),
}
default_cfgs = generate_default_cfgs(
    {
        "alexnet": dict(**SHARED, **IMAGENET, pool_size=(13, 13), first_conv="layer1.conv"),
        "resnet18_cifar": dict(**SHARED, **CIFAR10, pool_size=(4, 4), first_conv="conv1"),
        "resnet50_cifar": dict(**SHARED, **CIFAR10, pool_size=(4, 4), first_conv="conv1"),
        **{f"so_vit_{arch}": SO_VIT for arch in SO_VITS},
    }
)


def _feature_cfg() -> dict[str, Any]:
    """A new one for every model: timm changes it."""
    return dict(out_indices=(0, 1, 2, 3, 4), feature_cls="getter")


@register_model
def alexnet(pretrained: bool = False, **kwargs: Any) -> AlexNet:
    """AlexNet with batch norm; see :class:`covpool_plugins.timm_plugin.alexnet.AlexNet`."""
    return build_model_with_cfg(AlexNet, "alexnet", pretrained, feature_cfg=_feature_cfg(), **kwargs)


@register_model
def resnet18_cifar(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-18 for pictures of 32x32; see :class:`covpool_plugins.timm_plugin.resnet_cifar.CifarResNet`."""
    return build_model_with_cfg(CifarResNet, "resnet18_cifar", pretrained, feature_cfg=_feature_cfg(), **kwargs)


@register_model
def resnet50_cifar(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-50 for pictures of 32x32; see :class:`covpool_plugins.timm_plugin.resnet_cifar.CifarResNet`."""
    arguments = dict(layers=(3, 4, 6, 3), block="bottleneck", **kwargs)
    return build_model_with_cfg(CifarResNet, "resnet50_cifar", pretrained, feature_cfg=_feature_cfg(), **arguments)


def _so_vit(arch: str, pretrained: bool, **kwargs: Any) -> SoViT:
    return build_model_with_cfg(
        SoViT,
        f"so_vit_{arch}",
        pretrained,
        feature_cfg=dict(out_indices=kwargs.pop("out_indices", 3), feature_cls="getter"),
        **{**SO_VITS[arch]._asdict(), **kwargs},
    )


@register_model
def so_vit_7(pretrained: bool = False, **kwargs: Any) -> SoViT:
    """So-ViT-7; see :class:`covpool_plugins.timm_plugin.so_vit.SoViT`."""
    return _so_vit("7", pretrained, **kwargs)


@register_model
def so_vit_10(pretrained: bool = False, **kwargs: Any) -> SoViT:
    """So-ViT-10; see :class:`covpool_plugins.timm_plugin.so_vit.SoViT`."""
    return _so_vit("10", pretrained, **kwargs)


@register_model
def so_vit_14(pretrained: bool = False, **kwargs: Any) -> SoViT:
    """So-ViT-14; see :class:`covpool_plugins.timm_plugin.so_vit.SoViT`."""
    return _so_vit("14", pretrained, **kwargs)


@register_model
def so_vit_19(pretrained: bool = False, **kwargs: Any) -> SoViT:
    """So-ViT-19; see :class:`covpool_plugins.timm_plugin.so_vit.SoViT`."""
    return _so_vit("19", pretrained, **kwargs)
