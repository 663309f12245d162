"""Σ λ exp(-2 λ) over the eigenvalues of the covariance of features, beside its square root.

It is ‖A^(1/2) exp(-A)‖² for the covariance A. With X̃ / √M = U s Vᵀ and λ = s² the root has the eigenvalues, and the
gradient of the sum is 2 / √M · U diag(s f'(λ)) Vᵀ = 2 / M · f'(A) X̃ with f'(λ) = (1 - 2 λ) exp(-2 λ).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..linalg import Exact
from ..linalg.covariance import center
from ..linalg.feature_functions import FeatureFunction, Rule, decompose_features, function_of_features
from ..linalg.methods.base import SpectralMethod
from ..linalg.spectral import NegativeExponential
from ..linalg.tensors import Function, apply, autocast_off, is_plain, kept, product


def root_and_damped_sum(X: Tensor, centered: bool, mixed: bool, packed: bool) -> tuple[Tensor, Tensor]:
    """The root of the covariance of features (..., C, M), as a matrix or packed, and the sum (..., 1) in float64."""
    rule = Rule(Exact(), centered, mixed, packed)
    decomposition = decompose_features(X, rule)
    return apply(FeatureFunction, X, *decomposition, rule), apply(DampedSum, X, *decomposition, centered)


class DampedSum(Function):
    """The sum, from what ``decompose_features`` makes of X."""

    @staticmethod
    def forward(X: Tensor, values: Tensor, U: Tensor, V: Tensor, centered: bool) -> Tensor:
        return (values * torch.exp(-2 * values)).sum(-1, keepdim=True)

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> tuple:
        gradient = _gradient(*kept(ctx))
        return G.unsqueeze(-1).to(gradient.dtype) * gradient, None, None, None, None

    @staticmethod
    def tangent(ctx: Any, along_X: Tensor, *_: Any) -> Tensor:
        along = _gradient(*kept(ctx)) * along_X
        return along.double().sum((-2, -1)).unsqueeze(-1)


def _gradient(X: Tensor, values: Tensor, U: Tensor, V: Tensor, centered: bool) -> Tensor:
    with autocast_off(X.device.type):
        if not is_plain(X):  # as a function that has derivatives itself
            rule = Rule(SlopeDeficit(), centered, X.dtype != torch.float64, False)
            Xc = center(X, centered)[0]
            return (2 / X.shape[-1]) * (Xc - product(function_of_features(X, rule), Xc))
        slope = (1 - SlopeDeficit().values(values)).unsqueeze(-2)
        if V.shape[-1]:
            return 2 * (U * (slope * values.sqrt().unsqueeze(-2)).to(X.dtype)) @ V.mT
        U = U.to(X.dtype)  # more positions than channels
        return (2 / X.shape[-1]) * (U * slope.to(X.dtype)) @ (U.mT @ center(X, centered)[0])


@dataclass(frozen=True)
class SlopeDeficit(SpectralMethod):
    """1 - (1 - 2 λ) exp(-2 λ): what the slope of λ exp(-2 λ) has less than at zero."""

    def values(self, eigenvalues: Tensor) -> Tensor:
        return 2 * eigenvalues * torch.exp(-2 * eigenvalues) - torch.expm1(-2 * eigenvalues)

    def divided_differences(self, first: Tensor, second: Tensor) -> Tensor:
        low, high = torch.minimum(first, second), torch.maximum(first, second)
        exponential = 2 * NegativeExponential().divided_differences(2 * first, 2 * second)
        return 2 * torch.exp(-2 * high) + (2 * low - 1) * exponential

    @property
    def derivatives_at_zero(self) -> float:
        return float("inf")

    def derivative(self, eigenvalues: Tensor, order: int) -> Tensor | None:
        return (8 * eigenvalues - 12 if order == 2 else 32 * eigenvalues - 80) * torch.exp(-2 * eigenvalues)
