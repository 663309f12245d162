"""What network a checkpoint belongs to, as timm builds it, and which settings in a file may reach its constructor."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
from torch import nn

from ..checkpoint_pickle import shown
from ..errors import OptionError, one_line
from ..timm_plugin import second_order_models

TOKEN_POOL = "mpa"  # of So-ViT
# Widths, rates, and options of pools and norms. None of them is a path, an address, a callable or a switch to load.
ALLOWED = (
    *("backbone", "head", "head_kwargs", "reduce_channels", "hidden_features", "last_stride", "fuse_class_token"),
    *("psrp", "final_norm"),
    *("layer_groups", "frames", "global_pool", "whiten", "norm_kwargs", "batch_norm", "output_stride", "in_chans"),
    *("img_size", "patch_size", "window_size", "embed_dim", "num_heads", "mlp_ratio", "class_token", "init_values"),
    *("drop_rate", "drop_path_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate"),
)
OPTIONS = ("head_kwargs", "norm_kwargs")  # dictionaries
LISTS = ("hidden_features",)
MOST, LONGEST = 1 << 16, 64


@dataclass(frozen=True)
class Network:
    """A timm model, ours or timm's own.

    Args:
        backbone: name of the timm model; with ``head=None`` it is the whole model.
        num_classes: outputs of the classifier.
        head: name of the second-order head.
        head_kwargs: its options.
        last_stride: 1 for a last stage without its stride.
        hidden_features: widths of the layers between head and classifier.
        backbone_kwargs: what else the backbone takes.
    """

    backbone: str
    num_classes: int
    head: str | None = None
    head_kwargs: dict[str, Any] = field(default_factory=dict)
    last_stride: int | None = None
    hidden_features: tuple[int, ...] = ()
    backbone_kwargs: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of_model(cls, name: str, num_classes: int, arguments: dict[str, Any]) -> Network:
        """From the name and the arguments of a registered model."""
        given = dict(arguments)
        parts = {model: (backbone, head) for model, backbone, head in second_order_models.registered_models()}
        if name == "second_order":
            backbone, head = given.pop("backbone", "resnet18"), given.pop("head", "svdpade")
        elif name in parts:
            backbone, head = parts[name]
        else:
            return cls(name, num_classes, backbone_kwargs=given)
        head_kwargs = dict(given.pop("head_kwargs", None) or {})
        if "reduce_channels" in given:
            head_kwargs["reduce_channels"] = given.pop("reduce_channels") or None
        hidden = tuple(given.pop("hidden_features", ()))
        return cls(backbone, num_classes, head, head_kwargs, given.pop("last_stride", None), hidden, given)

    @property
    def model_name(self) -> str:
        """What :func:`timm.create_model` takes."""
        name = f"{self.backbone}_{self.head}"
        if self.head is None:
            return self.backbone
        return name if name in second_order_models.default_cfgs else "second_order"

    @property
    def model_kwargs(self) -> dict[str, Any]:
        """Arguments for :func:`timm.create_model`, without the number of classes."""
        given = dict(self.backbone_kwargs)
        if self.head is not None:
            given |= {"backbone": self.backbone, "head": self.head} if self.model_name == "second_order" else {}
            given |= {"head_kwargs": dict(self.head_kwargs)} if self.head_kwargs else {}
            given |= {"hidden_features": list(self.hidden_features)} if self.hidden_features else {}
            given |= {"last_stride": self.last_stride} if self.last_stride else {}
        return given

    def build(self, device: str | None = None) -> nn.Module:
        """The model with fresh weights; on the ``meta`` device without any.

        Raises:
            OptionError: for an argument that the model does not have.
        """
        try:
            with torch.device(device or "cpu"):
                return timm.create_model(self.model_name, num_classes=self.num_classes, **self.model_kwargs)
        except (ValueError, OSError):
            raise
        except Exception as error:  # timm raises many kinds for an argument that a model does not have or not allow
            raise OptionError(f"{self.model_name}: {one_line(error)}") from None


def allowed_settings(settings: Any) -> tuple[dict[str, Any], list[str]]:
    """The settings of a file that may be used, and a note for each of the others.

    Args:
        settings: of the model, as the file has them.
    """
    if not isinstance(settings, Mapping):
        return {}, [f"setting of the model not used: {shown(settings)} instead of names and values"]
    used = {name: value for name, value in settings.items() if _is_allowed(name, value)}
    notes = [f"setting {shown(name)} of the file not used" for name in settings if name not in used]
    return used, notes


def _is_allowed(name: Any, value: Any) -> bool:
    if name not in ALLOWED or (isinstance(value, dict) != (name in OPTIONS) and value is not None):
        return False
    if name in OPTIONS:
        options = value or {}
        return len(options) <= LONGEST and all(_is_word(key) and _is_plain(part) for key, part in options.items())
    return _is_plain(value) and (name not in LISTS or isinstance(value, (list, tuple)))


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return len(value) <= LONGEST and all(_is_number_or_word(part) for part in value)
    return _is_number_or_word(value)


def _is_number_or_word(value: Any) -> bool:
    if value is None or isinstance(value, bool):
        return True
    if isinstance(value, (int, float)):
        return math.isfinite(value) and abs(value) <= MOST if isinstance(value, float) else abs(value) <= MOST
    return _is_word(value)


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[\w.+-]{0,64}", value) is not None
