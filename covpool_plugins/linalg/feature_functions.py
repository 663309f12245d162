"""Functions of the covariance of features as one map: value, gradient, forward mode, second derivative.

With X̃ / √M = U s Vᵀ and a function with f(0) = 0, f(A) is U f(s²) Uᵀ, and for the gradient G with E = Uᵀ G U

    dL/dX = 2 / √M · [ G U diag(s_j K(λ_j, 0)) + U ((s_j K(λ_i, λ_j) - s_j K(λ_j, 0)) ∘ E) ] Vᵀ,      λ = s²,

where K is the method's rule. Nothing is divided by s, so rank-deficient covariances, the normal case with 49 positions
and 256 channels, need no care. With M <= C the M x M Gram matrix is decomposed, otherwise the covariance; then U is
square, and 2 / √M · U (s_j K(λ_i, λ_j) ∘ E) Vᵀ is left. Every factor is of the size of the gradient, if U and V are
right; they are computed in float64. The derivative along a tangent of X is the adjoint of the same formula.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .covariance import center, fewer_positions, rounding_of_mean
from .packing import pack_triu, packed_square, unpack_gradient, unpacked_gradient_product
from .tensors import (
    Function,
    apply,
    autocast_off,
    first_derivative_only,
    guarded_eigh,
    identity_like,
    kept,
    no_further_derivative,
    null_threshold,
    power_of_two,
    root_of,
    symmetrize,
)

if TYPE_CHECKING:
    from .methods.base import SpectralMethod


@dataclass(frozen=True)
class Rule:
    """What is computed of the features.

    Args:
        function: of the eigenvalues.
        centered: subtract the mean over the positions.
        mixed: decompose in float64, whatever the features are in.
        packed: the upper triangle as a vector.
    """

    function: SpectralMethod
    centered: bool
    mixed: bool
    packed: bool


def function_of_features(X: Tensor, rule: Rule) -> Tensor:
    """f(covariance of X) for features (..., C, M) in float32 or float64, in that precision."""
    values, U, V = decompose_features(X, rule)
    return apply(FeatureFunction, X, values, U, V, rule)


def decompose_features(X: Tensor, rule: Rule) -> tuple[Tensor, Tensor, Tensor]:
    """λ (..., n), U (..., C, n) and, for M <= C, V / √M (..., M, n) of X̃ / √M = U s Vᵀ; n is the smaller of C and M.

    For more positions V is empty, and U in the precision of the decomposition, because Vᵀ needs it.
    Eigenvalues ascend; those that cannot be told from zero are zero, and so is what is divided by their root.
    """
    M = X.shape[-1]
    with autocast_off(X.device.type):
        wide, mean = center(X.detach(), rule.centered, torch.float64 if rule.mixed else X.dtype)
        # In float64 the squares of float32 numbers stay in range.
        unit = 1.0 if rule.mixed and X.dtype != torch.float64 else power_of_two(wide)
        Y = wide / (unit * root_of(M))
        if not fewer_positions(X):
            values, U = _decomposition(Y @ Y.mT, unit, mean, X.dtype)
            return values, U, X.new_empty(*X.shape[:-2], 0, 0)
        values, V = _decomposition(Y.mT @ Y, unit, mean, X.dtype)
        V = V / root_of(M)
        U = (wide @ V) * _reciprocal_root(values).unsqueeze(-2).to(wide.dtype)
        return values, U.to(X.dtype), V.to(X.dtype)


def _decomposition(A: Tensor, unit: Tensor | float, mean: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Eigenvalues in float64 and vectors of unit² A, a covariance or Gram matrix of features of that type and mean.

    Eigenvalues that cannot be told from zero, or whose root has no reciprocal in the type, are zero.
    """
    values, U = guarded_eigh(A)
    values = values.double() * (unit.squeeze(-1).double().square() if isinstance(unit, Tensor) else 1.0)
    threshold = null_threshold(values, A.dtype).clamp_min(torch.finfo(dtype).tiny ** 2)
    if mean is not None:
        threshold = torch.maximum(threshold, rounding_of_mean(mean))
    return torch.where(values <= threshold, 0.0, values), U


