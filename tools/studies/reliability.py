"""The ``reliability`` mode: every head and norm layer of both ecosystems on every hostile input, counted.

A case is a training or an evaluation step, forward and backward, of one layer on one input in one precision. It is

* *finite* if output, all gradients and all running statistics are;
* *contained* if the input holds NaN or infinity, and spoils nothing but its own sample; of a whitening layer in
  training, whose statistics are of the batch, nothing but its group of channels, and of a batch norm its batch;
* *refused* if a ``ValueError`` says so in one line, where a refusal is what the list of inputs asks for;
* *failed* otherwise.

Where samples do not share statistics, one of them is hostile, and the results of the others have to be what they are
without it, also if nothing is NaN.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from tqdm import tqdm

from covpool_plugins.command_line import markdown_table, positive_integer
from covpool_plugins.errors import one_line, require_extra
from covpool_plugins.files import write_json
from covpool_plugins.linalg.tensors import autocast_off
from covpool_plugins.pooling import pool_options
from covpool_plugins.tables import Table
from covpool_plugins.timm_plugin.head import SecondOrderHead, list_heads
from covpool_plugins.whitening import PCANorm2d, ZCANorm2d, list_whitening_methods
from covpool_plugins.whitening.norm import WhiteningNorm

from .hostile_inputs import BAD, BATCH, INPUTS, HostileInput, ordinary_features
from .modes import MODES, Mode, check_outputs, environment

CHANNELS, REDUCED, SIDE, CLASSES = 12, 6, 3, 4  # nine positions: fewer than channels, and more than reduced ones
NOT_FINITE = "not finite"
KINDS = ("finite", "contained", "refused", "failed")
Kind = Literal["finite", "contained", "refused", "failed"]


@dataclass(frozen=True)
class Precision:
    """The type of features and parameters, and that of autocast, if it is on."""

    dtype: torch.dtype
    autocast: torch.dtype | None = None


PRECISIONS: Table[Precision] = Table("precision")
PRECISIONS.add("float32", Precision(torch.float32))
PRECISIONS.add("bfloat16", Precision(torch.bfloat16))
PRECISIONS.add("float16", Precision(torch.float16))
PRECISIONS.add("autocast", Precision(torch.float32, torch.bfloat16))


@dataclass(frozen=True)
class Subject:
    """A head or a norm layer, and how it is made in each of its variants."""

    name: str
    is_head: bool
    variants: dict[str, Callable[[], nn.Module]]


@dataclass(frozen=True)
class Outcome:
    """What became of a case."""

    subject: str
    variant: str
    input: str
    precision: str
    training: bool
    kind: Kind
    said: str = ""


ECOSYSTEMS: Table[Callable[[], list[Subject]]] = Table("ecosystem")


def _reductions(name: str) -> dict[str, dict[str, Any]]:
    """Options of the pool in each variant of a head."""
    reduced = {"reduced": {"reduce_channels": REDUCED}} if "reduce_channels" in pool_options(name) else {}
    return {"as it is": {"reduce_channels": None} if reduced else {}, **reduced}


def _heads(build: Callable[[str, dict[str, Any]], nn.Module]) -> list[Subject]:
    def variants(name: str) -> dict[str, Callable[[], nn.Module]]:
        return {variant: partial(build, name, options) for variant, options in _reductions(name).items()}

    return [Subject(name, True, variants(name)) for name in list_heads()]


def _norms(build: Callable[[type[WhiteningNorm], dict[str, Any]], nn.Module]) -> list[Subject]:
    def variants(kind: type[WhiteningNorm], method: str) -> dict[str, Callable[[], nn.Module]]:
        options: dict[str, Any] = dict(method=method, **({"n_components": 4} if kind is PCANorm2d else {}))
        return {f"groups={groups}": partial(build, kind, dict(options, groups=groups)) for groups in (1, 2)}

    layers: list[tuple[type[WhiteningNorm], str]] = [(ZCANorm2d, method) for method in list_whitening_methods()]
    layers += [(PCANorm2d, method) for method in list_whitening_methods(eigenvectors=True)]
    return [Subject(f"{kind.__name__} {method}", False, variants(kind, method)) for kind, method in layers]


@ECOSYSTEMS.register("timm")
def timm_subjects() -> list[Subject]:
    """``SecondOrderHead`` with every pool; the norm layers by their classes."""
    heads = _heads(lambda name, options: SecondOrderHead(CHANNELS, CLASSES, name, pool_options=options))
    return heads + _norms(lambda kind, options: kind(CHANNELS, **options))


@ECOSYSTEMS.register("mmpretrain")
def mmpretrain_subjects() -> list[Subject]:
    """``CovariancePooling`` and ``SecondOrderClsHead``, and the norm layers, by MMPretrain's registry.

    Raises:
        MissingExtraError: without MMPretrain.
    """
    models = require_extra("mmpretrain.registry", "mmpretrain").MODELS
    require_extra("covpool_plugins.mmpretrain_plugin", "mmpretrain")

    def head(name: str, options: dict[str, Any]) -> nn.Module:
        neck = dict(type="covpool_plugins.CovariancePooling", pool=name, in_channels=CHANNELS, **options)
        return NeckAndHead(
            models.build(neck), models.build(dict(type="covpool_plugins.SecondOrderClsHead", num_classes=CLASSES))
        )

    def norm(kind: type[WhiteningNorm], options: dict[str, Any]) -> nn.Module:
        return models.build(dict(type=f"covpool_plugins.{kind.__name__}", num_features=CHANNELS, **options))

    return _heads(head) + _norms(norm)


class NeckAndHead(nn.Module):
    """What comes after the backbone of an image classifier."""

    def __init__(self, neck: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.neck = neck
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.neck((x,)))


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
                found = trial.outcome(INPUTS[name])
                if found is not None:
                    yield Outcome(subject.name, variant, name, precision, training, *found)


class Trial:
    """A layer that takes one hostile input after the other, each as if it were the first."""

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
        """The kind of outcome and what was said; ``None`` if float16 cannot hold what float32 gives."""
        x = self._features(hostile)
        try:
            output, gradient = self._step(x)
        except Exception as error:  # whatever it is belongs into the table
            expected = isinstance(error, ValueError) and "\n" not in str(error) and self._refuses(hostile)
            return "refused" if expected else "failed", f"{type(error).__name__}: {one_line(error)}"
        said = "not refused" if self._refuses(hostile) else self._fault(hostile, x, output, gradient)
        if said.startswith(NOT_FINITE) and self._leaves_the_range(x):
            return None
        return ("failed", said) if said else ("contained" if hostile.poisoned else "finite", "")

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
        """What is wrong with the results; nothing if they are as they should be."""
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
        changed = [name for name, found, expected in pairs if not _same(found[others], expected[others])]
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


def _same(found: Tensor, expected: Tensor) -> bool:
    """Equal to rounding in its type."""
    tolerance = 8 * torch.finfo(expected.dtype).eps
    return bool((found - expected).double().norm() <= tolerance * expected.double().norm())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the mode."""
    everything = [subject.name for subject in timm_subjects()]
    parser.add_argument("--subjects", nargs="+", choices=everything, metavar="NAME", help="heads and norm layers (all)")
    tables: dict[str, Table[Any]] = dict(ecosystems=ECOSYSTEMS, precisions=PRECISIONS, inputs=INPUTS)
    for option, table in tables.items():
        names = list(table)
        help_text = f"(all) of: {', '.join(names)}"
        parser.add_argument(f"--{option}", nargs="+", choices=names, default=names, metavar="NAME", help=help_text)
    parser.add_argument("--threads", type=positive_integer, default=1, help="CPU threads (1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every case to this file")


