"""Turns a timm model into a second-order one, in place.

The instance gets a subclass of its class whose ``forward_head`` ends in the second-order head. The backbone's
state-dict keys, feature extraction, parameter groups and ``isinstance`` checks stay timm's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from ..errors import OptionError
from .backbones import Place
from .clips import join_clips
from .head import SecondOrderHead
from .weights import HEAD_NAMES, head_name, prepare, refuse_plain_backbone

torch.fx.wrap("join_clips")  # a leaf for any tracer: it looks at the shape

# Registered names that are no backbones.
SECOND_ORDER_NAMES: set[str] = set()
# Arguments that do not describe the network, but its place, its weights or what the head knows.
NOT_SAVED = ("device", "dtype", "pretrained_model_args", "pretrained_strict", "num_classes", "global_pool", "drop_rate")
OF_THE_HEAD = ("backbone", "head", "head_kwargs", "reduce_channels")
# Arguments of ``create_model`` that say nothing.
DEFAULTS: dict[str, Any] = dict(fuse_class_token=False, psrp=False, final_norm=True, hidden_features=[], head_kwargs={})


# Groups for layer decay besides timm's own: the classifier, or all that a pretrained backbone does not bring.
LAYER_GROUPS = (None, "head", "new")


def apart_from_rest(pattern: str) -> dict[str, str]:
    """What ``model.group_matcher()`` has to return for two groups: parameters whose names begin so, and all the rest.

    timm multiplies the learning rate of a parameter by ``layer_decay ** (last group - its group)``: by 1 for those and
    by ``layer_decay`` for the rest. The fine-tuning recipes of the papers, which give the classifier k times the rate
    of the rest, are ``lr = k * rate`` and ``layer_decay = 1 / k``; ``layer_decay_no_opt_scale`` above ``layer_decay``
    freezes the rest. A model without such parameters (``num_classes=0``) gets one group, and timm warns that layer
    decay has no effect.
    """
    return {"rest": f"^(?!{pattern})"}  # names without a match are the last group


class SecondOrderModel:
    """Mixed into the class of a timm model whose pooling and classifier are disabled.

    The name of the backbone's classifier (``fc`` of a ResNet, ``classifier`` of an EfficientNet, ``head`` of a ViT)
    stands for the head's: it can be read, replaced and frozen as on the backbone.

    Attributes:
        plain_classifier: that name, if it is one of the model's own attributes.
        second_order_arguments: what :func:`covpool_plugins.create_model` was given, but for the head's options.
    """

    head: SecondOrderHead
    layer_groups: str | None
    plain_classifier: str | None
    second_order_arguments: dict[str, Any]
    pretrained_cfg: dict[str, Any]
    head_hidden_size: int

    def __setattr__(self, name: str, value: Any) -> None:
        own = head_name(self)
        head = self.__dict__.get("_modules", {}).get(own)
        if head is None or name not in (own, self.plain_classifier, "drop_rate"):
            super().__setattr__(name, value)
        elif name == "drop_rate":
            head.dropout.p = float(value)
        elif any(isinstance(module, SecondOrderHead) for module in value.modules()):
            super().__setattr__(name, value)
        elif name == self.plain_classifier:
            _check_width(name, value, head.num_features)
            head.fc = value
        else:
            raise OptionError(
                f"{own} holds pool and classifier, got {type(value).__name__}: assign {own}.fc or reset_classifier(...)"
            )

    @property
    def num_classes(self) -> int:
        """Outputs of the classifier; 0 without one. For a classifier without ``out_features`` what was set last."""
        classifier = getattr(self, head_name(self)).fc
        if isinstance(classifier, nn.Identity):
            return 0
        widths = [getattr(module, "out_features", None) for module in (classifier, *reversed([*classifier.modules()]))]
        return next((width for width in widths if isinstance(width, int)), self.__dict__.get("num_classes", 0))

    @num_classes.setter
    def num_classes(self, value: int) -> None:
        self.__dict__["num_classes"] = value

    def get_classifier(self, name_only: bool = False) -> str | nn.Module:
        """The classifier, or its name."""
        name = f"{head_name(self)}.fc"
        return name if name_only else self.get_submodule(name)  # type: ignore[attr-defined]

    def new_parameters(self) -> list[nn.Parameter]:
        """The parameters that no pretrained backbone has: of reduction, pool, hidden layers, classifier and ``psrp``.

        Examples:
            >>> from covpool_plugins import create_model
            >>> model = create_model("resnet10t", "isqrt", reduce_channels=8).requires_grad_(False)
            >>> for parameter in model.new_parameters():
            ...     _ = parameter.requires_grad_()
            >>> [name for name, parameter in model.named_parameters() if parameter.requires_grad][-1]
            'head.fc.bias'
        """
        new = re.compile(_new_names(head_name(self)))
        return [parameter for name, parameter in self.named_parameters() if new.match(name)]  # type: ignore[attr-defined]

    def reset_classifier(self, num_classes: int, global_pool: str | None = None, reset_other: bool = False) -> None:
        """Replace the classifier, and the pool when ``global_pool`` names another one ('' for none).

        ``reset_other`` leaves out the norm in front of the pool, as where timm prunes the stages before it.
        """
        reference = next(self.parameters())  # type: ignore[attr-defined]
        head = getattr(self, head_name(self))
        head.reset(num_classes, global_pool, reference.device, reference.dtype)
        if reset_other:
            head.norm = nn.Identity()
        describe(self)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """torch's; with ``strict``, a backbone's weights without a head are refused in one line."""
        if strict:
            refuse_plain_backbone(self, head_name(self), state_dict)
        return super().load_state_dict(state_dict, strict, assign)  # type: ignore[misc]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's groups of layers, or the two that ``layer_groups`` names."""
        head = head_name(self)
        if self.layer_groups == "head":
            return apart_from_rest(rf"{head}\.fc\.")
        if self.layer_groups == "new":
            return apart_from_rest(_new_names(head))
        return super().group_matcher(coarse)  # type: ignore[misc]

    @property
    def _model_args(self) -> dict[str, Any]:
        """The arguments that build this model again under its architecture's name; timm saves them for hubs."""
        return reconstruction(self)[1]

    @_model_args.setter
    def _model_args(self, value: dict[str, Any]) -> None:  # timm adds what create_model is given, and new image sizes
        changes = {k: v for k, v in value.items() if k not in (*NOT_SAVED, *OF_THE_HEAD)}
        self.second_order_arguments = self.second_order_arguments | changes

    def __reduce_ex__(self, protocol: Any) -> tuple:
        # The class is made at run time: pickle and deepcopy find it again through the backbone's own class.
        made_of = (_backbone_class(self), place_of(self), isinstance(self, TakesClips), self.plain_classifier)
        return _new_instance, made_of, self.__dict__


