"""Weights of a second-order model: read once, the backbone's loaded by timm, the head's here; and what its
``load_state_dict`` takes besides its own keys, for ``checkpoint_path=``, ``--initial-checkpoint`` and ``--resume``.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from timm.models import generate_default_cfgs, get_pretrained_cfg, load_pretrained
from torch import Tensor, nn

from ..checkpoint_file import (
    COUNTERS,
    bare_keys,
    check_numpy,
    check_real_numbers,
    find_weights,
    read_checkpoint,
    weights_file,
)
from ..errors import OptionError, one_line
from .psrp import PART_OF_KEYS

_logger = logging.getLogger(__name__)
# What torch and timm raise for files that are no weights, or those of another network.
UNREADABLE = (
    OSError,
    EOFError,
    MemoryError,
    KeyError,
    AttributeError,
    RuntimeError,
    ValueError,
    pickle.UnpicklingError,
)
# Parts of a second-order head that no backbone has under the head's name, but for a classifier that is replaced.
HEAD_PARTS = ("global_pool", "hidden", "fc")
NUMPY_FILES = (".npz", ".npy")  # read by timm, without pickles
# Of the head in a second-order model; the second where the backbone has layers of the name of the first.
HEAD_NAMES = ("head", "second_order_head")
# How keys begin in the original repositories' checkpoints, and in no model here.
ORIGINAL_PARTS = (
    "features.",
    "module.",
    "representation.",
    "layer_reduce",
    "visual_tokens.",
    "bn1.running_subspace0",
)
WHERE = "the state dict"
# How keys of version 0.1's So-ViT began, and begin now.
SO_VIT = {
    "patch_embed.stem.": "patch_embed.backbone.stem.",
    "patch_embed.stages.": "patch_embed.backbone.stages.",
    "head.pool.": "head.global_pool.",
}


class WeightsError(OptionError, RuntimeError):
    """Weights of another network; a ``RuntimeError`` too, as ``load_state_dict`` raises it."""


def head_name(model: Any) -> str:
    """The name of the head in a second-order model."""
    return HEAD_NAMES[HEAD_NAMES[1] in model.__dict__.get("_modules", {})]


def description_without_weights(name: str, backbone: str, **changes: Any) -> Any:
    """The backbone's description under the name of a model that its weights are not those of."""
    cfg = get_pretrained_cfg(backbone)
    assert cfg is not None
    places = dict.fromkeys(("tag", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source"))
    return generate_default_cfgs({name: replace(cfg, url="", **{**places, **changes})})[name]


def read_weights(cfg: Any, cache_dir: Any) -> dict[str, Tensor] | None:
    """The tensors at the place that a timm description names: a file, a folder, a URL or a hub.

    Files and folders are read by the package's own reader, what has to be fetched by timm.

    Returns:
        The tensors; ``None`` for JAX's files (``.npz``), which timm's models read themselves.

    Raises:
        OptionError: for a place where nothing is, or nothing that can be read.
    """
    place = Path(cfg.file) if cfg.file else None
    if place is not None and not place.exists():
        raise OptionError(f"no weights at {str(place)!r}")
    of_jax = cfg.custom_load and str(cfg.file or cfg.url).endswith(NUMPY_FILES)
    if place is not None and not of_jax:
        file = weights_file(place) if place.is_dir() else place
        weights = find_weights(read_checkpoint(file), file).tensors
        rename_so_vit(weights)
        return weights
    if of_jax:
        if place is not None:
            check_numpy(place)
        return None
    fetched: dict[str, Tensor] = {}

    def keep(state_dict: dict[str, Tensor], _: nn.Module) -> dict[str, Tensor]:
        fetched.update(state_dict)
        return {}

    with one_line_errors(cfg):
        # An empty network: timm fetches the file, and has nothing to load it into.
        source = cfg.to_dict() | {"classifier": None, "first_conv": None, "custom_load": False}
        load_pretrained(nn.Module(), source, filter_fn=keep, cache_dir=cache_dir)
    return fetched


def check_psrp(weights: dict[str, Tensor], psrp: bool, source: str) -> None:
    """Raise if these are weights of a model with ``psrp``, and this is one without.

    Raises:
        OptionError: naming the source.
    """
    if not psrp and any(PART_OF_KEYS in key for key in weights):
        raise OptionError(f"the weights of {source} are those of a model with psrp=True, got psrp=False")


def without_new(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights but those of a second-order head and of what MP+ adds to blocks."""
    parts = tuple(f"{head}.{part}." for head in HEAD_NAMES for part in HEAD_PARTS)
    return {key: value for key, value in weights.items() if not key.startswith(parts) and PART_OF_KEYS not in key}


def load_head(model: nn.Module, weights: dict[str, Tensor], source: str, plain_classifier: str | None = None) -> None:
    """Load what fits the head, and log what does and what does not; a warning if nothing of a pool does.

    Args:
        model: the second-order model, whose backbone is loaded.
        weights: of the whole model, or of a plain backbone.
        source: where they come from, for the log.
        plain_classifier: name of a plain backbone's classifier, for a head that it fits (average pooling).
    """
    head = head_name(model)
    shapes = {key: value.shape for key, value in model.state_dict().items() if is_new(key, head)}
    for part in ("weight", "bias"):
        if plain_classifier and f"{plain_classifier}.{part}" in weights:
            weights = {f"{head}.fc.{part}": weights[f"{plain_classifier}.{part}"]} | weights
    fitting = {key: value for key, value in weights.items() if key in shapes and value.shape == shapes[key]}
    if f"{head}.fc.weight" not in fitting:  # a bias means nothing without its weight
        fitting.pop(f"{head}.fc.bias", None)
    model.load_state_dict(fitting, strict=False)
    if any(_is_of_a_pool(key) for key in weights) and not any(_is_of_a_pool(key) for key in fitting):
        _logger.warning("weights of %s: nothing of the pool in them fits this head", source)
    fresh = ", ".join(key for key in shapes if key not in fitting)
    _logger.info(
        "weights of %s: head: loaded %s; fresh %s", source, ", ".join(fitting) or "nothing", fresh or "nothing"
    )


def _is_of_a_pool(key: str) -> bool:
    return ".global_pool." in key and not key.endswith("num_batches_tracked")  # a number, which fits anywhere


def check_backbone_is_loaded(model: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Raise unless a tensor of the backbone is one of the weights, whatever timm has called it in between.

    Raises:
        OptionError: naming the source and the backbone's first tensor, or one with integers for real numbers.
    """
    head = head_name(model)
    backbone = {key: value for key, value in model.state_dict().items() if not is_new(key, head)}
    check_real_numbers(weights, backbone, source)
    for tensor in backbone.values():
        same_shape = [value for value in _tensors(weights) if value.shape == tensor.shape]
        if tensor.ndim > 1 and any(torch.equal(value.to(tensor), tensor) for value in same_shape):
            return
    raise OptionError(f"the weights of {source} fit no tensor of the backbone, whose first is {next(iter(backbone))!r}")


def _tensors(weights: dict[str, Any]) -> Iterator[Tensor]:
    for value in weights.values():
        if isinstance(value, dict):
            yield from _tensors(value)
        elif isinstance(value, Tensor):
            yield value


@contextmanager
def one_line_errors(cfg: Any) -> Iterator[None]:
    """Errors of loading the weights of a description as one line that names the file; for ``None`` errors as they are.

    Raises:
        OptionError: instead of what a missing or unreadable file raises.
    """
    try:
        yield
    except UNREADABLE as error:
        if cfg is None or isinstance(error, OptionError):
            raise
        place = str(cfg.file or cfg.url or cfg.hf_hub_id)
        raise OptionError(f"the weights at {place!r} cannot be loaded: {one_line(error)[:200]}") from error


def is_new(key: str, head: str) -> bool:
    """Whether a key is one of a second-order model's head, or of what MP+ adds to blocks: none of the backbone's."""
    return key.startswith(f"{head}.") or PART_OF_KEYS in key


def rename_so_vit(weights: dict[str, Any], prefix: str = "") -> None:
    """Give weights of version 0.1's So-ViT, which had a stem and two classifiers of its own, today's keys, in place."""
    if f"{prefix}patch_embed.stages.2.conv3.weight" not in weights:
        return
    for key in [key for key in weights if key.startswith(tuple(prefix + former for former in SO_VIT))]:
        former = next(former for former in SO_VIT if key.startswith(prefix + former))
        weights[prefix + SO_VIT[former] + key[len(prefix + former) :]] = weights.pop(key)
    first, second = (f"{prefix}head.{name}." for name in ("fc", "cls_fc"))
    if f"{second}weight" in weights:
        joined = [weights[f"{first}weight"], weights.pop(f"{second}weight")]
        weights[f"{first}weight"] = torch.cat(joined, dim=1)
        weights[f"{first}bias"] = weights[f"{first}bias"] + weights.pop(f"{second}bias")


def prepare(model: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Before weights are loaded, take prefixes of wrappers off their keys, in place.

    Raises:
        OptionError: for integers where the model has real numbers, and for weights of an original repository, saying
            how to convert them.
    """
    own = model.state_dict()
    for counter in COUNTERS:
        state_dict.pop(prefix + counter, None)
    stored = {key.removeprefix(prefix): key for key in state_dict if key.startswith(prefix)}
    original = next((key for key in stored if key.startswith(ORIGINAL_PARTS) and key not in own), None)
    bare = bare_keys(stored, WHERE, own)
    if any(key in own for key in bare):
        values = {key: state_dict.pop(stored[wrapped]) for key, wrapped in bare.items()}
        state_dict.update({prefix + key: value for key, value in values.items()})
        rename_so_vit(state_dict, prefix)
        check_real_numbers(values, own, WHERE)
    elif original is not None:
        raise WeightsError(
            f"these are weights of an original repository (there is {original!r}); convert them: "
            "python tools/convert.py FILE --to timm --out FOLDER"
        )


def refuse_plain_backbone(model: Any, head: str, state_dict: Mapping[str, Any]) -> None:
    """Raise for a backbone's weights without any of the head, which torch would miss one by one.

    Raises:
        WeightsError: saying how the backbone is loaded.
    """
    backbone = [key for key in model.state_dict() if not is_new(key, head)]
    given = bare_keys(state_dict, WHERE, backbone)
    if not any(is_new(key, head) for key in given) and all(key in given for key in backbone):
        raise WeightsError(
            "these are weights of a backbone without this head, which would stay random; begin with them by "
            "create_model(..., pretrained=FILE), or --pretrained --pretrained-path FILE of timm's scripts"
        )
