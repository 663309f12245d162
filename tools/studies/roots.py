"""The ``linalg`` mode: time, error and memory of every matrix square root against the published layers."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from typing import get_args

import torch
from torch import Tensor

from covpool_plugins.linalg import (
    Compute,
    EigenMethod,
    Exact,
    Method,
    covariance,
    covariance_sqrt,
    inv_sqrtm,
    list_methods,
    packed_size,
    resolve_method,
    sqrtm,
)
from covpool_plugins.linalg.tensors import symmetrize

from .baselines import BASELINES, ISQRT, MPA, SVD_PADE, published_inverse_root
from .measure import Function, correlated_features, exact_root_and_gradient, seeded_gradient, value_and_gradient
from .modes import MODES, Mode, add_common_arguments, add_names, add_numbers
from .sections import Clock, Contender, Section, run_sections

GIVEN_POSITIONS_PER_CHANNEL = 8  # covariances of full rank
MPA_INVERSE = "mpa inverse published (f32)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_numbers(parser, "--channels", [256, 512])
    add_numbers(parser, "--positions", [49, 196, 784])
    add_names(parser, "--methods", list_methods())
    add_common_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    run_sections(arguments, _sections(arguments))


def _sections(arguments: argparse.Namespace) -> Iterator[Section]:
    """Made one by one: the inputs of one section at a time are in memory."""
    methods = {name: resolve_method(name) for name in arguments.methods}
    for C in arguments.channels:
        for M in arguments.positions:
            yield features_section(C, M, arguments.batch, methods, arguments.device)
    yield given_root_section(128, arguments.batch, arguments.device)
    yield given_inverse_section(64, arguments.batch, arguments.device)


def features_section(
    C: int, M: int, batch: int, methods: dict[str, Method], device: torch.device | str = "cpu"
) -> Section:
    """Features (batch, C, M) to the packed root of their covariance."""
    X = correlated_features(batch, C, M, device)
    G = seeded_gradient(torch.Size([batch, packed_size(C)]), device)
    contenders = []
    for name, baseline in BASELINES.items():
        own = partial(baseline, dtype=torch.float64) if baseline.operator else None
        contenders.append(Contender(name, "baseline", baseline, baseline.operator, own))
    for name, method in methods.items():
        own = None if _is_root(method) else partial(covariance_sqrt, method=method, vectorize="triu")
        computes = get_args(Compute) if isinstance(method, EigenMethod) else ("float32", "float64")
        for compute in computes:
            function = partial(covariance_sqrt, method=method, compute=compute, vectorize="triu")
            contenders.append(Contender(name, compute, function, "" if own is None else repr(method), own))
    title = f"features {C} x {M} to packed root"
    details = {"channels": C, "positions": M}
    return Section(title, contenders, X, G, exact_root_and_gradient(X, G), (SVD_PADE, ISQRT), details=details)


def _is_root(method: Method) -> bool:
    """Whether it is the square root with its own gradient, whose second derivative then exists as well."""
    return isinstance(method, Exact)


def given_root_section(C: int, batch: int, device: torch.device | str = "cpu") -> Section:
    """A given covariance to its root: the backward of the eigen methods.

    The published gradient is not symmetric until it reaches the covariance, so that step is taken here as in ours.
    """
    published = BASELINES[SVD_PADE].from_matrix
    contenders = [
        Contender(SVD_PADE, "baseline", _in_float64(lambda A: published(symmetrize(A)))),
        *_both_precisions("svdpade", partial(sqrtm, method="svdpade")),
    ]
    title = f"given covariance {C} x {C} to root (ratios of the backward)"
    return _given_section(title, C, batch, contenders, 0.5, SVD_PADE, device, "backward")


def given_inverse_section(C: int, batch: int, device: torch.device | str = "cpu") -> Section:
    """A given covariance to its inverse root."""
    published, operator = published_inverse_root, BASELINES[MPA].operator
    contenders = [
        Contender(MPA_INVERSE, "baseline", published, f"inverse of the {operator}", published),
        *_both_precisions("exact", inv_sqrtm),
    ]
    title = f"given covariance {C} x {C} to inverse root"
    return _given_section(title, C, batch, contenders, -0.5, MPA_INVERSE, device)


def _in_float64(function: Function) -> Function:
    return lambda A: function(A.double()).to(A.dtype)


def _both_precisions(label: str, function: Function) -> list[Contender]:
    return [Contender(label, "float32", function), Contender(label, "float64", _in_float64(function))]


def _given_section(
    title: str,
    C: int,
    batch: int,
    contenders: list[Contender],
    power: float,
    against: str,
    device: torch.device | str,
    clock: Clock = "both",
) -> Section:
    """Covariances (batch, C, C) of full rank; the exact result is that of autograd through eigh in float64."""
    A = covariance(correlated_features(batch, C, GIVEN_POSITIONS_PER_CHANNEL * C, device))
    G = symmetrize(seeded_gradient(A.shape, device))

    def exact(A: Tensor) -> Tensor:
        values, U = torch.linalg.eigh(A)
        return (U * values.unsqueeze(-2) ** power) @ U.mT

    reference = value_and_gradient(exact, A.double(), G.double())
    return Section(title, contenders, A, G, reference, (against,), clock, {"matrix": C})


EXAMPLE = "python tools/benchmark.py linalg --channels 256 --positions 49 --json out/linalg.json"
MODES.add("linalg", Mode(__doc__ or "", EXAMPLE, add_arguments, run))
