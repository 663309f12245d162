"""Functions of the covariance, from features to vectors.

================================  ==========================================  ====================================
class                             function of the covariance A                source
================================  ==========================================  ====================================
:class:`MatrixRoot`               A^(1/2) by any method of ``linalg``         CVPR 2018, ICCV 2021, ...
:class:`Plain`                    A itself                                    Lin et al., B-CNN, ICCV 2015
:class:`MatrixPower`              A^p, p fixed or learned                     Li et al., MPN-COV, ICCV 2017
:class:`MatrixLogarithm`          log(I + A / ε)                              Ionescu et al., ICCV 2015
:class:`ScalingEigenBranch`       A^(1/2), its small eigenvalues scaled up    Song et al., T-PAMI 2022
:class:`SingularValuePower`       powers of the n largest singular values     Xie et al., So-ViT, 2021
================================  ==========================================  ====================================
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..checks import check_flag, check_number
from ..linalg import (
    Compute,
    IterativeMethod,
    Method,
    Vectorize,
    covariance,
    covariance_log1p,
    covariance_powm,
    covariance_sqrt,
    pack_triu,
    resolve_method,
)
from ..linalg.spectral import expm1_neg, is_product_of_roots
from ..linalg.tensors import autocast_off, exporting, product, trace, working_dtype
from .damped_sum import root_and_damped_sum

NEGLIGIBLE = 1e-60  # of the branch's square: its root is far below the rounding of one, and has a steep gradient


class Normalization(nn.Module):
    """Features (B, C, M) to vectors: a function of their covariance.

    A subclass gives ``function``, or ``of_features`` or ``forward`` where features go there in fewer steps.

    Examples:
        >>> class Doubled(Normalization):
        ...     def function(self, A):
        ...         return 2 * A
        ...
        >>> CovariancePool(8, normalization=Doubled(), pool_type="doubled")(torch.randn(2, 8, 7, 7)).shape
        torch.Size([2, 36])
    """

    in_range: bool = True  # see Pool

    @property
    def is_exportable(self) -> bool:
        """Whether it takes no matrix decomposition."""
        return False

    @property
    def is_iterative(self) -> bool:
        """Whether ``mixed`` centres the features in float32: for matrix products it needs no float64."""
        return False

    def function(self, A: Tensor) -> Tensor:
        """The function of covariances (B, C, C), computed in the precision they come in."""
        raise NotImplementedError

    def of_features(self, X: Tensor, centered: bool) -> Tensor:
        """The function of the covariances of features (B, C, M), computed in the precision they come in."""
        return self.function(covariance(X, centered))

    def forward(self, X: Tensor, centered: bool, compute: Compute, vectorize: Vectorize) -> Tensor:
        """Vectors (B, width) in float32 at least; ``mixed`` computes covariance and function in float64."""
        with autocast_off(X.device.type):
            F = self.of_features(_working(X, compute), centered)
        return (pack_triu(F) if vectorize == "triu" else F.flatten(1)).to(working_dtype(X.dtype))


class MatrixRoot(Normalization):
    """The square root of the covariance by a method of ``linalg``, features to root in one fused step.

    Args:
        method: name or object of the method.
        options: fields of the method, for example ``iterations=3``.

    Raises:
        UnknownNameError, OptionError: for a method or option that does not exist.

    Examples:
        >>> create_pool("isqrt", 8, iterations=3).normalization
        MatrixRoot(NewtonSchulz(scaling='trace', gradient='exact', lyapunov_iterations=9, iterations=3))
    """

    def __init__(self, method: str | Method = "svdpade", **options: Any) -> None:
        super().__init__()
        self.method = resolve_method(method, **options)

    def forward(self, X: Tensor, centered: bool, compute: Compute, vectorize: Vectorize) -> Tensor:
        return covariance_sqrt(X, self.method, centered=centered, compute=compute, vectorize=vectorize).flatten(1)

    @property
    def is_exportable(self) -> bool:
        return self.method.exportable("sqrtm")

    @property
    def is_iterative(self) -> bool:
        return isinstance(self.method, IterativeMethod)

    def extra_repr(self) -> str:
        return str(self.method)


class Plain(Normalization):
    """The covariance itself, or with ``centered=False`` the second moment of bilinear pooling.

    Examples:
        >>> Plain()(torch.tensor([[[1.0, 3.0], [2.0, 2.0]]]), True, "mixed", "triu")
        tensor([[1., 0., 0.]])
    """

    in_range = False

    @property
    def is_exportable(self) -> bool:
        return True

    def function(self, A: Tensor) -> Tensor:
        return A


class MatrixPower(Normalization):
    """The power A^p, 0 < p <= 1; one half is the square root of MPN-COV.

    Args:
        p: the exponent.
        learn_p: make it a parameter; p = sigmoid(``logit_p``), so that it stays between 0 and 1.

    Source: Li et al., "Is Second-order Information Helpful for Large-scale Visual Recognition?", ICCV 2017, eq. 4.

    Raises:
        OptionError: for an exponent outside its range.

    Examples:
        >>> create_pool("powcov", 8, p=0.3, learn_p=True).normalization
        MatrixPower(p=0.3, learn_p=True)
    """

    def __init__(self, *, p: float = 0.5, learn_p: bool = False, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        check_flag("powcov: learn_p", learn_p)
        check_number("powcov: p", p, "(0, 1)" if learn_p else "(0, 1]")
        self.fixed_p = float(p)
        self.logit_p: nn.Parameter | None = None
        if learn_p:
            self.logit_p = nn.Parameter(torch.full((), p, device=device, dtype=dtype).logit())
        self.in_range = p <= 0.5 and not learn_p

    @property
    def p(self) -> float | Tensor:
        """The exponent; a 0-dimensional tensor with gradient if it is learned."""
        return self.fixed_p if self.logit_p is None else self.logit_p.sigmoid()

    @property
    def is_exportable(self) -> bool:
        return self.logit_p is None and is_product_of_roots(self.fixed_p)

    def forward(self, X: Tensor, centered: bool, compute: Compute, vectorize: Vectorize) -> Tensor:
        return covariance_powm(X, self.p, centered, compute=compute, vectorize=vectorize).flatten(1)

    def extra_repr(self) -> str:
        learned = self.logit_p is not None and not self.logit_p.is_meta
        p = float(self.p.detach()) if learned and isinstance(self.p, Tensor) else self.fixed_p
        return f"p={p:.4g}, learn_p={self.logit_p is not None}"


class MatrixLogarithm(Normalization):
    """log(I + A / ε): the log-Euclidean representation log(A + ε I), less its constant log ε.

    ε bounds the logarithm of the small eigenvalues below; without the constant, which a classifier's bias makes up for,
    zero features give zeros.

    Args:
        eps: ε, an absolute variance.

    Source: Ionescu, Vantzos & Sminchisescu, "Matrix Backpropagation for Deep Networks with Structured Layers",
    ICCV 2015, section 5.

    Raises:
        OptionError: unless ε is a positive number.

    Examples:
        >>> create_pool("logcov", 8, reduce_channels=None, eps=1e-2)(torch.zeros(1, 8, 4, 4)).abs().sum()
        tensor(0.)
    """

    def __init__(self, *, eps: float = 1e-3) -> None:
        super().__init__()
        check_number("logcov: eps", eps, "(0, inf)")
        self.eps = float(eps)

    def forward(self, X: Tensor, centered: bool, compute: Compute, vectorize: Vectorize) -> Tensor:
        return covariance_log1p(X, self.eps, centered, compute=compute, vectorize=vectorize).flatten(1)

    def extra_repr(self) -> str:
        return f"eps={self.eps:g}"


class ScalingEigenBranch(Normalization):
    """(1 + ‖A^(1/2) exp(-A)‖_F) A^(1/2): the root, scaled by a branch that small eigenvalues drive.

    The released layer is NaN where an entry of the root is zero; elsewhere it computes this closed form. The norm needs
    the eigenvalues alone, which the root has: ‖A^(1/2) exp(-A)‖² = Σ λ exp(-2 λ).

    Source: Song, Sebe & Wang, "On the Eigenvalues of Global Covariance Pooling for Fine-grained Visual Recognition",
    T-PAMI 2022, section 4.

    Examples:
        >>> create_pool("seb", 8)(torch.randn(2, 8, 7, 7)).shape
        torch.Size([2, 36])
    """

    @property
    def is_exportable(self) -> bool:
        return True

    def forward(self, X: Tensor, centered: bool, compute: Compute, vectorize: Vectorize) -> Tensor:
        if exporting():
            root = covariance_sqrt(X, "exact", centered=centered, compute=compute, vectorize=vectorize)
            A = covariance(_working(X, compute), centered).double()
            squared = trace(A + product(A, expm1_neg(2 * A))).squeeze(-1)
        else:
            work = X.double() if compute == "float64" else X.to(working_dtype(X.dtype))
            root, squared = root_and_damped_sum(work, centered, compute == "mixed", vectorize == "triu")
        zero = squared <= NEGLIGIBLE
        scale = 1 + torch.where(zero, 0.0, torch.where(zero, 1.0, squared).sqrt())
        return (root.flatten(1) * scale.to(root.dtype)).to(working_dtype(X.dtype))


def _working(X: Tensor, compute: Compute) -> Tensor:
    """Features in the precision in which their covariance is taken and decomposed."""
    return X.float() if compute == "float32" else X.double()
