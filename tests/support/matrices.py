"""Symmetric matrices and features with spectra that matter."""

from __future__ import annotations

import torch
from torch import Tensor

SPECTRA: dict[str, list[float]] = {
    "well": [1.0, 0.8, 0.55, 0.4, 0.3, 0.2],
    "repeated": [1.0, 0.5, 0.5, 0.5, 0.2, 0.2],
    "nearly_equal": [1.0, 0.5, 0.5 + 1e-9, 0.5 - 1e-9, 0.2, 0.2 + 1e-12],
    "identity": [1.0] * 6,
    "dominant": [1.0, 1e-4, 0.8e-4, 0.5e-4, 0.3e-4, 0.2e-4],
}


def orthogonal(n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator))[0]


def with_spectrum(kind: str, batch: int = 2, size: int = 6) -> Tensor:
    """Matrices (batch, size, size) in float64 with the first values of the named spectrum in random bases."""
    values = torch.tensor(SPECTRA[kind][:size], dtype=torch.float64)
    bases = torch.stack([orthogonal(len(values), seed) for seed in range(batch)])
    A = (bases * values) @ bases.mT
    return 0.5 * (A + A.mT)


def features(channels: int, positions: int, batch: int = 2, seed: int = 0) -> Tensor:
    """Correlated non-negative features (batch, channels, positions) in float64."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(batch, channels, positions, dtype=torch.float64, generator=generator)
    mixing = torch.randn(channels, channels, dtype=torch.float64, generator=generator)
    return (mixing @ noise / channels**0.5 + 0.3).relu()


def maps(channels: int, height: int, width: int, batch: int = 2, seed: int = 0) -> Tensor:
    """The features as (batch, channels, height, width)."""
    return features(channels, height * width, batch, seed).unflatten(-1, (height, width))


def exact_covariance_root(X: Tensor, centered: bool = True) -> Tensor:
    """Square root of the covariance by a float64 singular value decomposition of the features."""
    Xc = X.double()
    Xc = Xc - Xc.mean(-1, keepdim=True) if centered else Xc
    U, s, _ = torch.linalg.svd(Xc / X.shape[-1] ** 0.5, full_matrices=False)
    return (U * s.unsqueeze(-2)) @ U.mT


def relative_error(result: Tensor, expected: Tensor) -> float:
    result, expected = result.detach().double(), expected.detach().double()
    return float((result - expected).norm() / expected.norm())


def regular_shape(method: str, shape: tuple[int, int]) -> tuple[int, int]:
    """Denman-Beavers magnifies rounding in the null space of a singular covariance: more positions than channels."""
    return (5, 9) if method == "denman_beavers" else shape
