"""Every head and norm layer of both ecosystems on every hostile input: what becomes of each case.

A case is a training or an evaluation step, forward and backward, of one layer on one input in one precision. It is

* *finite* if output, all gradients and all running statistics are;
* *contained* if the input holds NaN or infinity, and spoils nothing but its own sample; of a whitening layer in
  training, whose statistics are of the batch, nothing but its group of channels, and of a batch norm its batch;
* *refused* if a ``ValueError`` says so in one line, where the list of inputs asks for a refusal;
* *failed* otherwise.

Where samples do not share statistics, one of them is hostile, and the results of the others have to be what they are
without it, even if nothing is NaN.
"""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from covpool_plugins.command_line import markdown_table
from covpool_plugins.errors import one_line, require_extra
from covpool_plugins.linalg.tensors import autocast_off
from covpool_plugins.pooling import pool_options
from covpool_plugins.timm_plugin.head import SecondOrderHead, list_heads
from covpool_plugins.whitening import PCANorm2d, ZCANorm2d, list_whitening_methods
from covpool_plugins.whitening.norm import WhiteningNorm

from .hostile_inputs import BAD, BATCH, INPUTS, HostileInput, ordinary_features

CHANNELS, REDUCED, SIDE, CLASSES = 12, 6, 3, 4  # nine positions: fewer than channels, and more than reduced ones
NOT_FINITE = "not finite"
KINDS = ("finite", "contained", "refused", "failed")
Kind = Literal["finite", "contained", "refused", "failed"]


class Precision(NamedTuple):
    """The type of features and parameters, and that of autocast, if it is on."""

    dtype: torch.dtype
    autocast: torch.dtype | None = None


PRECISIONS = {
    "float32": Precision(torch.float32),
    "bfloat16": Precision(torch.bfloat16),
    "float16": Precision(torch.float16),
    "autocast": Precision(torch.float32, torch.bfloat16),
}


@dataclass(frozen=True)
class Subject:
    """A head or a norm layer, and how it is made in each of its variants."""

    name: str
    is_head: bool
    variants: dict[str, Callable[[], nn.Module]]


@dataclass(frozen=True)
class Outcome:
    """What became of a case; ``message`` says what was refused or failed."""

    subject: Subject
    variant: str
    input: str
    precision: str
    training: bool
    kind: Kind
    message: str = ""


def _subjects(
    head: Callable[[str, dict[str, Any]], nn.Module], norm: Callable[[type, dict[str, Any]], nn.Module]
) -> list[Subject]:
    """All heads, and the norm layers with all methods."""
    subjects = []
    for name in list_heads():
        options: dict[str, dict[str, Any]] = {"default": {}}
        if "reduce_channels" in pool_options(name):
            options = {"default": {"reduce_channels": None}, "reduced": {"reduce_channels": REDUCED}}
        subjects.append(Subject(name, True, {variant: partial(head, name, options[variant]) for variant in options}))
    for kind, method in norm_layers():
        common: dict[str, Any] = dict(method=method, **({"n_components": 4} if kind is PCANorm2d else {}))
        variants = {f"groups={groups}": partial(norm, kind, dict(common, groups=groups)) for groups in (1, 2)}
        subjects.append(Subject(f"{kind.__name__} {method}", False, variants))
    return subjects


def norm_layers() -> list[tuple[type[WhiteningNorm], str]]:
    """Every whitening layer with every method that it takes."""
    layers: list[tuple[type[WhiteningNorm], str]] = [(ZCANorm2d, method) for method in list_whitening_methods()]
    return layers + [(PCANorm2d, method) for method in list_whitening_methods(eigenvectors=True)]


def timm_subjects() -> list[Subject]:
    """``SecondOrderHead`` with every pool; the norm layers by their classes."""
    return _subjects(
        lambda name, options: SecondOrderHead(CHANNELS, CLASSES, name, pool_options=options),
        lambda kind, options: kind(CHANNELS, **options),
    )


