"""Networks that neither timm nor MMPretrain has, in plain torch, with the interface of timm's models."""

from .alexnet import AlexNet
from .backbone import Backbone
from .resnet_cifar import CifarResNet
from .so_vit import SO_VITS, SoViT, SoViTSettings
from .token_head import TokenHead, create_token_pool

__all__ = ["SO_VITS", "AlexNet", "Backbone", "CifarResNet", "SoViT", "SoViTSettings", "TokenHead", "create_token_pool"]
