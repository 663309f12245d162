"""Turns a timm model into a second-order one, in place.

The instance gets a subclass of its class whose ``forward_head`` ends in the second-order head. The backbone's
state-dict keys, feature extraction, parameter groups and ``isinstance`` checks stay timm's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from timm.models import register_notrace_function
from torch import Tensor, nn

from ..architectures.clips import join_clips, mean_over_frames
from .backbones import Place
from .layer_groups import head_and_rest
from .state_dicts import prepare, refuse_plain_backbone

if TYPE_CHECKING:
    from .head import SecondOrderHead

# Leaves for torch.fx: they look at the shape.
for _function in (join_clips, mean_over_frames):
    register_notrace_function(_function)


class SecondOrderModel:
    """Mixed into the class of a timm model whose pooling and classifier are disabled."""

    head: SecondOrderHead
    layer_groups: str | None

    def get_classifier(self, name_only: bool = False) -> str | nn.Module:
        """The classifier, or its name."""
        name = f"{head_name(self)}.fc"
        return name if name_only else self.get_submodule(name)  # type: ignore[attr-defined]

    def reset_classifier(self, num_classes: int, global_pool: str | None = None, reset_other: bool = False) -> None:
        """Replace the classifier, and the pool when ``global_pool`` names another one ('' for none).

        ``reset_other`` leaves out the norm in front of the pool, as where timm prunes the stages before it.
        """
        reference = next(self.parameters())  # type: ignore[attr-defined]
        head = getattr(self, head_name(self))
        head.reset(num_classes, global_pool, reference.device, reference.dtype)
        if reset_other:
            head.norm = nn.Identity()
        describe(self, num_classes)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """torch's; with ``strict``, a backbone's weights without a head are refused in one line."""
        if strict:
            refuse_plain_backbone(self, head_name(self), state_dict)
        return super().load_state_dict(state_dict, strict, assign)  # type: ignore[misc]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's groups of layers; with ``layer_groups='head'`` the classifier and all the rest."""
        if self.layer_groups == "head":
            return head_and_rest(f"{head_name(self)}.fc")
        return super().group_matcher(coarse)  # type: ignore[misc]

    def __reduce_ex__(self, protocol: Any) -> tuple:
        # The class is made at run time: pickle and deepcopy find it again through the backbone's own class.
        return _new_instance, (_backbone_class(self), place_of(self), isinstance(self, TakesClips)), self.__dict__


class HeadAfter(SecondOrderModel):
    """The head takes the output of the backbone's ``forward_head`` without pooling and classifier."""

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, num_classes) for the backbone's features; the pooled vector with ``pre_logits``."""
        return self.head(super().forward_head(x, True), pre_logits)  # type: ignore[misc]


class HeadInstead(SecondOrderModel):
    """The head takes the backbone's features."""

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, num_classes) for the backbone's features; the pooled vector with ``pre_logits``."""
        return self.head(x, pre_logits)


class HeadBeside(SecondOrderModel):
    """The head takes the backbone's features; the name ``head`` belongs to some of the backbone's layers."""

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, num_classes) for the backbone's features; the pooled vector with ``pre_logits``."""
        return self.second_order_head(x, pre_logits)  # type: ignore[attr-defined]


class TakesClips:
    """Mixed into a second-order class whose input are clips; the backbone sees their frames."""

    frames: int

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes) for clips (B, T, C, H, W), or for their frames one after another, (B T, C, H, W)."""
        return super().forward(join_clips(x, self.frames))  # type: ignore[misc]


HEAD_NAMES = ("head", "second_order_head")
PLACES: dict[Place, type[SecondOrderModel]] = {"after": HeadAfter, "instead": HeadInstead, "beside": HeadBeside}
_classes: dict[Any, type[nn.Module]] = {}


def place_of(model: Any) -> Place:
    """Where a second-order model has its head."""
    return next(place for place, mixin in PLACES.items() if isinstance(model, mixin))


def head_name(model: Any) -> str:
    """The name of the head in a second-order model."""
    return HEAD_NAMES[isinstance(model, HeadBeside)]


def second_order_class(backbone_class: type[nn.Module], place: Place, clips: bool = False) -> type[nn.Module]:
    """The second-order subclass of a timm model class; the same object for the same arguments."""
    if (backbone_class, place, clips) not in _classes:
        mixins = (TakesClips, PLACES[place]) if clips else (PLACES[place],)
        body = {"__module__": backbone_class.__module__}
        _classes[backbone_class, place, clips] = type(
            f"SecondOrder{backbone_class.__name__}", (*mixins, backbone_class), body
        )
    return _classes[backbone_class, place, clips]


def attach_head(model: nn.Module, head: SecondOrderHead, num_classes: int, place: Place) -> None:
    """Turn a timm model built without classifier and pooling into a second-order one, in place."""
    model.__class__ = second_order_class(type(model), place, head.frames is not None)
    if head.frames is not None:
        model.frames = head.frames  # type: ignore[assignment]
    setattr(model, head_name(model), head)
    model.register_load_state_dict_pre_hook(prepare)
    describe(model, num_classes)


def describe(model: Any, num_classes: int) -> None:
    """Set what timm reads off a model about its classifier."""
    model.num_classes = num_classes
    model.head_hidden_size = getattr(model, head_name(model)).num_features


def _backbone_class(model: Any) -> type[nn.Module]:
    classes = type(model).__mro__
    return classes[classes.index(SecondOrderModel) + 1]


def _new_instance(backbone_class: type[nn.Module], place: Place, clips: bool = False) -> nn.Module:
    made = second_order_class(backbone_class, place, clips)
    return made.__new__(made)
