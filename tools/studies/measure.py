"""Interleaved timing, bytes kept for backward, errors."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm import tqdm

Function = Callable[[Tensor], Tensor]


@dataclass
class Times:
    """Seconds of each repetition."""

    forward: list[float] = field(default_factory=list)
    backward: list[float] = field(default_factory=list)

    def median(self) -> tuple[float, float, float]:
        """Medians of forward, of backward and of their sum."""
        both = [f + b for f, b in zip(self.forward, self.backward, strict=True)]
        return statistics.median(self.forward), statistics.median(self.backward), statistics.median(both)


def time_interleaved(
    functions: Mapping[str, Function], X: Tensor, G: Mapping[str, Tensor], repeats: int, title: str
) -> dict[str, Times]:
    """Time forward and backward of all functions at X, one repetition of each in turn.

    A slow spell of the machine then hits all alike. The order changes from round to round, so that no function always
    meets the caches as the same other function has left them.

    Args:
        functions: the contenders.
        X: their input; it need not require a gradient.
        G: the gradient that goes into the backward of each.
        repeats: rounds that count, after one that does not.
        title: of the progress bar.
    """
    times = {name: Times() for name in functions}
    with tqdm(total=(repeats + 1) * len(functions), desc=title, unit="run", disable=None, leave=False) as progress:
        order, generator = list(functions), random.Random(0)
        for round_ in range(repeats + 1):
            generator.shuffle(order)
            for name in order:
                seconds = _time_once(functions[name], X, G[name])
                if round_:
                    times[name].forward.append(seconds[0])
                    times[name].backward.append(seconds[1])
                progress.update()
    return times


def _time_once(function: Function, X: Tensor, G: Tensor) -> tuple[float, float]:
    leaf = X.detach().requires_grad_()
    inputs = [leaf, *_parameters(function)]
    start = _now(X.device)
    result = function(leaf)
    middle = _now(X.device)
    torch.autograd.grad(result, inputs, G)
    return middle - start, _now(X.device) - middle


def _parameters(function: Function) -> list[Tensor]:
    """Those of a module, whose gradients are part of a training step."""
    return [p for p in function.parameters() if p.requires_grad] if isinstance(function, torch.nn.Module) else []


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def value_and_gradient(function: Function, X: Tensor, G: Tensor) -> tuple[Tensor, Tensor]:
    """f(X), and the gradient of Σ G ∘ f at X."""
    leaf = X.detach().requires_grad_()
    result = function(leaf)
    (gradient,) = torch.autograd.grad(result, leaf, G.to(result.dtype))
    return result.detach(), gradient


def bytes_saved(function: Function, X: Tensor) -> int:
    """Bytes that the graph of f(X) keeps for its backward; a storage counts once, X and parameters not at all."""
    leaf = X.detach().requires_grad_()
    storages: dict[int, int] = {}

    def pack(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        result = function(leaf)
    for held_anyway in (leaf, *_parameters(function)):
        storages.pop(held_anyway.untyped_storage().data_ptr(), None)
    del result  # alive until here, so that no two of its tensors can have had one address
    return sum(storages.values())


def relative_error(values: Tensor, expected: Tensor) -> float:
    """‖values - expected‖ / ‖expected‖ over the whole batch, in float64."""
    expected = expected.double()
    return float((values.double() - expected).norm() / expected.norm())


def correlated_features(batch: int, channels: int, positions: int, device: torch.device | str = "cpu") -> Tensor:
    """Correlated non-negative features (batch, channels, positions) in float32, as a ReLU leaves them; always the same.

    Channels are mixed, and each position shares half of its content with the one before.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(batch, channels, positions, generator=generator)
    noise = 0.7 * noise + 0.7 * noise.roll(1, dims=-1)
    mixing = torch.randn(channels, channels, generator=generator) / channels**0.5
    return (mixing @ noise + 0.3).relu().to(device)


def seeded_gradient(shape: torch.Size, device: torch.device | str = "cpu") -> Tensor:
    """A gradient for a result of this shape, always the same."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device)


def exact_root_and_gradient(X: Tensor, G: Tensor) -> tuple[Tensor, Tensor]:
    """Packed root of the covariance of X (B, C, M) and the gradient of Σ G ∘ root, in float64.

    From the singular values of the features, X̃ / √M = U s Vᵀ, with E = Uᵀ G U for G as a symmetric matrix:
    2 / √M [G U - U (s_i / (s_i + s_j) ∘ E)] Vᵀ, centred. The package never decomposes the features themselves.
    """
    X, (C, M) = X.double(), X.shape[-2:]
    row, column = torch.triu_indices(C, C, device=X.device)
    U, s, Vh = torch.linalg.svd((X - X.mean(-1, keepdim=True)) / M**0.5, full_matrices=False)
    full = torch.zeros(len(X), C, C, dtype=torch.float64, device=X.device)
    full[:, row, column] = 0.5 * G.double()
    full = full + full.mT
    GU = full @ U
    total = s.unsqueeze(-1) + s.unsqueeze(-2)
    share = torch.where(total > 0, s.unsqueeze(-1) / total, 0.5)
    gradient = 2 / M**0.5 * (GU - U @ (share * (U.mT @ GU))) @ Vh
    root = (U * s.unsqueeze(-2)) @ U.mT
    return root[:, row, column], gradient - gradient.mean(-1, keepdim=True)