def _reciprocal_root(values: Tensor) -> Tensor:
    return torch.where(values == 0, 0.0, torch.where(values == 0, 1.0, values).rsqrt())


def _times_right_vectors(Z: Tensor, X: Tensor, values: Tensor, U: Tensor, rule: Rule) -> Tensor:
    """Z Vᵀ / √M (..., C, M) for more positions than channels and Z (..., C, n)."""
    scaled = (U * (_reciprocal_root(values) / X.shape[-1]).unsqueeze(-2).to(U.dtype)).mT
    Xc = center(X, rule.centered, U.dtype)[0]
    # Vᵀ itself is right in float64 alone; where it is not, its product with the features can wait, which takes less.
    return Z @ (scaled @ Xc).to(X.dtype) if U.dtype == torch.float64 else (Z @ scaled) @ Xc


class FeatureFunction(Function):
    """f(A) from what :func:`decompose_features` makes of X."""

    @staticmethod
    def forward(X: Tensor, values: Tensor, U: Tensor, V: Tensor, rule: Rule) -> Tensor:
        # X is kept by reference, not copied: the layer before has it anyway.
        with autocast_off(X.device.type):
            image = rule.function.values(rule.function.truncate(values))
            half = U.to(X.dtype) * image.sqrt().to(X.dtype).unsqueeze(-2)
            return packed_square(half) if rule.packed else half @ half.mT

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> tuple:
        return apply(FeatureDerivative, G, *kept(ctx), True), None, None, None, None

    @staticmethod
    def tangent(ctx: Any, along_X: Tensor, *_: Any) -> Tensor:
        return apply(FeatureDerivative, along_X, *kept(ctx), False)


class FeatureDerivative(Function):
    """The derivative of f(A) along a tangent D of X or, for its adjoint, the gradient of ⟨D, f(A)⟩ in X.

    f(A) and with it the D of the adjoint are full or packed.
    """

    @staticmethod
    def forward(D: Tensor, X: Tensor, values: Tensor, U: Tensor, V: Tensor, rule: Rule, adjoint: bool) -> Tensor:
        with autocast_off(X.device.type):
            return (_gradient if adjoint else _tangent)(D, X, values, U, V, rule)

    @staticmethod
    def backward(ctx: Any, H: Tensor) -> tuple:
        D, *decomposed, rule, adjoint = kept(ctx)
        along_D = apply(FeatureDerivative, H, *decomposed, rule, not adjoint)
        G, along = (D, H) if adjoint else (H, D)
        return along_D, _curvature(G, along, decomposed[0], rule), None, None, None, None, None

    @staticmethod
    def tangent(ctx: Any, along_D: Tensor | None, along_X: Tensor | None, *_: Any) -> Tensor:
        D, *decomposed, rule, adjoint = kept(ctx)
        linear = 0.0 if along_D is None else apply(FeatureDerivative, along_D, *decomposed, rule, adjoint)
        if along_X is None:
            assert isinstance(linear, Tensor)
            return linear
        if not adjoint:
            raise no_further_derivative("a forward derivative")
        return _curvature(D, along_X, decomposed[0], rule) + linear


def _gradient(G: Tensor, X: Tensor, values: Tensor, U: Tensor, V: Tensor, rule: Rule) -> Tensor:
    left = U.to(X.dtype)
    # Twice the symmetric gradient, times U.
    GU = unpacked_gradient_product(G, left) if rule.packed else (G + G.mT) @ left
    E = left.mT @ GU
    K, to_null = _scaled_coefficients(values, V, rule.function)
    if to_null is None:
        return _times_right_vectors(left @ (E * K.to(X.dtype)), X, values, U, rule)
    E = E.mul_((K - to_null).to(X.dtype))
    return (GU.mul_(to_null.to(X.dtype)) + left @ E) @ V.mT


