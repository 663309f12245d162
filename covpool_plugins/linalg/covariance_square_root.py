"""Features to the square root of their covariance, as one map.

With X̃ / √M = U s Vᵀ the root is U s Uᵀ, and for the gradient G with E = Uᵀ G U

    dL/dX = 2 / √M · [ G U diag(s_j K(λ_j, 0)) + U ((s_j K(λ_i, λ_j) - s_j K(λ_j, 0)) ∘ E) ] Vᵀ

where K is the eigen method's rule. Nothing is divided by s, so rank-deficient covariances, the normal case with 49
positions and 256 channels, need no care. With M <= C the M x M Gram matrix is decomposed, otherwise the covariance.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..checks import check_choice
from .covariance import Covariance, Gram, center, rounding_of_mean, zero_where_constant
from .methods.base import EigenMethod, Gradient, IterativeMethod, Method, resolve_method
from .methods.eigen import ExactInverse
from .packing import pack_triu, packed_square, unpack_gradient, unpacked_gradient_product
from .routes import PRODUCTS, uses_products
from .spectral import SpectralDerivative, SpectralFunction, basis_derivative, null_threshold
from .square_root import is_zero, positive_scale, root_of_symmetric
from .tensors import (
    apply,
    autocast_off,
    check_features,
    first_derivative_only,
    guarded_eigh,
    power_of_two,
    symmetrize,
    trace,
    transpose,
    working_dtype,
)

Compute = Literal["mixed", "float32", "float64"]
Vectorize = Literal["full", "triu"]
COMPUTES: tuple[str, ...] = get_args(Compute)
VECTORIZES: tuple[str, ...] = get_args(Vectorize)


def covariance_sqrt(
    X: Tensor,
    method: str | Method = "svdpade",
    *,
    centered: bool = True,
    compute: Compute = "mixed",
    vectorize: Vectorize = "full",
    **options: Any,
) -> Tensor:
    """Square root of the covariance of features: ``sqrtm(covariance(X))`` in one step, faster and more accurate.

    Args:
        X: features (..., C, M), C channels at M positions.
        method: a name from :func:`list_methods` or a method object.
        centered: subtract the mean over the positions first.
        compute: for float32 features, ``mixed`` runs the eigen-decomposition and the products of the small side in
            float64 and the rest in float32 (iterative methods, which need no more, run in float32);
            ``float32`` and ``float64`` run everything in that precision. Float64 features are computed in float64.
        vectorize: ``full`` matrices, or the upper triangles ``triu`` as vectors.
        options: replace fields of the method.

    Returns:
        Roots (..., C, C), or (..., C(C+1)/2) for ``triu``, in the dtype of ``X``.

    Raises:
        ShapeError, DtypeError: if ``X`` is not a batch of floating point features.
        UnknownNameError, OptionError: for a method or an option that does not exist.

    Examples:
        >>> X = torch.randn(2, 64, 49, requires_grad=True)
        >>> covariance_sqrt(X, "svdpade").shape
        torch.Size([2, 64, 64])
        >>> covariance_sqrt(X, "isqrt", iterations=7, vectorize="triu").shape
        torch.Size([2, 2080])
    """
    check_features(X)
    check_root_options(compute, vectorize)
    chosen = resolve_method(method, **options)
    work = X.to(torch.float64 if compute == "float64" else working_dtype(X.dtype))
    if uses_products(chosen, work):
        # What the eigen-decomposition would be done in.
        work = work.to(torch.float32 if compute == "float32" and X.dtype != torch.float64 else torch.float64)
        chosen = PRODUCTS[work.dtype]
    if isinstance(chosen, EigenMethod):
        root = apply(EigenCovarianceRoot, work, chosen, centered, compute == "mixed", vectorize == "triu")[0]
        return root.to(X.dtype)
    assert isinstance(chosen, IterativeMethod)
    # The root is homogeneous; features near one keep the powers of their scale that occur within range.
    unit = power_of_two(work)
    root = unit * _iterative_root(work / unit, chosen, centered)
    return (pack_triu(root) if vectorize == "triu" else root).to(X.dtype)


def check_root_options(compute: str, vectorize: str) -> None:
    """Raise :class:`OptionError` unless both are options of :func:`covariance_sqrt`.

    Examples:
        >>> check_root_options("mixed", "tril")
        Traceback (most recent call last):
        covpool_plugins.errors.OptionError: vectorize must be one of full, triu, got 'tril'
    """
    check_choice("compute", compute, COMPUTES)
    check_choice("vectorize", vectorize, VECTORIZES)


def _iterative_root(X: Tensor, method: IterativeMethod, centered: bool) -> Tensor:
    """The same matrix function p of A = Y Yᵀ, written with the smaller of A and Yᵀ Y: p(0) √t I + Y f(Yᵀ Y) Yᵀ."""
    C, M = X.shape[-2:]
    if M > C or method.gradient == "lyapunov" or not method.through_gram:
        gradient: Gradient = "exact" if method.gradient == "auto" else method.gradient
        return root_of_symmetric(apply(Covariance, X, centered), dataclasses.replace(method, gradient=gradient))
    Xc, mean = center(X, centered)
    Y = Xc / M**0.5
    gram = zero_where_constant(apply(Gram, Y), mean)
    root = apply(Congruence, Y, root_of_symmetric(gram, method, "factor"))
    if not method.at_zero:
        return root
    eye = torch.eye(C, dtype=X.dtype, device=X.device)
    return root + method.at_zero * torch.where(is_zero(gram), 0.0, positive_scale(gram, method)).sqrt() * eye


class Congruence(torch.autograd.Function):
    """Y Z Yᵀ for Y (..., C, M) and symmetric Z (..., M, M)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(Y: Tensor, Z: Tensor) -> Tensor:
        with autocast_off(Y.device.type):
            return (Y @ Z) @ transpose(Y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> tuple[Tensor, Tensor]:
        Y, Z = ctx.saved_tensors
        with autocast_off(G.device.type):
            GY = symmetrize(G) @ Y
            return 2 * GY @ Z, Y.mT @ GY


class EigenCovarianceRoot(torch.autograd.Function):
    """The fused map of this module's head, for any eigen method. Outputs the root, s, U and V."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        X: Tensor, method: EigenMethod, centered: bool, mixed: bool, packed: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        decompose = _by_gram_matrix if _through_gram(X, method) else _by_covariance
        with autocast_off(X.device.type):
            s, U, V = decompose(X, method, centered, mixed)
            half = U * s.sqrt().unsqueeze(-2)
            return packed_square(half) if packed else half @ half.mT, s, U, V

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        X, ctx.method, ctx.centered, _, ctx.packed = inputs
        _, s, U, V = output
        ctx.positions = X.shape[-1]
        ctx.through_gram = _through_gram(X, ctx.method)
        ctx.mark_non_differentiable(s, U, V)
        # X is kept by reference, not copied: the layer before has it anyway.
        ctx.save_for_backward(X, s, U, V)

    @staticmethod
    def backward(ctx: Any, G: Tensor, *_: Tensor) -> tuple[Tensor, None, None, None, None]:
        X, s, U, V = ctx.saved_tensors
        with autocast_off(G.device.type):
            if torch.is_grad_enabled() and ctx.method.derivative(s, 2) is not None:
                full = unpack_gradient(G, U.shape[-2]) if ctx.packed else symmetrize(G)
                return _differentiable_gradient(X, full, ctx.method, ctx.centered), None, None, None, None
            with torch.no_grad():
                # Twice the symmetric gradient, times U.
                GU = unpacked_gradient_product(G, U) if ctx.packed else (G + G.mT) @ U
                E = U.mT @ GU
                if ctx.through_gram:
                    grad = _gram_gradient(GU, E, s, U, V, ctx.method)
                else:
                    E = basis_derivative(E, s, ctx.method).div_(ctx.positions)
                    grad = (U @ E @ U.mT) @ center(X, ctx.centered)[0]
        return first_derivative_only(grad, ctx.method, X, G), None, None, None, None


def _through_gram(X: Tensor, method: EigenMethod) -> bool:
    """Whether the M x M Gram matrix of features (..., C, M) serves.

    Its eigenvectors span the features. The gradient also has entries towards eigenvectors that a method leaves out, in
    which the features do vary.
    """
    C, M = X.shape[-2:]
    return M <= C and not method.leaves_out(M)


def _by_gram_matrix(X: Tensor, method: EigenMethod, centered: bool, mixed: bool) -> tuple[Tensor, Tensor, Tensor]:
    """s (..., M), U (..., C, M) and V / √M (..., M, M) of X̃ / √M = U s Vᵀ; columns of U are zero where s is."""
    positions = X.shape[-1]
    wide, mean = center(X, centered, torch.float64 if mixed else X.dtype)
    values, V = _decomposition((wide.mT @ wide).div_(positions), mean, method, X.dtype)
    s = values.sqrt()
    inverse = torch.where(s == 0, 0.0, s.reciprocal())
    V = V / positions**0.5
    U = (wide @ V).to(X.dtype).mul_(inverse.to(X.dtype).unsqueeze(-2))
    return s.to(X.dtype), U, V.to(X.dtype)


def _by_covariance(X: Tensor, method: EigenMethod, centered: bool, mixed: bool) -> tuple[Tensor, Tensor, Tensor]:
    """s (..., C) and U (..., C, C) of X̃ X̃ᵀ / M = U s² Uᵀ; V is not needed and empty."""
    wide, mean = center(X, centered)
    A = (wide @ wide.mT).div_(X.shape[-1])
    values, U = _decomposition(A.to(torch.float64) if mixed else A, mean, method, X.dtype)
    return values.sqrt().to(X.dtype), U.to(X.dtype), X.new_empty(0)


def _decomposition(A: Tensor, mean: Tensor | None, method: EigenMethod, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Eigenvalues and vectors of a covariance or Gram matrix of features of that type; eigenvalues that cannot be told
    from zero, whose root has no reciprocal in the type, or that the method leaves out, are zero."""
    # No entry exceeds the trace, so one that is not finite shows there.
    values, U = guarded_eigh(A, torch.isfinite(trace(A)))
    threshold = null_threshold(values).clamp_min(torch.finfo(dtype).tiny ** 2)
    if mean is not None:
        threshold = torch.maximum(threshold.double(), rounding_of_mean(mean))
    return method.truncate(torch.where(values <= threshold, 0.0, values)), U


def _gram_gradient(GU: Tensor, E: Tensor, s: Tensor, U: Tensor, V: Tensor, method: EigenMethod) -> Tensor:
    multiple = method.along_identity(s, E.diagonal(dim1=-2, dim2=-1))
    to_null = method.towards_null(s)
    E.mul_(method.coefficients(s, s).mul_(s.unsqueeze(-2)).sub_(to_null))
    if multiple is not None:
        E.diagonal(dim1=-2, dim2=-1).add_(multiple * s)
    if isinstance(to_null, Tensor):
        GU.mul_(to_null)
    return GU.add_(U @ E) @ V.mT


def _differentiable_gradient(X: Tensor, G: Tensor, method: EigenMethod, centered: bool) -> Tensor:
    """The gradient once more, in steps that can themselves be differentiated.

    The root of a rank-deficient covariance has no second derivative as a function of the covariance, but as a function
    of features that stay of that rank it has one: that is what the route through the Gram matrix gives.
    """
    C, M = X.shape[-2:]
    if M > C:
        A = apply(Covariance, X, centered)
        _, values, U = apply(SpectralFunction, A, method)
        return (2 / M) * apply(SpectralDerivative, G, A, values, U, method) @ center(X, centered)[0]
    Xc, mean = center(X, centered)
    Y = Xc / M**0.5
    gram = zero_where_constant(apply(Gram, Y), mean)
    Z, values, V = apply(SpectralFunction, gram, ExactInverse())
    GY = G @ Y
    grad = 2 * GY @ Z + 2 * Y @ apply(SpectralDerivative, Y.mT @ GY, gram, values, V, ExactInverse())
    return (grad - grad.mean(dim=-1, keepdim=True) if centered else grad) / M**0.5