def run(arguments: argparse.Namespace) -> None:
    """Examine, print a table for each ecosystem and what failed, write the file.

    Raises:
        MissingExtraError: without MMPretrain, if it is among the ecosystems.
    """
    check_outputs(arguments.json)
    torch.set_num_threads(arguments.threads)
    facts = environment(torch.device("cpu"))
    print(", ".join(f"{key} {value}" for key, value in facts.items()), flush=True)
    found: dict[str, list[Outcome]] = {}
    for ecosystem in arguments.ecosystems:
        subjects = [one for one in ECOSYSTEMS[ecosystem]() if one.name in (arguments.subjects or [one.name])]
        outcomes = found[ecosystem] = []
        for subject in tqdm(subjects, unit="layer", desc=ecosystem, disable=None, leave=False):
            outcomes += examine(subject, arguments.precisions, arguments.inputs)
        print(f"\n## {ecosystem}\n\n{outcome_table(outcomes)}\n\n{failures(outcomes)}", flush=True)
    if arguments.json:
        cases = {ecosystem: [dataclasses.asdict(one) for one in outcomes] for ecosystem, outcomes in found.items()}
        write_json(arguments.json, {"environment": facts, "cases": cases})


def outcome_table(outcomes: Iterable[Outcome]) -> str:
    """For every subject how many cases there are of each kind, and of all together."""
    counts: dict[str, Counter[str]] = {}
    for one in outcomes:
        counts.setdefault(one.subject, Counter())[one.kind] += 1
    counts["all"] = sum(counts.values(), Counter())
    rows = [[name, *(str(of_name[kind]) for kind in KINDS), str(of_name.total())] for name, of_name in counts.items()]
    return markdown_table(["head or norm layer", *KINDS, "cases"], rows)


def failures(outcomes: Iterable[Outcome]) -> str:
    """A line for every case that failed."""
    failed = [one for one in outcomes if one.kind == "failed"]
    modes = ("evaluation", "training")
    return "\n".join(
        f"* {one.subject}, {one.variant}, {modes[one.training]}, {one.precision}, {one.input}: {one.said}"
        for one in failed
    )


MODES.add(
    "reliability",
    Mode(
        "Every head and norm layer of both ecosystems on hostile inputs, forward and backward: what becomes of it.",
        "python tools/benchmark.py reliability --ecosystems timm --precisions float32 --json out/reliability.json",
        add_arguments,
        run,
    ),
)
