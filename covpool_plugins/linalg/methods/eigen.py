"""Methods with an eigen-decomposition: one function K(λ_i, λ_j) each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import METHODS, EigenMethod


@dataclass(frozen=True)
class Exact(EigenMethod):
    """The exact gradient, K = 1 / (√λ_i + √λ_j): the Lyapunov solution in the eigenbasis.

    Finite for equal eigenvalues; no difference is ever divided.

    Source: Lin & Maji, "Improved Bilinear Pooling with CNNs", BMVC 2017, eq. 9.
    """

    def divided_differences(self, first: Tensor, second: Tensor) -> Tensor:
        return (first.sqrt() + second.sqrt()).reciprocal()


@dataclass(frozen=True)
class SVDPade(EigenMethod):
    """SVD with the Padé approximant of the geometric series as its gradient.

    The paper writes 1 / (λ_i - λ_j) = (1 / λ_i) · 1 / (1 - x) with x = λ_j / λ_i <= 1, and replaces the geometric
    series 1 / (1 - x) by its [50/50] Padé approximant. That approximant *is* 1 / (1 - x): for every degree of
    denominator above zero the rational approximant of a geometric series is the series' sum, and the coefficients
    of the released code are rounding noise around a common factor. What is left,
    (√λ_i - √λ_j) / (λ_i (1 - x)), is written here without the cancellation:
    K = (1 / √λ_max) / (1 + √x). It agrees with the released code up to ties, where that code returns noise.

    Source: Song, Sebe & Wang, "Why Approximate Matrix Square Root Outperforms Accurate SVD in Global Covariance
    Pooling?", ICCV 2021, eq. 15-17.
    """

    def divided_differences(self, first: Tensor, second: Tensor) -> Tensor:
        larger = torch.maximum(first, second)
        x = torch.minimum(first, second) / larger
        return larger.rsqrt() / (1 + x.sqrt())


METHODS.add("exact", Exact())
METHODS.add("svdpade", SVDPade())
