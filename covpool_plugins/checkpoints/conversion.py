"""From a file to the weights of one of our models, with an account of every tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn

from ..checkpoint_file import (
    CheckpointError,
    Progress,
    check_real_numbers,
    find_weights,
    read_checkpoint,
    weights_file,
)
from ..checkpoint_pickle import shown
from ..errors import OptionError, UnknownNameError
from .fitting import Fitted, KeyReport, fit
from .folders import DESCRIPTION, LEFT_OUT, read_json, read_record
from .layouts import check_arch
from .mmpretrain_configs import INTERPOLATIONS
from .network import Network, allowed_settings
from .original_state import OriginalState, unwrap
from .placement import CHANGES, LAYOUTS, Hints, Plan, RefusedError
from .triangle import ASKED_CLASSES, ask_network, check_order, order_of_name

DATA = ("mean", "std", "crop_pct", "interpolation")
MOST_CLASSES = 1 << 20
LEAST_SHARE = 0.001  # of a deviation, and of a crop


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
        return _loaded(self.network, self.state_dict)


def load_original(
    path: Path | str,
    *,
    arch: str | None = None,
    head: str | None = None,
    triangle: str | None = None,
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
        triangle: order of the numbers in the vector of a covariance, ``upper`` or ``lower``, by rows: fast-MPN-COV's
            was the lower triangle until December 2018. By default the file's name decides, or a classifier of 1000
            classes is asked: on photographs (of the ``demo`` extra) it is sure in the right order only.
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
    check_order(triangle)
    path = Path(path)
    if path.is_dir() and "architecture" in read_json(path / DESCRIPTION):
        if arch is not None or head is not None or triangle is not None:
            raise OptionError(f"{path} says itself what it holds; arch, head and triangle are for files that do not")
        return _read_folder(path)
    if path.is_dir():
        path = weights_file(path)
    state = unwrap(read_checkpoint(path, progress), path, averaged)
    plan, fitted, others = _recognised(state, Hints(arch, head))
    fitted, order_note = _in_upper_order(fitted, plan, state, triangle)
    notes = [*plan.notes, *others, *([order_note] if order_note else []), *_notes(state, fitted.weights)]
    return Converted(
        plan.network.model_name,
        {"num_classes": plan.network.num_classes, **plan.network.model_kwargs},
        fitted.weights,
        plan.source,
        notes,
        plan.network,
        fitted.keys,
        fitted.left_out,
        _description(state, plan, fitted),
        plan.data,
    )


def _recognised(state: OriginalState, hints: Hints) -> tuple[Plan, Fitted, list[str]]:
    """The first row of :data:`LAYOUTS` that the checkpoint fits, its weights in their places, and what there is to say.

    Raises:
        OptionError: if it fits none.
    """
    fitting: list[tuple[Plan, Fitted]] = []
    reasons: list[OptionError] = []
    for _, row in LAYOUTS.items():
        try:
            plan = row(state, hints)
            if plan is None:
                continue
            check_arch(plan, hints)
            fitting.append((plan, fit(plan, state)))
        except (RefusedError, UnknownNameError):
            raise
        except OptionError as error:
            reasons.append(error)
            continue
        except (ValueError, LookupError):  # tensors of other ranks than this kind has
            continue
        if plan.named:
            break
    if fitting:
        others = [plan for plan, _ in fitting[1:] if plan.network != fitting[0][0].network]
        return *fitting[0], [f"it could be {plan.network.model_name} too ({plan.source})" for plan in others]
    if reasons:
        raise reasons[0]
    first = ", ".join(shown(key) for key in list(state.tensors)[:3])
    raise OptionError(
        f"{state.file_name}: no known kind of checkpoint ({len(state.tensors)} tensors, {first}, ...); known kinds: "
        f"{', '.join(LAYOUTS)}"
    )


def _in_upper_order(
    fitted: Fitted, plan: Plan, state: OriginalState, triangle: str | None
) -> tuple[Fitted, str | None]:
    """The weights with the columns of the classifier in the order of our vector, and what there is to say.

    Raises:
        OptionError: if an order is given for a vector that is no triangle.
    """
    if not fitted.is_triangle:
        if triangle is not None:
            raise OptionError(f"triangle={triangle!r}: the vector of {plan.network.model_name} is no triangle")
        return fitted, None
    key = "head.hidden.0.weight" if plan.network.hidden_features else "head.fc.weight"
    order, note = triangle, None
    if order is None and plan.any_order:
        order, note = _order(fitted, plan, state, key)
    if order != "lower":
        return fitted, note
    remark = CHANGES["lower"].remark
    rows = [row._replace(remark=remark, change="lower") if row.ours == key else row for row in fitted.keys]
    weights = {**fitted.weights, key: CHANGES["lower"].join({None: fitted.weights[key]})}
    return replace(fitted, weights=weights, keys=rows), note


def _order(fitted: Fitted, plan: Plan, state: OriginalState, key: str) -> tuple[str, str]:
    """The order of a triangle, and why: by the file's name, or by asking the network."""
    order = order_of_name(state.file_name)
    if order is not None:
        return order, f"order of the triangle: {order}, as the file with this name has it; see --triangle"
    said = f"a classifier of {plan.network.num_classes} classes cannot be asked for it"
    if plan.network.num_classes == ASKED_CLASSES:
        order, said = ask_network(_loaded(plan.network, fitted.weights, copied=key), key, plan.data)
    if order is not None:
        return order, f"order of the triangle: {order}, told by the network: {said}"
    return "upper", (
        f"order of the triangle is a guess: upper, as fast-MPN-COV has it since December 2018 (before: lower); {said}; "
        "name it by --triangle"
    )


