"""Powers of the covariance of features, by the smaller of the covariance and the Gram matrix."""

from __future__ import annotations

from torch import Tensor

from .covariance import Covariance, Gram, center, zero_where_constant
from .covariance_square_root import Congruence
from .spectral import powm
from .tensors import apply, autocast_off, check_features, trace, working_dtype


def covariance_powm(X: Tensor, p: float | Tensor, centered: bool = True) -> Tensor:
    """``powm(covariance(X), p)``; for fewer positions than channels faster, and with a second derivative.

    With A = Y Yᵀ it is Y (Yᵀ Y)^(p-1) Yᵀ. A itself is singular there, and a power of it has no second derivative as a
    function of A; as a function of features that keep their rank it has one.

    Args:
        X: features (..., C, M), C channels at M positions; half precision is computed in float32.
        p: the exponent, or a 0-dimensional tensor of it, see :func:`powm`.
        centered: subtract the mean over the positions.

    Returns:
        Matrices (..., C, C) in the dtype of ``X``.

    Raises:
        ShapeError, DtypeError: if ``X`` is not a batch of floating point features.
        OptionError: if ``p`` is not a finite number.

    Examples:
        >>> X = torch.randn(2, 8, 5, dtype=torch.float64)
        >>> torch.allclose(covariance_powm(X, 0.5), covariance_sqrt(X, "exact"))
        True
    """
    check_features(X)
    work = X.to(working_dtype(X.dtype))
    C, M = X.shape[-2:]
    if M > C:
        return powm(apply(Covariance, work, centered), p).to(X.dtype)
    Xc, mean = center(work, centered)
    Y = Xc / M**0.5
    gram = zero_where_constant(apply(Gram, Y), mean)
    if centered:
        # Yᵀ Y maps the vector of ones to zero, and so does Y: any other value will do there, and this one is not zero.
        gram = gram + trace(gram.detach()) / M**2
    with autocast_off(X.device.type):
        return apply(Congruence, Y, powm(gram, p - 1)).to(X.dtype)
