"""Networks that neither timm nor MMPretrain has, in plain torch, with the interface of timm's models."""

from .alexnet import AlexNet
from .backbone import Backbone
from .resnet_cifar import CifarResNet

__all__ = ["AlexNet", "Backbone", "CifarResNet"]