def _loaded(network: Network, weights: dict[str, Tensor], copied: str = "") -> Any:
    """The model with these weights, in eval mode; it shares their memory, but that of ``copied``."""
    state_dict = {key: tensor.clone() if key == copied else tensor for key, tensor in weights.items()}
    model = network.build("meta")
    model.load_state_dict(state_dict, assign=True)
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):  # buffers outside the state dict
        model = network.build()
        model.load_state_dict(state_dict)
    return model.eval()


def _notes(state: OriginalState, weights: Mapping[str, Tensor]) -> list[str]:
    broken = [key for key, tensor in weights.items() if tensor.is_floating_point() and not tensor.sum().isfinite()]
    notes = [f"{', '.join(broken[:3])}: NaN or infinite"] if broken else []
    return notes + [f"left out of the file: {name} ({reason})" for name, reason in state.left_out.items()]


def _description(state: OriginalState, plan: Plan, fitted: Fitted) -> dict[str, Any]:
    """What is needed besides our weights to write the checkpoint again; JSON can express it."""
    rows = [row for row in fitted.keys if row.original and (row.ours or row.original in fitted.left_out)]
    return {
        "source": plan.source,
        "file_name": state.file_name,
        "container": state.container,
        "plain": state.plain,
        "settings": {name: value for name, value in state.settings.items() if isinstance(value, str)},
        "keys": [[row.original, row.ours, row.part, row.transposed, list(row.shape), row.change] for row in rows],
    }


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
    wanted = network.build("meta").state_dict()
    weights = find_weights(read_checkpoint(file), file, known=wanted).tensors
    check_real_numbers(weights, wanted, file)
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


def _are_shares(numbers: Any, least: float) -> bool:
    return all(type(number) in (int, float) and least <= number <= 2 for number in numbers)


def _described_data(description: Any, path: Path) -> dict[str, Any]:
    """Mean, deviation, crop and interpolation of a description."""
    data = {name: description[name] for name in DATA if isinstance(description, dict) and name in description}
    for name, value in data.items():
        several = name in ("mean", "std")
        numbers = value if several and isinstance(value, list) else [value]
        word = isinstance(value, str) and value in (*INTERPOLATIONS, "random")
        if not (word if name == "interpolation" else _are_shares(numbers, 0 if name == "mean" else LEAST_SHARE)):
            raise CheckpointError(f"{path} is damaged: {name} is {shown(value)}")
        if several and (numbers is not value or len(numbers) not in (1, 3)):
            raise CheckpointError(f"{path} is damaged: {name} is no list of 1 or 3 numbers")
    return data
