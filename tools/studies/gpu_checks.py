"""Sections of the ``gpu`` mode that check: values and gradients, autocast, synchronisation, graphs, compilation."""

from __future__ import annotations

import copy
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import covpool_plugins
from covpool_plugins import whitening
from covpool_plugins.linalg import covariance_sqrt
from covpool_plugins.pooling import Pool, create_pool, list_pools

from .gpu_report import Cells, Clock, Function, Report, Setting, Stopwatch, attempt
from .measure import correlated_features, relative_error, seeded_gradient

# Matrix products alone: these must not wait for the GPU, and a CUDA graph can record them.
PRODUCTS: dict[str, Cells] = {
    "isqrt": {"method": "isqrt"},
    "newton_schulz_lyapunov": {"method": "newton_schulz_lyapunov"},
    "minimax": {"method": "minimax"},
    "mtp": {"method": "mtp"},
    "svdpade, products, mixed": {"method": "svdpade", "route": "products"},
    "svdpade, products, float32": {"method": "svdpade", "route": "products", "compute": "float32"},
}
COMPILED = ("svdpade", "isqrt", "cbp", "gap", "bcnn", "mpa", "seb", "minimax", "crosscov", "moment", "lrbp", "temporal")
QUICK = ("gap", "svdpade", "isqrt", "bcnn", "cbp", "dropcov")
HALVES = {"bf16": torch.bfloat16, "f16": torch.float16}
TOLERANCE = 1e-4
FACTOR = 10.0  # how far above the CPU's own error in float32 the GPU's may be
LONGEST_COMPILATION = 40.0  # seconds
NEEDS_CUDA = "needs CUDA"
PACKAGE = Path(str(covpool_plugins.__file__)).parent


def float32_pools(setting: Setting, report: Report, clock: Clock) -> None:
    """Every pool in float32 on the device against float64 on the CPU."""
    report.notes.append(
        f"relative errors against float64 on the CPU; ok: at most {TOLERANCE:g}, or {FACTOR:g} times the CPU's error "
        "in float32; in training mode, random pools in evaluation mode"
    )
    for channels, side in _maps(setting):
        x = _map(channels, side)
        for name in _pools(setting):
            item = {"pool": name, "maps": f"{channels} x {side} x {side}"}
            attempt(report, clock, item, partial(_pool_errors, name, x, setting))


def norm_layers(setting: Setting, report: Report, clock: Clock) -> None:
    """Every whitening layer and method: float32 against float64 in training and evaluation, and half precision."""
    report.notes.append("errors as for the pools; under autocast against float32 with the same rounded input")
    x = _map(8 if setting.quick else 32, 7, batch=16)
    for name, layer in _layers(x.shape[1]):
        attempt(report, clock, {"layer": name}, partial(_layer_errors, layer, x, setting))


def half_precision_pools(setting: Setting, report: Report, clock: Clock) -> None:
    """Every pool under autocast."""
    report.notes.append(
        "errors of `represent` under autocast on rounded features, against float32 on the same features; "
        "finite: value and gradients of the whole pool under autocast, reduction included"
    )
    channels, side = _maps(setting)[0]
    x = _map(channels, side).to(setting.device)
    for name in _pools(setting):
        attempt(report, clock, {"pool": name}, partial(_pool_in_half_precision, name, x, setting))