def _tangent(H: Tensor, X: Tensor, values: Tensor, U: Tensor, V: Tensor, rule: Rule) -> Tensor:
    left = U.to(X.dtype)
    K, to_null = _scaled_coefficients(values, V, rule.function)
    centred = center(H, rule.centered)[0]
    if to_null is None:
        along = centred @ _times_right_vectors(identity_like(left).expand_as(left), X, values, U, rule).mT
        D = left @ (K.to(X.dtype) * (left.mT @ along))
    else:
        along = centred @ V
        D = along * to_null.to(X.dtype) + left @ ((K - to_null).to(X.dtype) * (left.mT @ along))
    D = D @ left.mT
    D = D + D.mT
    return pack_triu(D) if rule.packed else D


def _scaled_coefficients(values: Tensor, V: Tensor, function: SpectralMethod) -> tuple[Tensor, Tensor | None]:
    """s_j K(λ_i, λ_j) (..., n, n); and s_j K(λ_j, 0) (..., 1, n) where U does not span the channels."""
    kept, s = function.truncate(values), values.sqrt().unsqueeze(-2)
    K = function.coefficients(kept, kept) * s
    if V.shape[-1] == 0:
        return K, None
    return K, function.coefficients(torch.zeros_like(values[..., :1]), kept) * s


def _curvature(G: Tensor, H: Tensor, X: Tensor, rule: Rule) -> Tensor:
    """The gradient in X of ⟨G, df(A)⟩, the derivative along H; symmetric in H and the tangent that it is applied to.

    The function of a rank-deficient covariance has no second derivative as a function of the covariance, but as a
    function of features that stay of that rank it has one: that is what the Gram matrix gives, f(A) = Y g(Yᵀ Y) Yᵀ with
    g(λ) = f(λ) / λ.
    """
    C, M = X.shape[-2:]
    with autocast_off(X.device.type):
        full = unpack_gradient(G.double(), C) if rule.packed else symmetrize(G.double())
        Y = center(X.double(), rule.centered)[0] / root_of(M)
        h = center(H.double(), rule.centered)[0] / root_of(M)
        smooth = rule.function.derivatives_at_zero >= 2
        along = (_of_covariance if M > C or smooth else _of_gram_matrix)(full, h, Y, rule.function)
        along = (along / root_of(M)).to(X.dtype)
    return first_derivative_only(along, "a second derivative", X, G, H)


def _of_covariance(G: Tensor, h: Tensor, Y: Tensor, function: SpectralMethod) -> Tensor:
    values, U = _decomposition(Y @ Y.mT, 1.0, None, Y.dtype)
    Y, h = U.mT @ Y, U.mT @ h
    E, B = U.mT @ G @ U, h @ Y.mT
    inner = function.curvature(values, E, B + B.mT)
    if inner is None:
        raise no_further_derivative(function)
    return 2 * (U @ ((function.coefficients(values, values) * E) @ h + inner @ Y))


def _of_gram_matrix(G: Tensor, h: Tensor, Y: Tensor, function: SpectralMethod) -> Tensor:
    g = function.quotient
    if g is None:
        raise no_further_derivative(function)
    values, V = _decomposition(Y.mT @ Y, 1.0, None, Y.dtype)
    Y, h = Y @ V, h @ V
    K, GY, Gh = g.coefficients(values, values), G @ Y, G @ h
    B, mixed, Q = Y.mT @ h, Y.mT @ Gh, Y.mT @ GY
    B = B + B.mT
    inner = g.curvature(values, Q, B)
    assert inner is not None
    along = Gh * g.values(values).unsqueeze(-2) + GY @ (K * B) + Y @ (K * (mixed + mixed.mT) + inner) + h @ (K * Q)
    return 2 * along @ V.mT
