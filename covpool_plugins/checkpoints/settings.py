"""Settings that a file brings with it: only those of a list reach the constructor of a model."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from ..checkpoint_pickle import shown

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