def mmpretrain_subjects() -> list[Subject]:
    """``CovariancePooling`` and ``SecondOrderClsHead``, and the norm layers, by MMPretrain's registry."""
    models = require_extra("mmpretrain.registry", "mmpretrain").MODELS
    require_extra("covpool_plugins.mmpretrain_plugin", "mmpretrain")

    def head(name: str, options: dict[str, Any]) -> nn.Module:
        neck = dict(type="covpool_plugins.CovariancePooling", pool=name, in_channels=CHANNELS, **options)
        classifier = dict(type="covpool_plugins.SecondOrderClsHead", num_classes=CLASSES)
        return NeckAndHead(models.build(neck), models.build(classifier))

    def norm(kind: type, options: dict[str, Any]) -> nn.Module:
        return models.build(dict(type=f"covpool_plugins.{kind.__name__}", num_features=CHANNELS, **options))

    return _subjects(head, norm)


class NeckAndHead(nn.Module):
    """The part of an image classifier behind its backbone."""

    def __init__(self, neck: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.neck, self.head = neck, head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.neck((x,)))


ECOSYSTEMS = {"timm": timm_subjects, "mmpretrain": mmpretrain_subjects}


def examine(
    subject: Subject,
    precisions: Collection[str] = tuple(PRECISIONS),
    inputs: Collection[str] = tuple(INPUTS),
    modes: Collection[bool] = (True, False),
) -> Iterator[Outcome]:
    """All cases of a subject, in training and in evaluation; nothing is raised.

    Cases are left out where float16 cannot hold the input, or what float32 gives for it.
    """
    for variant, build in subject.variants.items():
        for precision, training in itertools.product(precisions, modes):
            trial = Trial(build, subject.is_head, PRECISIONS[precision], training)
            for name in inputs:
                result = trial.outcome(INPUTS[name])
                if result is not None:
                    yield Outcome(subject, variant, name, precision, training, *result)


