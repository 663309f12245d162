"""The weights of a checkpoint in the places of a plan, which states a place and a shape for every tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..checkpoint_file import COUNTERS
from ..checkpoint_pickle import shown
from ..errors import OptionError
from ..pooling import create_pool
from .original_state import OriginalState
from .placement import CHANGES, Dropped, Placement, Plan, Somewhere

MOST_NAMED = 3
FRESH_SEED = 0


class KeyReport(NamedTuple):
    """What became of a tensor: the key in the file, the key in our model, and a remark where there is one.

    A tensor that was dropped has no second key, one that was made has no first. ``change`` is a name in
    :data:`CHANGES`, where numbers were changed or moved.
    """

    original: str | None
    ours: str | None
    shape: tuple[int, ...]
    remark: str = ""
    part: int | None = None
    transposed: bool = False
    change: str | None = None


@dataclass(frozen=True)
class Fitted:
    """The weights of a plan's network, what became of every tensor, those without a place or not to be had from it.

    ``is_triangle`` says whether the network's vector is the triangle of a symmetric matrix.
    """

    weights: dict[str, Tensor]
    keys: list[KeyReport]
    left_out: dict[str, Tensor]
    is_triangle: bool


def fit(plan: Plan, state: OriginalState) -> Fitted:
    """Put the tensors of a checkpoint into the places of a plan.

    Raises:
        OptionError: if a tensor has no place or another shape or type than its place, or the network needs one that
            the checkpoint lacks.
    """
    model: Any = plan.network.build("meta")
    wanted = model.state_dict()
    parts: dict[str, dict[int | None, Tensor]] = {}
    changes: dict[str, str | None] = {}
    keys: list[KeyReport] = []
    left_out: dict[str, Tensor] = {}
    unknown: list[str] = []
    for key, place, tensor in _pieces(plan, state):
        file_key, shape = state.keys[key], tuple(tensor.shape)
        taken = isinstance(place, Placement) and place.part in parts.get(place.key, {})
        if place is None or taken or (isinstance(place, Placement) and place.key not in wanted):
            unknown.append(f"{shown(file_key)} {list(shape)}")
            continue
        if place.shape is not None and shape != place.shape:
            raise OptionError(
                f"{state.file_name}: {shown(file_key)} is {list(shape)}, it would have to be {list(place.shape)}"
            )
        if isinstance(place, Dropped):
            left_out[file_key] = tensor
            keys.append(KeyReport(file_key, None, shape, f"dropped: {place.reason}"))
        else:
            parts.setdefault(place.key, {})[place.part] = _reshaped(tensor, place, wanted[place.key])
            changes[place.key] = place.change
            remark = "transposed" if place.transposed else CHANGES[place.change].remark
            keys.append(KeyReport(file_key, place.key, shape, remark, place.part, place.transposed, place.change))
    keys += [KeyReport(key, None, tuple(t.shape), "left out: beside the network") for key, t in state.beside.items()]
    if unknown:
        raise OptionError(
            f"{state.file_name}: {_some(unknown)} would be lost: {plan.network.model_name} has no place for it, and no "
            "reason is known to drop it"
        )
    weights = {key: _joined(key, pieces, wanted[key], state, changes[key]) for key, pieces in parts.items()}
    for row in keys:
        if row.change and row.ours and row.original:
            given = parts[row.ours][row.part]
            if not torch.equal(CHANGES[row.change].split(weights[row.ours], row.part, row.shape), given):
                left_out[row.original] = given  # for the way back, on which rounding would show
    made = _made(wanted, weights, model, plan, state)
    keys += [KeyReport(None, key, tuple(tensor.shape), remark) for key, (tensor, remark) in made.items()]
    weights |= {key: tensor for key, (tensor, _) in made.items()}
    is_triangle = plan.network.head is not None and _is_triangle(model.head.global_pool)
    return Fitted({key: weights[key] for key in wanted}, keys, left_out, is_triangle)


def _is_triangle(pool: Any) -> bool:
    channels = getattr(pool, "channels", 0)
    return pool.out_features == channels * (channels + 1) // 2


def _pieces(plan: Plan, state: OriginalState) -> Iterator[tuple[str, Somewhere, Tensor]]:
    """Every tensor with its place, or several places with the rows that go there."""
    for key, tensor in state.tensors.items():
        places = plan.places(key)
        rows = tensor.chunk(len(places)) if len(places) > 1 else [tensor]
        yield from zip([key] * len(places), places, rows, strict=True)


def _reshaped(tensor: Tensor, place: Placement, wanted: Tensor) -> Tensor:
    """A tensor whose layout allows another shape, in ours."""
    tensor = tensor.mT if place.transposed else tensor
    ones = place.ones and _without_ones(tensor) == _without_ones(wanted)
    stated = place.shape is not None and tensor.numel() == wanted.numel()
    return tensor.reshape(wanted.shape) if place.part is None and (ones or stated) else tensor


def _without_ones(tensor: Tensor) -> list[int]:
    return [length for length in tensor.shape if length != 1]


def _joined(
    key: str, pieces: dict[int | None, Tensor], wanted: Tensor, state: OriginalState, change: str | None
) -> Tensor:
    """One tensor of our model from its parts."""
    numbered = sorted(index for index in pieces if index is not None)
    if numbered and (None in pieces or numbered != list(range(2 if change in ("mean", "sum") else len(numbered)))):
        raise OptionError(f"{state.file_name}: the parts of {key!r} are not complete")
    types = {piece.is_floating_point() for piece in pieces.values()}
    tensor = CHANGES[change].join(pieces)
    if tensor.shape != wanted.shape:
        raise OptionError(
            f"{state.file_name}: {key!r} would be {list(tensor.shape)}, the model needs {list(wanted.shape)}"
        )
    if key.endswith(".num_batches_tracked"):
        return tensor.to(wanted.dtype)  # scripts that halve every tensor halve these
    if types != {wanted.is_floating_point()} or tensor.is_complex():
        raise OptionError(f"{state.file_name}: {key!r} is of {tensor.dtype}, the model needs {wanted.dtype}")
    return tensor


def _made(
    wanted: Mapping[str, Tensor], weights: Mapping[str, Tensor], model: Any, plan: Plan, state: OriginalState
) -> dict[str, tuple[Tensor, str]]:
    """What a checkpoint need not have: counters, hashes that follow from a seed, a fresh head that was asked for."""
    missing = [key for key in wanted if key not in weights]
    made: dict[str, tuple[Tensor, str]] = {}
    beside = [shown(key) for key in state.beside if key not in COUNTERS]
    if plan.fresh and beside:
        raise OptionError(f"{state.file_name}: {_some(beside)} may be the head of the network, which has none")
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


def _some(names: list[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more
