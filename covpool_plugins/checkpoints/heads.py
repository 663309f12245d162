"""Which head an original checkpoint has: one whose vector is as long as its classifier is wide.

The square roots of a covariance have no weights of their own, so SVD-Padé, SVD-Taylor, iSQRT-COV and the others share
all keys and shapes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..errors import OptionError
from ..pooling import create_pool, list_pools
from ..tables import Table
from .original_state import OriginalState

DEFAULT_ROOT = "svdpade"
DROPPED_BY_TOPN = 50
IDENTITY = "representation.I"
OPEN_IN_ISICE = (
    "isice has step_size=5 and sparsity=0.01, the defaults of the release, whose script trains with a step size of 1, "
    "and its last scaling, 1/√(tr Λ): before November 2023 the release divided by tr Λ or the trace of the covariance, "
    "which multiplies the vector of each picture; the keys tell neither"
)
MANY_CHANNELS = 4096  # more than any default reduction


@dataclass(frozen=True)
class OriginalHead:
    """A head of the repositories.

    Args:
        head: ours.
        options: its options for a number of channels, where they differ from the defaults.
        identity: whether the repository stores an identity beside it, ``representation.I``.
        note: what is to be said of it.
    """

    head: str
    options: Callable[[int], dict[str, Any]] = lambda channels: {}
    identity: bool = False
    note: str | None = None


# As the repositories' options have them. A setting of RiemGCP's is MPNCOV for all its four; INVCOV is in front of SICE,
# for iSICE, which a file's name may have for the repository, is the name of that head.
ORIGINAL_HEADS: Table[OriginalHead] = Table("representation")
for _original, _row in {
    "SVD_Pade": OriginalHead("svdpade"),
    "SVD_Taylor": OriginalHead("svdtaylor"),
    "SVD_PI": OriginalHead("svdpi"),
    "SVD_Newton": OriginalHead("svdnewton"),
    "SVD_Trunc": OriginalHead("svdtrunc"),
    # It drops the last 50 eigenvalues; of fewer channels nothing is left.
    "SVD_TopN": OriginalHead("svdtopn", lambda channels: {"n": max(1, channels - DROPPED_BY_TOPN)}),
    "SVD_Original": OriginalHead("svdoriginal"),
    "MPNCOV": OriginalHead("isqrt"),
    "SEB": OriginalHead("seb"),
    "BCNN": OriginalHead("bcnn"),
    "CBP": OriginalHead("cbp"),
    "GAvP": OriginalHead("gap"),
    "PowTMLR": OriginalHead("powtmlr", identity=True),
    "ChoTMLR": OriginalHead("cholesky", identity=True),
    "ScalePowEMLR": OriginalHead("scalepow"),
    "PowEMLR": OriginalHead("isqrt"),
    "INVCOV": OriginalHead("precision"),
    "SICE": OriginalHead("isice", note=OPEN_IN_ISICE),
}.items():
    ORIGINAL_HEADS.add(_original, _row)


@dataclass(frozen=True)
class Head:
    """A head of ours with its options, and what is to be said of the choice."""

    name: str
    options: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    guessed: bool = False


def recognise_head(
    channels: int, reduced: int | None, width: int, state: OriginalState, arch: str | None, wanted: str | None
) -> Head:
    """The head between a map and a classifier.

    Args:
        channels: of the map.
        reduced: channels behind the reduction, if there is one.
        width: numbers that enter the classifier, or its hidden layers.
        state: where the run's settings and the file's name may name the head.
        arch: the architecture as given or in the file.
        wanted: name of one of our heads, which decides.

    Raises:
        OptionError: for a ``wanted`` head, or for all heads, if their vectors are of another length.
    """
    fitting = {}
    for original, row in ORIGINAL_HEADS.items():
        if row.identity != state.has(IDENTITY):
            continue
        options = {**row.options(reduced or channels), **_reduction(row.head, reduced)}
        if _length(row.head, channels, options) == width:
            fitting[original] = Head(row.head, options, [row.note] if row.note else [])
    if wanted is not None:
        return _wanted(wanted, channels, reduced, width, fitting)
    if not fitting:
        raise OptionError(
            f"the classifier takes {width} numbers, which no known head makes of {reduced or channels} channels; "
            "name one by --head"
        )
    if len(fitting) == 1:
        return next(iter(fitting.values()))
    return _told_apart(fitting, state, arch)


def _told_apart(fitting: dict[str, Head], state: OriginalState, arch: str | None) -> Head:
    sources = (
        ("the setting of the run", str(state.settings.get("representation", ""))),
        ("the architecture", arch or ""),
        ("the file's name", state.file_name),
    )
    known = ", ".join(dict.fromkeys(head.name for head in fitting.values()))
    for where, text in sources:
        for original, head in fitting.items():
            if names(original, text) or names(head.name, text):
                note = f"head {head.name!r}, as {where} ({text}) has it; the keys fit {known}"
                return replace(head, notes=[note, *head.notes])
    chosen = next((head for head in fitting.values() if head.name == DEFAULT_ROOT), next(iter(fitting.values())))
    note = (
        f"head {chosen.name!r} is a guess: the keys fit {known}, and neither settings nor file name tell which; "
        "name it by --head"
    )
    return replace(chosen, notes=[note, *chosen.notes], guessed=True)


def names(name: str, text: str) -> bool:
    """Whether a text has a name of a method in it, with any separators: ``SVD_Pade`` is in ``r50-svd-pade-e60.pth``."""
    letters = [re.escape(letter) for letter in name.lower() if letter.isalnum()]
    # mpncovresnet50 is a name of fast-MPN-COV's.
    return re.search(rf"(?<![a-z]){'[^a-z0-9]?'.join(letters)}(?=$|[^a-z]|resnet|vgg)", text.lower()) is not None


def _wanted(wanted: str, channels: int, reduced: int | None, width: int, fitting: dict[str, Head]) -> Head:
    for head in fitting.values():
        if head.name == wanted:
            return head
    if wanted not in list_pools():
        create_pool(wanted, channels)  # raises, and lists what there is
    candidates: list[dict[str, Any]] = [{}, {"vectorize": "full"}, {"projection": width}]
    for options in candidates:
        options |= _reduction(wanted, reduced)
        if _length(wanted, channels, options) == width:
            return Head(wanted, options)
    known = ", ".join(dict.fromkeys(head.name for head in fitting.values())) or "none"
    numbers = _length(wanted, channels, {**_reduction(wanted, reduced)}) or "other"
    raise OptionError(
        f"--head {wanted}: it makes {numbers} numbers of {reduced or channels} channels, the classifier takes {width}; "
        f"heads that fit: {known}"
    )


def _reduction(head: str, reduced: int | None) -> dict[str, Any]:
    """The option of the reduction, where it is not the default."""
    with torch.device("meta"):
        channels = create_pool(head, MANY_CHANNELS).channels
    default = None if channels == MANY_CHANNELS else channels
    return {} if reduced == default else {"reduce_channels": reduced}


def _length(head: str, channels: int, options: dict[str, Any]) -> int | None:
    """Numbers that a head makes; ``None`` if it does not take these options."""
    try:
        with torch.device("meta"):
            return create_pool(head, channels, **options).out_features
    except OptionError:
        return None
