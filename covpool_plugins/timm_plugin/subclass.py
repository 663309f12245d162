"""A timm model made second-order in place: its own class, with another head.

The instance gets a subclass of its class whose ``forward_head`` ends in the second-order head. So the backbone's
state-dict keys, feature extraction, parameter groups and ``isinstance`` checks stay timm's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .head import SecondOrderHead


class SecondOrderModel:
    """Mixed into the class of a timm model whose pooling and classifier are disabled; ``head`` takes their place."""

    head: SecondOrderHead

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, num_classes) for the backbone's last map; the pooled vector with ``pre_logits``."""
        x = super().forward_head(x, pre_logits=True)  # type: ignore[misc]
        return self.head(x, pre_logits=pre_logits)

    def get_classifier(self, name_only: bool = False) -> str | nn.Module:
        """The classifier, or its name."""
        return "head.fc" if name_only else self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier, and the pool when ``global_pool`` names another one ('' for none)."""
        reference = next(self.parameters())  # type: ignore[attr-defined]
        self.head.reset(num_classes, global_pool, reference.device, reference.dtype)
        _describe(self, num_classes)

    def __reduce_ex__(self, protocol: Any) -> tuple:
        # The class is made at run time: pickle and deepcopy find it again through the backbone's own class.
        return _new_instance, (type(self).__mro__[2],), self.__dict__


_classes: dict[Any, type[nn.Module]] = {}


def second_order_class(backbone_class: type[nn.Module]) -> type[nn.Module]:
    """The second-order subclass of a timm model class; the same object for the same class."""
    if backbone_class not in _classes:
        name, bases = f"SecondOrder{backbone_class.__name__}", (SecondOrderModel, backbone_class)
        _classes[backbone_class] = type(name, bases, {"__module__": backbone_class.__module__})
    return _classes[backbone_class]


def attach_head(model: nn.Module, head: SecondOrderHead, num_classes: int) -> None:
    """Turn a timm model built with ``num_classes=0, global_pool=''`` into a second-order one, in place."""
    model.__class__ = second_order_class(type(model))
    model.head = head
    _describe(model, num_classes)


def _describe(model: Any, num_classes: int) -> None:
    model.num_classes = num_classes
    model.head_hidden_size = model.head.num_features


def _new_instance(backbone_class: type[nn.Module]) -> nn.Module:
    made = second_order_class(backbone_class)
    return made.__new__(made)


def last_map(model: nn.Module, in_chans: int, size: tuple[int, int]) -> torch.Size:
    """Shape of what ``forward_head`` is left with when pooling and classifier are disabled, without computing it."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    parameter = next(model.parameters())
    was_training = model.training
    model.eval()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        x = torch.empty(1, in_chans, *size, device=parameter.device, dtype=parameter.dtype)
        shape = model.forward_head(model.forward_features(x), pre_logits=True).shape  # type: ignore[operator]
    model.train(was_training)
    return shape