class Trial:
    """A layer that takes hostile inputs one after the other, each as if it were the first."""

    def __init__(self, build: Callable[[], nn.Module], is_head: bool, precision: Precision, training: bool) -> None:
        torch.manual_seed(0)
        self.build = build
        self.layer = build().to(precision.dtype).train(training)
        self.state = copy.deepcopy(self.layer.state_dict())
        self.is_head, self.precision = is_head, precision
        self.shares_statistics = training and any(isinstance(part, _NormBase) for part in self.layer.modules())
        self.ordinary = ordinary_features(BATCH, CHANNELS, SIDE)
        self.expected = self._step(self.ordinary)

    def outcome(self, hostile: HostileInput) -> tuple[Kind, str] | None:
        """The kind of outcome and the message; ``None`` if float16 cannot hold what float32 gives."""
        x = self._features(hostile)
        try:
            output, gradient = self._step(x)
        except Exception as error:  # every kind of error is an outcome
            expected = isinstance(error, ValueError) and "\n" not in str(error) and self._refuses(hostile)
            return "refused" if expected else "failed", f"{type(error).__name__}: {one_line(error)}"
        fault = "not refused" if self._refuses(hostile) else self._fault(hostile, x, output, gradient)
        if fault.startswith(NOT_FINITE) and self._leaves_the_range(x):
            return None
        return ("failed", fault) if fault else ("contained" if hostile.poisoned else "finite", "")

    def _refuses(self, hostile: HostileInput) -> bool:
        shared = hostile.refused == "batch statistics" and self.shares_statistics
        return shared or hostile.refused == "always" or (hostile.refused == "heads" and self.is_head)

    def _features(self, hostile: HostileInput) -> Tensor:
        if hostile.spoil is None:
            assert hostile.reshape is not None
            return hostile.reshape(self.ordinary)
        spoiled = hostile.spoil(self.ordinary)
        if self.shares_statistics:
            return spoiled
        x = self.ordinary.clone()
        x[BAD] = spoiled[BAD]
        return x

    def _step(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Output and gradient of the input, of a sum with fixed weights."""
        torch.manual_seed(0)
        self.layer.load_state_dict(self.state)
        self.layer.zero_grad()
        leaf = x.to(self.precision.dtype) if x.is_floating_point() else x
        leaf = leaf.detach().clone().requires_grad_(x.is_floating_point())
        with torch.autocast("cpu", self.precision.autocast, enabled=self.precision.autocast is not None):
            output = self.layer(leaf)
        with autocast_off("cpu"):
            (torch.linspace(-1, 1, output.numel()).view(output.shape) * output).sum().backward()
        assert leaf.grad is not None
        return output.detach(), leaf.grad

    def _fault(self, hostile: HostileInput, x: Tensor, output: Tensor, gradient: Tensor) -> str:
        """What is wrong with the results; empty if nothing is."""
        if len(output) != len(x) or gradient.shape != x.shape:
            return f"shapes {tuple(output.shape)} and {tuple(gradient.shape)}"
        if hostile.poisoned and output.isfinite().all():
            return "NaN or infinity is lost"
        if not hostile.poisoned:
            parts = {"output": output, "gradient": gradient, **self._parameters_and_statistics()}
            unsound = [name for name, value in parts.items() if not value.isfinite().all()]
            if unsound:
                return f"{NOT_FINITE}: {', '.join(unsound)}"
        if self.shares_statistics:
            return self._spoiled_groups(x, output, gradient) if hostile.poisoned else ""
        if hostile.spoil is None:
            return ""
        others = [index for index in range(BATCH) if index != BAD]
        pairs = zip(("output", "gradient"), (output, gradient), self.expected, strict=True)
        changed = [name for name, values, expected in pairs if not _same(values[others], expected[others])]
        return f"other samples have another {' and '.join(changed)}" if changed else ""

    def _leaves_the_range(self, x: Tensor) -> bool:
        """Whether the same numbers in float32 give results that float16 cannot hold."""
        if self.precision.dtype != torch.float16:
            return False
        wide = Trial(self.build, self.is_head, PRECISIONS["float32"], self.layer.training)
        results = [x, *wide._step(x), *wide._parameters_and_statistics().values()]
        return max(float(value.abs().max()) for value in results) > torch.finfo(torch.float16).max

    def _parameters_and_statistics(self) -> dict[str, Tensor]:
        gradients = {f"gradient of {name}": p.grad for name, p in self.layer.named_parameters() if p.grad is not None}
        return gradients | dict(self.layer.named_buffers())

    def _spoiled_groups(self, x: Tensor, output: Tensor, gradient: Tensor) -> str:
        if not isinstance(self.layer, WhiteningNorm):
            return ""  # a batch norm is in front, which spreads NaN over the batch
        for group in torch.arange(CHANNELS).chunk(self.layer.groups):
            if x[:, group].isfinite().all() and not (output[:, group].isfinite() & gradient[:, group].isfinite()).all():
                return "other groups are not finite"
        return ""


def _same(values: Tensor, expected: Tensor) -> bool:
    """Equal to rounding in its type."""
    tolerance = 8 * torch.finfo(expected.dtype).eps
    return bool((values - expected).double().norm() <= tolerance * expected.double().norm())


def outcome_table(outcomes: Sequence[Outcome]) -> str:
    """How many cases there are of each kind: of every subject, of the heads, of the norm layers, and of all."""
    counts: dict[str, Counter[str]] = {}
    for outcome in outcomes:
        counts.setdefault(outcome.subject.name, Counter())[outcome.kind] += 1
    for group, members in (
        ("heads", [outcome for outcome in outcomes if outcome.subject.is_head]),
        ("norm layers", [outcome for outcome in outcomes if not outcome.subject.is_head]),
        ("all", outcomes),
    ):
        counts[group] = Counter(outcome.kind for outcome in members)
    rows = [[name, *(str(of_name[kind]) for kind in KINDS), str(of_name.total())] for name, of_name in counts.items()]
    return markdown_table(["head or norm layer", *KINDS, "cases"], rows)


def failures(outcomes: Sequence[Outcome]) -> str:
    """A line for every case that failed."""
    modes = ("evaluation", "training")
    return "\n".join(
        f"* {case.subject.name}, {case.variant}, {modes[case.training]}, {case.precision}, {case.input}: {case.message}"
        for case in outcomes
        if case.kind == "failed"
    )
