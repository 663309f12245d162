"""From a file to the weights of one of our models, with an account of every tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

from ..checkpoint_file import CheckpointError, Progress, find_weights, read_checkpoint
from ..checkpoint_pickle import shown
from ..errors import OptionError
from ..pooling import create_pool
from .folders import DESCRIPTION, LEFT_OUT, read_json, read_record, weights_file
from .layouts import Hints, Plan, recognise
from .network import Network
from .original_state import OriginalState, unwrap
from .placement import Dropped
from .settings import allowed_settings

MOST_NAMED = 3
FRESH_SEED = 0
DATA = ("mean", "std", "crop_pct", "interpolation")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos", "random")
MOST_CLASSES = 1 << 20


class KeyReport(NamedTuple):
    """What became of a tensor: the key in the file, the key in our model, and a remark where there is one.

    A tensor that was dropped has no second key, one that was made has no first.
    """

    original: str | None
    ours: str | None
    shape: tuple[int, ...]
    remark: str = ""
    part: int | None = None
    transposed: bool = False


@dataclass(frozen=True)
class Converted:
    """The weights of a checkpoint as those of one of our models.

    ``timm.create_model(model_name, **model_kwargs)`` builds the model, and ``create_model()`` loads the weights too.

    Args:
        model_name: a registered timm model.
        model_kwargs: its arguments.
        state_dict: all its weights; they are read from the file when they are used, so it has to stay as it is.
        source: what kind of checkpoint it was.
        notes: what was decided, and why; what was guessed.
        network: the model in parts.
        keys: what became of every tensor.
        left_out: tensors without a place, by their keys in the file.
        original: the checkpoint without its tensors.
        data: what of timm's description of the data (``mean``, ``std``, ...) differs from the backbone's own.
    """

    model_name: str
    model_kwargs: dict[str, Any]
    state_dict: dict[str, Tensor]
    source: str
    notes: list[str]
    network: Network
    keys: list[KeyReport] = field(repr=False)
    left_out: dict[str, Tensor] = field(default_factory=dict, repr=False)
    original: dict[str, Any] = field(default_factory=dict, repr=False)
    data: dict[str, Any] = field(default_factory=dict)

    def create_model(self) -> nn.Module:
        """The model with the weights, in eval mode.

        It shares its memory with ``state_dict``.
        """
        model = self.network.build("meta")
        model.load_state_dict(self.state_dict, assign=True)
        if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):  # buffers outside the state dict
            model = self.network.build()
            model.load_state_dict(self.state_dict)
        return model.eval()


def load_original(
    path: Path | str,
    *,
    arch: str | None = None,
    head: str | None = None,
    averaged: bool = True,
    progress: Progress = lambda _: None,
) -> Converted:
    """Read a checkpoint of one of the original repositories, of torchvision or of timm.

    Nothing in the file is run, and a file that needs it is refused. What the checkpoint belongs to is told from its
    keys and shapes; where several networks share them, ``notes`` say which was taken and why.

    Args:
        path: a file of ``torch.save`` or safetensors, or a folder: of timm, as ``tools/convert.py --to timm``
            writes them, or of Accelerate and Hugging Face's tools.
        arch: the architecture, in timm's or the repositories' name (``mpncovresnet50``), where the keys leave it open.
        head: one of our heads, where the keys leave it open; a plain ResNet gets it with fresh weights.
        averaged: take averaged weights (EMA), where the file has some.
        progress: called with numbers of bytes as they are checked.

    Raises:
        FileNotFoundError, OSError: for a file that is not there or cannot be read.
        CheckpointError: for a file that is no checkpoint, is damaged, or holds more than tensors and plain data.
        OptionError: for a checkpoint of an unknown kind, with tensors that nobody knows or without some that the model
            needs, or a hint that it does not fit.

    Examples:
        >>> torch.save(timm.create_model("resnet18", num_classes=10).state_dict(), "resnet18.pth")
        >>> converted = load_original("resnet18.pth", head="isqrt")
        >>> converted.model_name, converted.model_kwargs["num_classes"]
        ('resnet18_isqrt', 10)
    """
    path = Path(path)
    if path.is_dir() and "architecture" in read_json(path / DESCRIPTION):
        if arch is not None or head is not None:
            raise OptionError(f"{path} says itself what it holds; arch and head are for files that do not")
        return _read_folder(path)
    if path.is_dir():
        path = weights_file(path)
    state = unwrap(read_checkpoint(path, progress), path, averaged)
    plan = recognise(state, Hints(arch, head))
    model = plan.network.build("meta")
    wanted = model.state_dict()
    weights, keys, left_out = _placed(state, plan, wanted)
    made = _made(wanted, weights, model, plan)
    keys += [KeyReport(None, key, tuple(tensor.shape), remark) for key, (tensor, remark) in made.items()]
    weights |= {key: tensor for key, (tensor, _) in made.items()}
    notes = [*plan.notes, *_notes(state, weights)]
    arguments = {"num_classes": plan.network.num_classes, **plan.network.model_kwargs}
    ordered = {key: weights[key] for key in wanted}
    original = _description(state, plan, keys)
    return Converted(
        plan.network.model_name,
        arguments,
        ordered,
        plan.source,
        notes,
        plan.network,
        keys,
        left_out,
        original,
        plan.data,
    )


def _placed(
    state: OriginalState, plan: Plan, wanted: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[KeyReport], dict[str, Tensor]]:
    """The weights that have a place in our model, what became of each, and those that have none."""
    parts: dict[str, dict[int | None, Tensor]] = {}
    keys: list[KeyReport] = []
    left_out: dict[str, Tensor] = {}
    unknown: list[str] = []
    for key, tensor in state.tensors.items():
        found, shape = plan.place(key), tuple(tensor.shape)
        if isinstance(found, Dropped):
            left_out[state.keys[key]] = tensor
            keys.append(KeyReport(state.keys[key], None, shape, f"dropped: {found.reason}"))
        elif found is None or found.key not in wanted:
            unknown.append(f"{state.keys[key]} {list(shape)}")
        else:
            parts.setdefault(found.key, {})[found.part] = tensor.mT if found.transposed else tensor
            keys.append(KeyReport(state.keys[key], found.key, shape, "transposed" * found.transposed, *found[1:]))
    if unknown:
        raise OptionError(
            f"{state.file_name}: {_some(unknown)} would be lost: {plan.network.model_name} has no place for it, and no "
            "reason is known to drop it"
        )
    return {key: _joined(key, pieces, wanted[key], state) for key, pieces in parts.items()}, keys, left_out


def _joined(key: str, pieces: dict[int | None, Tensor], wanted: Tensor, state: OriginalState) -> Tensor:
    """One tensor of our model from its parts, in our shape."""
    numbered = sorted(index for index in pieces if index is not None)
    if numbered and (None in pieces or numbered != list(range(len(numbered)))):
        raise OptionError(f"{state.file_name}: the parts of {key!r} are not complete")
    if numbered and len({tuple(piece.shape) for piece in pieces.values()}) != 1:
        raise OptionError(f"{state.file_name}: the parts of {key!r} differ in shape")
    tensor = torch.stack([pieces[index] for index in numbered]) if numbered else pieces[None]
    if wanted.ndim == 1 and tensor.numel() == len(wanted) == max(tensor.shape, default=0):
        tensor = tensor.reshape(-1)  # whitening layers keep vectors as columns
    elif wanted.ndim == tensor.ndim + 1 == 3 and wanted.shape[0] == 1:
        tensor = tensor.unsqueeze(0)  # the subspace of a single group
    if tensor.shape != wanted.shape:
        raise OptionError(
            f"{state.file_name}: {key!r} would be {list(tensor.shape)}, the model needs {list(wanted.shape)}"
        )
    if key.endswith(".num_batches_tracked"):
        return tensor.to(wanted.dtype)  # scripts that halve every tensor halve these
    if tensor.is_floating_point() != wanted.is_floating_point() or tensor.is_complex():
        raise OptionError(f"{state.file_name}: {key!r} is of {tensor.dtype}, the model needs {wanted.dtype}")
    return tensor


def _made(
    wanted: Mapping[str, Tensor], weights: Mapping[str, Tensor], model: Any, plan: Plan
) -> dict[str, tuple[Tensor, str]]:
    """What a checkpoint need not have: counters, hashes that follow from a seed, a fresh head that was asked for."""
    missing = [key for key in wanted if key not in weights]
    made: dict[str, tuple[Tensor, str]] = {}
    for key in missing:
        if key.endswith(".num_batches_tracked"):
            made[key] = torch.tensor(0), "made: the file has no counter"
    if plan.fresh:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(FRESH_SEED)
            fresh = plan.network.build().state_dict()
        made |= {key: (fresh[key], "made: fresh") for key in missing if key.startswith("head.")}
    elif any(key not in made for key in missing) and plan.network.head is not None:
        constants = _constants(model.head)
        made |= {key: (constants[key], "made: follows from its seed") for key in missing if key in constants}
    lost = [f"{key} {list(wanted[key].shape)}" for key in missing if key not in made]
    if lost:
        raise OptionError(f"the checkpoint lacks {_some(lost)}, which {plan.network.model_name} needs")
    return made


def _constants(head: Any) -> dict[str, Tensor]:
    """Buffers of a pool that are drawn when it is made."""
    pool = create_pool(head.pool_type, head.in_features, **head.layout | head.options_for(head.pool_type))
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    return {f"head.global_pool.{name}": b for name, b in pool.named_buffers() if name.split(".")[-1] not in statistics}


def _notes(state: OriginalState, weights: Mapping[str, Tensor]) -> list[str]:
    broken = [key for key, tensor in weights.items() if tensor.is_floating_point() and not tensor.sum().isfinite()]
    notes = [f"{_some(broken)}: NaN or infinite"] if broken else []
    return notes + [f"left out of the file: {name} ({reason})" for name, reason in state.left_out.items()]


def _description(state: OriginalState, plan: Plan, keys: list[KeyReport]) -> dict[str, Any]:
    """What is needed besides our weights to write the checkpoint again; JSON can express it."""
    return {
        "source": plan.source,
        "file_name": state.file_name,
        "container": state.container,
        "plain": state.plain,
        "settings": {name: value for name, value in state.settings.items() if isinstance(value, str)},
        "keys": [[row.original, row.ours, row.part, row.transposed, list(row.shape)] for row in keys if row.original],
    }


def _some(names: list[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def _read_folder(path: Path) -> Converted:
    """A folder that the conversion has written, or any that timm loads by ``local-dir:``."""
    config = read_json(path / DESCRIPTION)
    name, classes = config.get("architecture"), config.get("num_classes")
    if not isinstance(name, str) or not timm.is_model(name):
        raise CheckpointError(f"{path / DESCRIPTION} names no model of timm: architecture is {shown(name)}")
    if type(classes) is not int or not 0 <= classes <= MOST_CLASSES:
        raise CheckpointError(f"{path / DESCRIPTION} is damaged: num_classes is {shown(classes)}")
    arguments, notes = allowed_settings(config.get("model_args") or {})
    network = Network.of_model(name, classes, arguments)
    file = weights_file(path)
    weights = find_weights(read_checkpoint(file), file)[1]
    wanted = network.build("meta").state_dict()
    for key in {**wanted, **weights}:
        if key not in weights or key not in wanted or weights[key].shape != wanted[key].shape:
            raise CheckpointError(f"{file}: {shown(key)} does not fit {name}")
    left_out = read_checkpoint(path / LEFT_OUT) if (path / LEFT_OUT).exists() else {}
    keys = [KeyReport(key, key, tuple(tensor.shape)) for key, tensor in weights.items()]
    return Converted(
        network.model_name,
        {"num_classes": classes, **network.model_kwargs},
        {key: weights[key] for key in wanted},
        "timm folder",
        notes,
        network,
        keys,
        left_out,
        read_record(path),
        _described_data(config.get("pretrained_cfg"), path / DESCRIPTION),
    )


def _described_data(description: Any, path: Path) -> dict[str, Any]:
    """Mean, deviation, crop and interpolation of a description."""
    data = {name: description[name] for name in DATA if isinstance(description, dict) and name in description}
    for name, value in data.items():
        numbers = value if isinstance(value, (list, tuple)) else [value]
        text = name == "interpolation"
        if (value not in INTERPOLATIONS) if text else not all(type(n) in (int, float) and 0 <= n <= 2 for n in numbers):
            raise CheckpointError(f"{path} is damaged: {name} is {shown(value)}")
        if name in ("mean", "std") and len(numbers) not in (1, 3):
            raise CheckpointError(f"{path} is damaged: {name} has {len(numbers)} numbers")
    return data
