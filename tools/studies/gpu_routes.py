"""Sections of the ``gpu`` mode on the two routes to the exact root, eigen-decomposition and matrix products."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from covpool_plugins.linalg import covariance_sqrt, packed_size

from .baselines import BASELINES, ISQRT, MPA, SVD_PADE
from .gpu_report import Cells, Clock, Function, Report, Setting, Stopwatch, attempt
from .measure import (
    correlated_features,
    exact_root_and_gradient,
    relative_error,
    seeded_gradient,
    value_and_gradient,
)

CHANNELS, POSITIONS, BATCHES = (64, 128, 256, 512), (49, 196, 784), (32, 128, 8)
PUBLISHED_SIZES = ((256, 49), (128, 196), (256, 196), (512, 784))
ROUTES, COMPUTES = ("eigh", "products"), ("mixed", "float32")
CAP = 0.5  # seconds for the repetitions of one function at one size
LONGEST_RUN = 3.0  # a run expected to take longer is left out
AUTO_LIMIT = 0.2  # "auto" runs each route four times before the first result
MOST_REPEATS = 15
RULES_SAID = 4  # the best ones


def _packed_root(method: str, **options: Any) -> Function:
    return partial(covariance_sqrt, method=method, vectorize="triu", **options)


def _routes() -> dict[str, Function]:
    pairs = product(COMPUTES, ROUTES)
    return {f"{route}, {compute}": _packed_root("svdpade", route=route, compute=compute) for compute, route in pairs}


def _sizes(setting: Setting) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    return ((4, 8), (6, 12), (2, 4)) if setting.quick else (CHANNELS, POSITIONS, BATCHES)


def route_errors(setting: Setting, report: Report, clock: Clock) -> None:
    """Errors of both routes against the singular values of the features in float64."""
    report.notes.append("relative errors over a batch of 4 against float64 on the CPU")
    channels, positions, _ = _sizes(setting)
    for C, M in product(channels, positions):
        attempt(report, clock, {"C": C, "M": M}, partial(_errors_at, C, M, setting, report))


def _errors_at(C: int, M: int, setting: Setting, report: Report) -> Cells:
    X = correlated_features(4, C, M)
    G = seeded_gradient(torch.Size([4, packed_size(C)]))
    exact = exact_root_and_gradient(X, G)
    cells: Cells = {}
    for name, function in _routes().items():
        measured = value_and_gradient(function, X.to(setting.device), G.to(setting.device))
        errors = [relative_error(a.cpu(), b) for a, b in zip(measured, exact, strict=True)]
        cells[name] = " / ".join(f"{error:.1e}" for error in errors)
        report.figures.append(
            {"kind": "error", "C": C, "M": M, "function": name, "value": errors[0], "gradient": errors[1]}
        )
    return cells


def route_times(setting: Setting, report: Report, clock: Clock) -> None:
    """Times of both routes by size, beside isqrt and the rule that holds by default."""
    report.notes += [
        "ms of forward + backward of a batch; medians, functions in turn, the device idle before each",
        f"(1 run): one run took longer than {CAP} s; a run expected to take over {LONGEST_RUN:g} s is left out (> s)",
        f"auto: the default rule of svdpade, only where eigh, mixed takes less than {AUTO_LIMIT} s",
    ]
    per_image: dict[tuple, float] = {}
    channels, positions, batches = _sizes(setting)
    for batch, C, M in product(batches, channels, positions):
        item = {"C": C, "M": M, "batch": batch}
        attempt(report, clock, item, partial(_times_at, C, M, batch, per_image, setting, report))
    report.notes += rule_notes(report.figures)


def _times_at(C: int, M: int, batch: int, per_image: dict[tuple, float], setting: Setting, report: Report) -> Cells:
    functions = {**_routes(), "isqrt": _packed_root("isqrt")}
    expected = {name: batch * per_image.get((C, M, name), 0.0) for name in functions}
    X, G = _inputs(C, M, batch, setting)
    times = measure_times(functions, X, G, expected, setting)
    eigh = times.get("eigh, mixed")
    if eigh is not None and _both(eigh) < AUTO_LIMIT:
        times |= measure_times({"auto": _packed_root("svdpade")}, X, G, {}, setting)
    cells: Cells = {}
    for name in [*functions, "auto"]:
        figure = times.get(name)
        if figure is None:
            cells[name] = f"> {LONGEST_RUN:g} s" if name != "auto" else "-"
            continue
        per_image[C, M, name] = _both(figure) / batch
        cells[name] = time_text(figure)
        report.figures.append({"kind": "time", "C": C, "M": M, "batch": batch, "function": name, **figure})
    for compute in COMPUTES:
        eigh, products = (times.get(f"{route}, {compute}") for route in ROUTES)
        cells[f"faster, {compute}"] = _faster(_both(eigh) / _both(products)) if eigh and products else "-"
    return cells


def _inputs(C: int, M: int, batch: int, setting: Setting) -> tuple[Tensor, Tensor]:
    """Features and a gradient for their packed roots."""
    X = correlated_features(batch, C, M, setting.device)
    return X, seeded_gradient(torch.Size([batch, packed_size(C)]), setting.device)


def _both(figure: Cells) -> float:
    return figure["forward"] + figure["backward"]


def _faster(ratio: float) -> str:
    return f"products {ratio:.2f}x" if ratio > 1 else f"eigh {1 / ratio:.2f}x"


def time_text(figure: Cells) -> str:
    """Milliseconds of forward and backward, and whether there was one run alone."""
    milliseconds = 1e3 * _both(figure)
    text = f"{milliseconds:.0f}" if milliseconds >= 1000 else f"{milliseconds:.3g}"
    return text + (" (1 run)" if figure["runs"] == 1 else "")


def measure_times(
    functions: Mapping[str, Function], X: Tensor, G: Tensor, expected: Mapping[str, float], setting: Setting
) -> dict[str, Cells]:
    """Seconds of forward and of backward, medians; peak memory beyond the input.

    Args:
        functions: features (B, C, M) -> packed roots.
        X: the features.
        G: the gradient that goes into the backward.
        expected: seconds that each is expected to take; it is left out if they are more than LONGEST_RUN.
    """
    samples: dict[str, list[tuple[float, float]]] = {}
    figures: dict[str, Cells] = {}
    repeats: dict[str, int] = {}
    for name, function in functions.items():
        if expected.get(name, 0.0) > LONGEST_RUN:
            continue
        peak, first = _first_run(function, X, G, setting)
        samples[name] = [_time_once(function, X, G, setting) if sum(first) < 2 * CAP else first]
        seconds = sum(samples[name][0])
        repeats[name] = 0 if seconds > CAP else min(MOST_REPEATS, math.ceil(CAP / max(seconds, 1e-6)))
        figures[name] = {"peak, MB": peak}
    for turn in range(max(repeats.values(), default=0)):
        for name, count in repeats.items():
            if turn < count:
                samples[name].append(_time_once(functions[name], X, G, setting))
    for name, pairs in samples.items():
        forward, backward = (statistics.median(column) for column in zip(*pairs, strict=True))
        figures[name] |= {"forward": forward, "backward": backward, "runs": len(pairs)}
    return figures


def _first_run(function: Function, X: Tensor, G: Tensor, setting: Setting) -> tuple[float | None, tuple[float, float]]:
    """Peak MB beyond what there is already, and the seconds, in which kernels are loaded too."""
    if not setting.cuda:
        return None, _time_once(function, X, G, setting)
    torch.cuda.reset_peak_memory_stats(setting.device)
    before = torch.cuda.memory_allocated(setting.device)
    seconds = _time_once(function, X, G, setting)
    return (torch.cuda.max_memory_allocated(setting.device) - before) / 1e6, seconds


def _time_once(function: Function, X: Tensor, G: Tensor, setting: Setting) -> tuple[float, float]:
    leaf = X.detach().requires_grad_()
    watch = Stopwatch(setting)
    setting.synchronize()
    watch.mark()
    value = function(leaf)
    watch.mark()
    torch.autograd.grad(value, leaf, G.to(value.dtype))
    watch.mark()
    forward, backward = watch.seconds()
    return forward, backward


def published_times(setting: Setting, report: Report, clock: Clock) -> None:
    """The published forms beside both routes and isqrt."""
    report.notes.append("ms of forward + backward of a batch, as above")
    sizes, batch = (((6, 4), (4, 6)), 2) if setting.quick else (PUBLISHED_SIZES, 32)
    for C, M in sizes:
        item = {"C": C, "M": M, "batch": batch}
        attempt(report, clock, item, partial(_published_at, C, M, batch, setting, report))


def _published_at(C: int, M: int, batch: int, setting: Setting, report: Report) -> Cells:
    cells: Cells = {}
    functions: dict[str, Function] = {name: BASELINES[name] for name in (SVD_PADE, ISQRT, MPA)}
    functions |= {**_routes(), "isqrt": _packed_root("isqrt")}
    functions["mpa"] = _packed_root("mpa")
    X, G = _inputs(C, M, batch, setting)
    one = measure_times({SVD_PADE: BASELINES[SVD_PADE]}, X[:1], G[:1], {}, setting)[SVD_PADE]
    expected = {SVD_PADE: batch * _both(one)}
    times = measure_times(functions, X, G, expected, setting)
    for name in functions:
        if name in times:
            report.figures.append(
                {"kind": "published", "C": C, "M": M, "batch": batch, "function": name, **times[name]}
            )
        cells[name] = time_text(times[name]) if name in times else f"about {expected[name]:.1f} s, left out"
    return cells


def rule_notes(figures: Iterable[Cells]) -> list[str]:
    """Where which route is faster, and what simple rules lose against the faster one."""
    times = {(f["C"], f["M"], f["batch"], f["function"]): _both(f) for f in figures}
    sizes = list(dict.fromkeys(key[:3] for key in times))
    notes: list[str] = []
    for compute in COMPUTES:
        pairs = {size: [times.get((*size, f"{route}, {compute}")) for route in ROUTES] for size in sizes}
        ratios = {size: eigh / products for size, (eigh, products) in pairs.items() if eigh and products}
        if ratios:
            notes += [_summary(compute, ratios), *_rules(compute, ratios)]
    return notes


def _summary(compute: str, ratios: Mapping[tuple[int, int, int], float]) -> str:
    products = {size: ratio for size, ratio in ratios.items() if ratio > 1}
    others = [f"{C} x {M} x {batch} ({1 / ratio:.2f}x)" for (C, M, batch), ratio in ratios.items() if ratio <= 1]
    text = f"{compute}: products faster in {len(products)} of {len(ratios)} cells"
    if products:
        mean, most = _geometric_mean(products.values()), max(products.values())
        text += f", by {mean:.2f}x in the geometric mean, {most:.1f}x at most"
    return text + (f"; eigh faster at C x M x batch {', '.join(others)}" if others else "")


def _rules(compute: str, ratios: Mapping[tuple[int, int, int], float]) -> list[str]:
    """How much slower than the faster route simple rules are."""
    orders = sorted({min(C, M) for C, M, _ in ratios})
    rules: dict[str, Callable[[int, int], bool]] = {"always eigh": lambda n, batch: False}
    rules |= {f"products from min(C, M) = {n} up": partial(_at_least, n) for n in orders}
    rules |= {f"products up to min(C, M) = {n}": partial(_at_most, n) for n in orders[:-1]}
    losses = {
        name: [max(1.0, 1 / ratio if rule(min(C, M), batch) else ratio) for (C, M, batch), ratio in ratios.items()]
        for name, rule in rules.items()
    }
    best = sorted(losses, key=lambda name: _geometric_mean(losses[name]))[:RULES_SAID]
    return [
        f"{compute}, rule '{name}': {_geometric_mean(losses[name]):.2f} times the faster route's time in the geometric "
        f"mean, {max(losses[name]):.2f} times at worst"
        for name in best
    ]


def _at_least(limit: int, n: int, batch: int) -> bool:
    return n >= limit


def _at_most(limit: int, n: int, batch: int) -> bool:
    return n <= limit


def _geometric_mean(values: Iterable[float]) -> float:
    return math.exp(statistics.mean(math.log(value) for value in values))
