"""Weights for the head of a second-order model, and word of what was loaded and what is fresh."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from timm.models import load_pretrained
from torch import Tensor, nn

from ..checkpoint_file import find_weights, read_checkpoint
from ..errors import OptionError
from .subclass import HEAD_NAMES, head_name

_logger = logging.getLogger(__name__)
# What torch and timm raise for files that are no weights, or those of another network.
UNREADABLE = (OSError, EOFError, KeyError, AttributeError, RuntimeError, ValueError, pickle.UnpicklingError)
MOST_SAID = 200
WEIGHT_FILES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".tar")
NUMPY_FILES = (".npz", ".npy")  # read by timm, without pickles
# How keys begin in the original repositories' checkpoints, and in no model here.
ORIGINAL_PARTS = (
    "features.",
    "module.",
    "representation.",
    "layer_reduce",
    "visual_tokens.",
    "bn1.running_subspace0",
)
_timm_logger = logging.getLogger("timm.models._builder")


def load_head(
    model: nn.Module, cfg: dict[str, Any], num_classes: int, cache_dir: Any, plain_classifier: str | None = None
) -> tuple[list[str], list[str]]:
    """Second look at the weights for what fits the head; timm has loaded the backbone and left the rest.

    Args:
        model: the second-order model.
        cfg: the description of the weights.
        num_classes: of the model.
        cache_dir: timm's.
        plain_classifier: name of a plain backbone's classifier, for a head that it fits (average pooling).

    Returns:
        The keys of the head that were loaded, and those of the head that the weights have.
    """
    head = head_name(model)
    wanted = {f"{head}.{key}": value.shape for key, value in model.get_submodule(head).state_dict().items()}
    loaded: list[str] = []
    held: list[str] = []

    def keep_fitting(state_dict: dict[str, Tensor], _: nn.Module) -> dict[str, Tensor]:
        for part in ("weight", "bias"):
            if plain_classifier and f"{plain_classifier}.{part}" in state_dict:
                state_dict.setdefault(f"{head}.fc.{part}", state_dict[f"{plain_classifier}.{part}"])
        held.extend(k for k in state_dict if k.startswith(f"{head}."))
        fitting = {k: v for k, v in state_dict.items() if k in wanted and v.shape == wanted[k]}
        if f"{head}.fc.weight" not in fitting:  # a bias means nothing without its weight
            fitting.pop(f"{head}.fc.bias", None)
        loaded.extend(fitting)
        return model.state_dict() | fitting

    cfg = cfg | {"classifier": None, "first_conv": None}
    in_chans = (cfg.get("input_size") or (3,))[0]  # that of the weights: the backbone is loaded, nothing is converted
    load_pretrained(model, cfg, num_classes, in_chans, filter_fn=keep_fitting, cache_dir=cache_dir)
    return loaded, held


def ask_to_convert(model: nn.Module) -> None:
    """Let a model refuse integers among weights, and say how to convert those of an original repository."""
    model.register_load_state_dict_pre_hook(_refuse_other_weights)


def _refuse_other_weights(model: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    own = model.state_dict()
    for key, value in state_dict.items():
        weight = own.get(key.removeprefix(prefix))
        if weight is not None and weight.is_floating_point() and not value.is_floating_point():
            raise OptionError(f"{key!r} is of {value.dtype}, the model needs {weight.dtype}")
        if key.startswith(tuple(prefix + part for part in ORIGINAL_PARTS)) and key.removeprefix(prefix) not in own:
            raise OptionError(
                f"these are weights of an original repository (there is {key!r}); convert them: "
                "python tools/convert.py FILE --to timm --out FOLDER"
            )


def _is_of_a_pool(key: str) -> bool:
    return ".global_pool." in key and not key.endswith("num_batches_tracked")  # a number, which fits anywhere


def _check_file(path: Path) -> None:
    """Have the package's reader look at a file, or at that in a folder, before timm reads it."""
    if path.is_dir():
        files = [file for file in path.iterdir() if file.suffix in WEIGHT_FILES]
        for file in [file for file in files if file.stem == "model"] or files:
            _check_file(file)
    elif path.suffix not in NUMPY_FILES:
        find_weights(read_checkpoint(path), path)


@contextmanager
def one_line_errors(cfg: Any) -> Iterator[None]:
    """Errors of loading the weights of a description as one line that names the file; for ``None`` errors as they are.

    Raises:
        OptionError: instead of what a missing or unreadable file raises.
    """
    if cfg is not None and cfg.file and not Path(cfg.file).exists():
        raise OptionError(f"no weights at {str(cfg.file)!r}")
    if cfg is not None and cfg.file:
        _check_file(Path(cfg.file))
    try:
        yield
    except UNREADABLE as error:
        if cfg is None or isinstance(error, OptionError):
            raise
        said = " ".join(str(error).split())[:MOST_SAID] or type(error).__name__
        raise OptionError(
            f"the weights at {str(cfg.file or cfg.url or cfg.hf_hub_id)!r} cannot be loaded: {said}"
        ) from error


@contextmanager
def watch_loading() -> Iterator[list[str]]:
    """The keys that timm's log says are missing while it loads a backbone.

    Its warning of unexpected keys is kept back if all of them are the head's, which is loaded afterwards.
    """
    missing: list[str] = []
    level = _timm_logger.level
    threshold = _timm_logger.getEffectiveLevel()

    def listen(record: logging.LogRecord) -> bool:
        said = record.getMessage()
        keys = said.partition("(")[2].partition(")")[0].split(", ")
        if said.startswith("Missing keys ("):
            missing.extend(keys)
        elif said.startswith("Unexpected keys (") and all(key.split(".")[0] in HEAD_NAMES for key in keys):
            return False
        return record.levelno >= threshold

    disabled = logging.root.manager.disable
    threshold = max(threshold, disabled + 1)
    logging.disable(logging.NOTSET)
    _timm_logger.addFilter(listen)
    _timm_logger.setLevel(min(threshold, logging.INFO))
    try:
        yield missing
    finally:
        logging.disable(disabled)
        _timm_logger.setLevel(level)
        _timm_logger.removeFilter(listen)


def report(model: nn.Module, said_missing: list[str], loaded: list[str], held: list[str], source: str) -> None:
    """One line: what of the model comes from the source, and what is fresh; a warning if a head in it was of no use.

    Raises:
        OptionError: if nothing of the backbone does.
    """
    head = head_name(model)
    keys = list(model.state_dict())
    backbone = [key for key in keys if not key.startswith(f"{head}.")]
    missing = set(said_missing)
    # PyTorch does not count these as missing.
    missing |= {key.replace("running_mean", "num_batches_tracked") for key in missing}
    taken = [key for key in backbone if key not in missing]
    if backbone and not taken:
        raise OptionError(f"the weights of {source} fit no tensor of the backbone, whose first is {backbone[0]!r}")
    fresh = [key for key in keys if key not in taken and key not in loaded]
    if any(_is_of_a_pool(key) for key in held) and not any(_is_of_a_pool(key) for key in loaded):
        _logger.warning("weights of %s: nothing of the pool in them fits this head", source)
    _logger.info(
        "weights of %s: loaded %d of the backbone's %d tensors (%s); head: loaded %s; fresh %s",
        source,
        len(taken),
        len(backbone),
        ", ".join(dict.fromkeys(key.split(".")[0] for key in taken)),
        ", ".join(loaded) or "nothing",
        ", ".join(fresh) or "nothing",
    )