class HeadAfter(SecondOrderModel):
    """The head takes the output of the backbone's ``forward_head`` without pooling and classifier."""

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, num_classes) for the backbone's features; the pooled vector with ``pre_logits``."""
        return self.head(super().forward_head(x, True), pre_logits)  # type: ignore[misc]


class HeadInstead(SecondOrderModel):
    """The head takes the backbone's features."""

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, num_classes) for the backbone's features; the pooled vector with ``pre_logits``."""
        return getattr(self, head_name(self))(x, pre_logits)

    @property
    def drop_rate(self) -> float:
        """Dropout before the classifier. A backbone whose own ``forward_head`` still runs would drop out by it too."""
        return getattr(self, head_name(self)).dropout.p


class HeadBeside(HeadInstead):
    """The head takes the backbone's features; the name ``head`` belongs to some of the backbone's layers."""


class TakesClips:
    """Mixed into a second-order class whose input are clips; the backbone sees their frames."""

    frames: int

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes) for clips (B, T, C, H, W), or for their frames one after another, (B T, C, H, W)."""
        return super().forward(join_clips(x, self.frames))  # type: ignore[misc]


PLACES: dict[Place, type[SecondOrderModel]] = {"after": HeadAfter, "beside": HeadBeside, "instead": HeadInstead}
_classes: dict[Any, type[nn.Module]] = {}


def place_of(model: Any) -> Place:
    """Where a second-order model has its head."""
    return next(place for place, mixin in PLACES.items() if isinstance(model, mixin))


def _new_names(head: str) -> str:
    """The pattern of the names of parameters that no pretrained backbone has."""
    return rf"(?:{head}\.(?!norm\.)|.*\.psrp\.)"


def second_order_class(
    backbone_class: type[nn.Module], place: Place, clips: bool = False, plain_classifier: str | None = None
) -> type[nn.Module]:
    """The second-order subclass of a timm model class; the same object for the same arguments."""
    key = (backbone_class, place, clips, plain_classifier)
    if key not in _classes:
        mixins = (TakesClips, PLACES[place]) if clips else (PLACES[place],)
        body: dict[str, Any] = {"__module__": backbone_class.__module__, "plain_classifier": plain_classifier}
        if plain_classifier and plain_classifier not in HEAD_NAMES:
            body[plain_classifier] = property(SecondOrderModel.get_classifier)
        _classes[key] = type(f"SecondOrder{backbone_class.__name__}", (*mixins, backbone_class), body)
    return _classes[key]


def attach_head(model: nn.Module, backbone: str, head: SecondOrderHead, place: Place) -> None:
    """Turn the timm model of that name, built without classifier and pooling, into a second-order one, in place."""
    classifier = _plain_classifier(model, backbone)
    if classifier not in (None, "head"):
        del model._modules[classifier]  # type: ignore[arg-type]
    model.__dict__.pop("_model_args", None)
    model.__class__ = second_order_class(type(model), place, head.frames is not None, classifier)
    if head.frames is not None:
        model.frames = head.frames  # type: ignore[assignment]
    setattr(model, HEAD_NAMES[place == "beside"], head)
    model.register_load_state_dict_pre_hook(prepare)


def describe(model: Any) -> None:
    """Set what timm reads off a model about its head."""
    model.head_hidden_size = getattr(model, head_name(model)).num_features
    model.pretrained_cfg["architecture"] = reconstruction(model)[0]


def reconstruction(model: Any) -> tuple[str, dict[str, Any]]:
    """The registered name to build a second-order model by, and its arguments, but for the number of classes."""
    head = getattr(model, head_name(model))
    pool_type = head.pool_type or head.own_pool_type
    arguments = {k: v for k, v in model.second_order_arguments.items() if k not in NOT_SAVED}
    backbone = arguments.pop("backbone")
    arguments["head_kwargs"] = head.options_for(pool_type)
    if not head.pool_type:
        arguments["global_pool"] = ""
    arguments = {k: v for k, v in arguments.items() if v is not None and (k not in DEFAULTS or v != DEFAULTS[k])}
    name = f"{backbone}_{pool_type}"
    if name in SECOND_ORDER_NAMES:
        return name, arguments
    return "second_order", {"backbone": backbone, "head": pool_type, **arguments}


def _plain_classifier(model: nn.Module, backbone: str) -> str | None:
    """The attribute under which a backbone built without classifier has had one."""
    names = getattr(get_pretrained_cfg(backbone), "classifier", None) or ()
    name = names if isinstance(names, str) else next(iter(names), "")
    return name if isinstance(model._modules.get(name), nn.Identity) else None


def _check_width(name: str, classifier: nn.Module, width: int) -> None:
    if isinstance(classifier, nn.Linear) and classifier.in_features not in (0, width):  # a lazy one has 0
        raise OptionError(
            f"{name}: the classifier takes vectors of {width} numbers (model.get_classifier().in_features), "
            f"got Linear(in_features={classifier.in_features})"
        )


def _backbone_class(model: Any) -> type[nn.Module]:
    classes = type(model).__mro__
    return classes[classes.index(SecondOrderModel) + 1]


def _new_instance(
    backbone_class: type[nn.Module], place: Place, clips: bool = False, plain_classifier: str | None = None
) -> nn.Module:
    made = second_order_class(backbone_class, place, clips, plain_classifier)
    return made.__new__(made)
