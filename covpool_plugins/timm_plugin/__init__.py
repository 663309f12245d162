"""Second-order heads on timm backbones, and their registered names."""

from . import whitened_models  # noqa: F401  registers them
from .builder import create_model
from .head import SecondOrderHead, list_heads
from .hub import save_for_hub
from .second_order_models import registered_models
from .subclass import SecondOrderModel
from .two_stream import create_two_stream_model

__all__ = [
    "SecondOrderHead",
    "SecondOrderModel",
    "create_model",
    "create_two_stream_model",
    "list_heads",
    "registered_models",
    "save_for_hub",
]
