"""The ``whitening`` mode: a training step of the layers against plain forms of the published ones and BatchNorm."""

from __future__ import annotations

import argparse
import copy
from typing import Any, cast

import torch
from torch import Tensor, nn

from covpool_plugins.errors import OptionError
from covpool_plugins.whitening import ZCANorm2d
from covpool_plugins.whitening.matrices import list_whitening_methods

from .baselines import published_inverse_root
from .measure import correlated_features
from .modes import MODES, Mode, add_common_arguments, add_names, add_numbers
from .sections import Contender, Section, run_sections

LOOP, COMPOSITION, BATCH_NORM = "loop over eigenvectors", "mpa composed", "BatchNorm2d"
EPS, MOMENTUM, ITERATIONS = 1e-4, 0.1, 19


class PlainNorm(nn.Module):
    """Mean, covariance, application, affine map and running averages, one operation after the other."""

    def __init__(self, num_features: int, groups: int) -> None:
        super().__init__()
        self.groups, d = groups, num_features // groups
        self.weight, self.bias = nn.Parameter(torch.ones(num_features, 1)), nn.Parameter(torch.zeros(num_features, 1))
        self.register_buffer("running_mean", torch.zeros(num_features, 1))
        self.register_buffer("running_subspace", torch.eye(d).repeat(groups, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        X = x.transpose(0, 1).contiguous().view(C, -1)
        mean = X.mean(1, keepdim=True)
        groups = (X - mean).view(self.groups, C // self.groups, -1)
        y, matrices = self.whiten(groups)
        with torch.no_grad():
            self.running_mean.lerp_(mean, MOMENTUM)  # type: ignore[operator]
            self.running_subspace.lerp_(matrices, MOMENTUM)  # type: ignore[operator]
        y = self.weight * y.view(C, -1) + self.bias
        return y.view(C, B, H, W).transpose(0, 1)

    def whiten(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """White features (G, d, N) and matrices (G, d, d) for centred features (G, d, N)."""
        raise NotImplementedError


class EigenvectorLoop(PlainNorm):
    """For each group SVD, then for each eigenvector its power iteration, its deflation and its share of the matrix.

    Source: Wang et al., "Backpropagation-Friendly Eigendecomposition", NeurIPS 2019.
    """

    def whiten(self, X: Tensor) -> tuple[Tensor, Tensor]:
        white, matrices = [], []
        for group in X.unbind(0):
            covariance = group @ group.T / group.shape[1] + EPS * torch.eye(len(group), device=X.device)
            with torch.no_grad():
                vectors = torch.linalg.svd(covariance)[0]
            matrix = torch.zeros_like(covariance)
            for k in range(len(group)):
                v = PowerIterationStep.apply(covariance, vectors[:, k : k + 1])
                value = v.T @ covariance @ v / (v.T @ v)
                matrix = matrix + v @ v.T / value.sqrt()
                covariance = covariance - covariance @ v @ v.T
            white.append(matrix @ group)
            matrices.append(matrix)
        return torch.stack(white), torch.stack(matrices).detach()


class PowerIterationStep(torch.autograd.Function):
    """An eigenvector that is known already; backward is the series of the power iteration (eq. 12)."""

    @staticmethod
    def forward(ctx: Any, M: Tensor, v: Tensor) -> Tensor:
        for _ in range(ITERATIONS):
            v = M @ v
            v = v / v.norm()
        ctx.save_for_backward(M, v)
        return v

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> tuple[Tensor, None]:
        M, v = ctx.saved_tensors
        length = (M @ v).norm()
        term = (torch.eye(len(M), device=M.device) - v @ v.T) @ G / length
        total = term
        for _ in range(ITERATIONS):
            term = M @ term / length
            total = total + term
        return total @ v.T, None


class PadeComposition(PlainNorm):
    """The Padé approximant of all groups' inverse roots at once, by LU, with the iterative Lyapunov gradient.

    Source: Song, Sebe & Wang, "Fast Differentiable Matrix Square Root", ICLR 2022.
    """

    def whiten(self, X: Tensor) -> tuple[Tensor, Tensor]:
        eye = torch.eye(X.shape[1], device=X.device)
        matrices = published_inverse_root(X @ X.mT / X.shape[2] + EPS * eye)
        return matrices @ X, matrices.detach()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_numbers(parser, "--channels", 64)
    add_numbers(parser, "--group-sizes", [2, 4, 8, 16, 64])
    add_numbers(parser, "--side", 16, "of the maps")
    add_names(parser, "--methods", list_whitening_methods(), ["exact", "svdpi"])
    parser.add_argument("--compile", action="store_true", help="time each method as torch.compile makes it, too")
    add_common_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    for size in arguments.group_sizes:
        if arguments.channels % size:
            raise OptionError(f"--group-sizes must divide --channels {arguments.channels}, got {size}")
    run_sections(arguments, (group_section(arguments, size) for size in arguments.group_sizes))


def group_section(arguments: argparse.Namespace, size: int) -> Section:
    """Maps (batch, C, side, side) through the layers in groups of so many channels, with all gradients."""
    C, S, device = arguments.channels, arguments.side, arguments.device
    groups = C // size
    ours: dict[str, nn.Module] = {name: ZCANorm2d(C, groups, EPS, MOMENTUM, method=name) for name in arguments.methods}
    if arguments.compile:
        ours |= {
            f"{name}, compiled": cast(nn.Module, torch.compile(layer)) for name, layer in copy.deepcopy(ours).items()
        }
    layers: list[tuple[str, str, nn.Module]] = [
        (LOOP, "baseline", EigenvectorLoop(C, groups)),
        (COMPOSITION, "baseline", PadeComposition(C, groups)),
        (BATCH_NORM, "baseline", nn.BatchNorm2d(C)),
        *((name, "ours", layer) for name, layer in ours.items()),
    ]
    contenders = [Contender(name, kind, layer.to(device)) for name, kind, layer in layers]
    X = correlated_features(arguments.batch, C, S * S, device).unflatten(-1, (S, S))
    title = f"{arguments.batch} x {C} x {S} x {S}, groups of {size}"
    return Section(title, contenders, X, against=(LOOP, COMPOSITION, BATCH_NORM), details={"size": size})


EXAMPLE = "python tools/benchmark.py whitening --group-sizes 8 64 --repeats 20 --json out/whitening.json"
MODES.add("whitening", Mode(__doc__ or "", EXAMPLE, add_arguments, run))