def synchronisation(setting: Setting, report: Report, clock: Clock) -> None:
    """Which functions, pools and layers wait for the GPU, forward or backward."""
    report.notes.append(
        "as PyTorch's sync debug mode tells; ok: does not wait, or may; the line is that of this package"
    )
    channels, side = _maps(setting)[0]
    for C, M in ((channels // 5, side * side), (side * side, channels // 5)):
        X = correlated_features(4, C, M, setting.device)
        for name, options in PRODUCTS.items():
            function = partial(covariance_sqrt, **options)
            item = {"of": f"covariance_sqrt {name}, {C} x {M}", "may wait": "no"}
            attempt(report, clock, item, partial(_waits, function, X, False, setting))
    x = _map(channels, side).to(setting.device)
    for name in _pools(setting):
        may_wait = name not in PRODUCTS and name != "gap"
        item = {"of": f"pool {name}", "may wait": "yes" if may_wait else "no"}
        attempt(report, clock, item, partial(_pool_waits, name, x, may_wait, setting))
    x = _map(channels // 10 * 2, 7, batch=8).to(setting.device)
    for name, layer in _layers(x.shape[1]):
        item = {"of": f"layer {name}", "may wait": "yes"}
        attempt(report, clock, item, partial(_waits, layer.to(setting.device), x, True, setting))


def cuda_graphs(setting: Setting, report: Report, clock: Clock) -> None:
    """Forward and backward of matrix products recorded by a CUDA graph and replayed with other features."""
    report.notes.append("errors of the replay against the same function without a graph; ms of forward and backward")
    shapes = ((16, 9), (9, 16)) if setting.quick else ((256, 49), (128, 196))
    for shape in shapes:
        X = correlated_features(4 if setting.quick else 32, *shape, device=setting.device)
        for name, options in PRODUCTS.items():
            item = {"method": name, "features": f"{shape[0]} x {shape[1]}"}
            attempt(report, clock, item, partial(_replay, partial(covariance_sqrt, **options), X, setting))


def compilation(setting: Setting, report: Report, clock: Clock) -> None:
    """Pools under ``torch.compile(fullgraph=True)``."""
    backend = "inductor" if setting.cuda else "aot_eager"
    report.notes.append(f"backend {backend}; errors against eager float32; seconds until the first backward is done")
    channels, side = _maps(setting)[0]
    x = _map(channels, side).to(setting.device)
    for name in COMPILED[:2] if setting.quick else COMPILED:
        compiled = partial(_compiled_errors, name, x, backend, setting)
        attempt(report, clock, {"pool": name}, compiled, LONGEST_COMPILATION)


def _maps(setting: Setting) -> tuple[tuple[int, int], tuple[int, int]]:
    """Channels and side of maps with fewer positions than channels (after the default reduction), and with more."""
    return ((20, 3), (6, 4)) if setting.quick else ((320, 7), (48, 14))


def _pools(setting: Setting) -> Iterable[str]:
    return QUICK if setting.quick else list_pools()


def _map(channels: int, side: int, batch: int = 4) -> Tensor:
    return correlated_features(batch, channels, side * side).unflatten(-1, (side, side))


def _pool(name: str, channels: int) -> Pool:
    """With the default options, the same weights every time, and in evaluation mode if it is random in training."""
    torch.manual_seed(0)
    pool = create_pool(name, channels)
    x = torch.rand(4, channels, 3, 3)
    trial = copy.deepcopy(pool)
    with torch.no_grad():
        first, second = trial(x), trial(x)
    return pool if torch.equal(first, second) else pool.eval()


def _layers(channels: int) -> Iterator[tuple[str, nn.Module]]:
    list_methods = whitening.list_whitening_methods
    for method in list_methods():
        yield f"ZCANorm2d, {method}", whitening.ZCANorm2d(channels, groups=2, method=method)
    yield "ZCANorm2d, energy 0.9", whitening.ZCANorm2d(channels, groups=2, energy=0.9)
    for method in list_methods(eigenvectors=True):
        yield f"PCANorm2d, {method}", whitening.PCANorm2d(channels, 2, groups=2, method=method)
    yield "PCANorm2d, energy 0.9", whitening.PCANorm2d(channels, groups=2, energy=0.9)


Gradients = tuple[Tensor, Tensor, Tensor]


def _run(
    function: Function, x: Tensor, G: Tensor | None = None, around: Callable[[Function], Function] | None = None
) -> Gradients:
    """Value, gradient of x, gradients of all parameters in one vector (empty without parameters).

    Args:
        function: a function, or a module with parameters.
        G: gradient that goes into the backward; one of the value's shape by default.
        around: what the function runs in, for example autocast.
    """
    leaf = x.detach().requires_grad_()
    value = (around(function) if around else function)(leaf)
    G = seeded_gradient(value.shape, value.device) if G is None else G
    parameters = list(function.parameters()) if isinstance(function, nn.Module) else []
    gradients = torch.autograd.grad(value, [leaf, *parameters], G.to(value.dtype), allow_unused=True)
    of_parameters = [gradient.flatten() for gradient in gradients[1:] if gradient is not None]
    return value.detach(), gradients[0], torch.cat(of_parameters) if of_parameters else x.new_empty(0)


def _errors(measured: Gradients, expected: Gradients) -> list[float | None]:
    """Relative errors; ``None`` where there are no parameters."""
    pairs = zip(measured, expected, strict=True)
    return [relative_error(a.cpu(), b.cpu()) if b.numel() else None for a, b in pairs]


def _float32_errors(module: nn.Module, x: Tensor, setting: Setting) -> Cells:
    exact = _run(copy.deepcopy(module).double(), x.double())
    on_cpu = _errors(_run(copy.deepcopy(module), x), exact)
    on_device = _errors(_run(copy.deepcopy(module).to(setting.device), x.to(setting.device)), exact)
    pairs = [(a, b) for a, b in zip(on_device, on_cpu, strict=True) if a is not None and b is not None]
    within = all(a <= max(TOLERANCE, FACTOR * b) for a, b in pairs)
    return {
        "value": on_device[0],
        "gradient": on_device[1],
        "parameters": on_device[2],
        "CPU value": on_cpu[0],
        "CPU gradient": on_cpu[1],
        "CPU parameters": on_cpu[2],
        "ok": within,
    }


def _pool_errors(name: str, x: Tensor, setting: Setting) -> Cells:
    pool = _pool(name, x.shape[1])
    return {"mode": "training" if pool.training else "evaluation", **_float32_errors(pool, x, setting)}


def _layer_errors(layer: nn.Module, x: Tensor, setting: Setting) -> Cells:
    cells = _float32_errors(layer, x, setting)
    layer = copy.deepcopy(layer)
    layer(x)  # running averages for evaluation
    evaluation = _float32_errors(copy.deepcopy(layer).eval(), x, setting)
    cells |= {"evaluation value": evaluation["value"], "ok": cells["ok"] and evaluation["ok"]}
    layer.to(setting.device)
    for label, dtype in HALVES.items():
        rounded = x.to(setting.device, dtype)
        cells |= _half_errors(label, layer, rounded, dtype, setting)
    return cells


def _pool_in_half_precision(name: str, x: Tensor, setting: Setting) -> Cells:
    pool = _pool(name, x.shape[1]).to(setting.device)
    features = pool.features(x).detach()
    cells: Cells = {}
    for label, dtype in HALVES.items():
        cells |= _half_errors(label, pool.represent, features.to(dtype), dtype, setting)
        whole = _run(pool, x, around=partial(_under_autocast, dtype=dtype, setting=setting))
        cells[f"{label} finite"] = all(bool(part.isfinite().all()) for part in whole)
    return cells


def _half_errors(label: str, function: Function, rounded: Tensor, dtype: torch.dtype, setting: Setting) -> Cells:
    with torch.no_grad():
        G = seeded_gradient(function(rounded.float()).shape, setting.device).to(dtype)
    exact = _run(function, rounded.float(), G)
    measured = _run(function, rounded, G, partial(_under_autocast, dtype=dtype, setting=setting))
    value, gradient, _ = _errors(measured, exact)
    return {f"{label} value": value, f"{label} gradient": gradient}


def _under_autocast(function: Function, dtype: torch.dtype, setting: Setting) -> Function:
    def run(x: Tensor) -> Tensor:
        with torch.autocast(setting.device.type, dtype=dtype):
            return function(x)

    return run


def _pool_waits(name: str, x: Tensor, may_wait: bool, setting: Setting) -> Cells:
    return _waits(_pool(name, x.shape[1]).to(setting.device), x, may_wait, setting)


def _waits(function: Function, x: Tensor, may_wait: bool, setting: Setting) -> Cells:
    """Where forward and backward, that of the parameters too, wait for the GPU."""
    leaf = x.detach().requires_grad_()
    parameters = function.parameters() if isinstance(function, nn.Module) else []
    inputs = [leaf, *(parameter for parameter in parameters if parameter.requires_grad)]
    G = seeded_gradient(function(leaf).shape, x.device)
    for _ in range(2):
        torch.autograd.grad(function(leaf), inputs, G, allow_unused=True)
    if not setting.cuda:
        return {"forward": NEEDS_CUDA, "backward": NEEDS_CUDA}
    results: list[Tensor] = []
    forward = _first_wait(lambda: results.append(function(leaf)))
    value = results[0] if results else function(leaf)
    backward = _first_wait(lambda: torch.autograd.grad(value, inputs, G, allow_unused=True))
    return {"forward": forward, "backward": backward, "ok": may_wait or forward == backward == "no"}


def _first_wait(run: Callable[[], Any]) -> str:
    """``no``, or the line of this package that waits for the GPU."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        frames = [
            frame for frame in traceback.extract_tb(error.__traceback__) if PACKAGE in Path(frame.filename).parents
        ]
        return f"waits: {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "waits"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "no"


def _replay(function: Function, X: Tensor, setting: Setting) -> Cells:
    G = seeded_gradient(function(X).shape, setting.device)
    if not setting.cuda:
        return {"capture": NEEDS_CUDA}
    static = X.clone().requires_grad_()

    def step() -> tuple[Tensor, Tensor]:
        value = function(static)
        return value, torch.autograd.grad(value, static, G)[0]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value, gradient = step()
    other = X.flip(0).mul(1.5)
    with torch.no_grad():
        static.copy_(other)
    graph.replay()
    torch.cuda.synchronize()
    expected = _run(function, other, G)
    errors = [relative_error(value.detach(), expected[0]), relative_error(gradient, expected[1])]
    return {
        "value": errors[0],
        "gradient": errors[1],
        "ok": max(errors) < 1e-5,
        "eager, ms": 1e3 * _seconds(step, setting),
        "replay, ms": 1e3 * _seconds(graph.replay, setting),
    }


def _seconds(run: Callable[[], Any], setting: Setting, repeats: int = 10) -> float:
    watch = Stopwatch(setting)
    setting.synchronize()
    watch.mark()
    for _ in range(repeats):
        run()
    watch.mark()
    return watch.seconds()[0] / repeats


def _compiled_errors(name: str, x: Tensor, backend: str, setting: Setting) -> Cells:
    torch.compiler.reset()
    pool = _pool(name, x.shape[1]).to(setting.device)
    expected = _run(copy.deepcopy(pool), x)
    start = time.perf_counter()
    compiled: Any = torch.compile(copy.deepcopy(pool), fullgraph=True, backend=backend)
    measured = _run(compiled, x)
    setting.synchronize()
    value, gradient, parameters = _errors(measured, expected)
    errors = [error for error in (value, gradient, parameters) if error is not None]
    return {
        "value": value,
        "gradient": gradient,
        "parameters": parameters,
        "ok": max(errors) < 1e-3,
        "seconds": time.perf_counter() - start,
    }
