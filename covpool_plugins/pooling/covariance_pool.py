"""Covariance pooling, composed of reduction, weighting, normalisation, vectorisation and element-wise step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..checks import check_flag, check_known
from ..errors import OptionError, ShapeError
from ..linalg import Compute, Method, Vectorize, check_root_options, list_methods, packed_size, unpack_symmetric
from ..linalg.methods.base import SQUARE_ROOTS
from ..linalg.packing import unpack_gradient
from ..linalg.tensors import symmetrize
from ..tables import About
from .base import COVARIANCE_OPTIONS, POOLS, InputFormat, Pool
from .elementwise import SignedRootL2
from .normalizations import (
    MatrixLogarithm,
    MatrixPower,
    MatrixRoot,
    Normalization,
    Plain,
    ScalingEigenBranch,
)
from .positions import counted
from .reduction import DEFAULT_CHANNELS


class Weighting(nn.Identity):
    """Features (B, C, M), zero where masked, to features; as they are unless a subclass overrides ``forward``.

    Attributes:
        added_channels: how many channels the result has more.

    Examples:
        >>> class Halved(Weighting):
        ...     def forward(self, X, mask=None):
        ...         return 0.5 * X
        ...
        >>> CovariancePool(8, weighting=Halved())(torch.randn(2, 8, 7, 7)).shape
        torch.Size([2, 36])
    """

    added_channels: ClassVar[int] = 0

    def forward(self, X: Tensor, mask: Tensor | None = None) -> Tensor:
        return X


class CovariancePool(Pool):
    """Reduction, weighting, covariance and its normalisation, vectorisation, element-wise step.

    Args:
        in_channels: channels of the input.
        method: name or object of the square-root method, ``svdpade`` by default; where no normalisation is given.
        pool_type: the name in messages; that of the method by default.
        weighting: on the features.
        normalization: of the covariance, a square root by default.
        elementwise: a module on the vectors (B, D).
        centered: subtract the mean over the positions.
        compute: ``mixed``, ``float32`` or ``float64``, see :func:`covpool_plugins.linalg.covariance_sqrt`.
        vectorize: ``triu``, the C(C+1)/2 upper entries in the order of ``torch.triu_indices``, or ``full``.
        reduce_channels: 256 by default, as in the papers; this and the others as for :class:`Pool`.
        method_options: fields of the method, for example ``iterations=3``.

    Raises:
        OptionError: for an option outside its range, or one that the method does not have.

    Examples:
        >>> pool = CovariancePool(64, "isqrt", iterations=3, reduce_channels=16)
        >>> pool(torch.randn(2, 64, 7, 7)).shape
        torch.Size([2, 136])
        >>> pool.spectrum(torch.randn(2, 64, 7, 7)).eigenvalues.shape
        torch.Size([2, 16])
    """

    default_channels = DEFAULT_CHANNELS
    shared_options = COVARIANCE_OPTIONS

    def __init__(
        self,
        in_channels: int,
        method: str | Method | None = None,
        *,
        pool_type: str | None = None,
        weighting: Weighting | None = None,
        normalization: Normalization | None = None,
        elementwise: nn.Module | None = None,
        centered: bool = True,
        compute: Compute = "mixed",
        vectorize: Vectorize = "triu",
        reduce_channels: int | str | None = "default",
        reduction: str | None = None,
        input_fmt: InputFormat = "NCHW",
        num_prefix_tokens: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **method_options: Any,
    ) -> None:
        check_root_options(compute, vectorize)
        check_flag("centered", centered)
        if method is not None and normalization is not None:
            raise OptionError(f"{type(normalization).__name__} takes no square-root method, got {method!r}")
        method = method or "svdpade"
        name = pool_type or (method if isinstance(method, str) else type(method).__name__)
        super().__init__(
            in_channels,
            pool_type=name,
            reduce_channels=reduce_channels,
            reduction=reduction,
            input_fmt=input_fmt,
            num_prefix_tokens=num_prefix_tokens,
            device=device,
            dtype=dtype,
        )
        if normalization is not None:
            check_known(f"pool {name!r}", method_options, self.shared_options)
        self.centered = self.needs_positions = centered
        self.compute = compute
        self.vectorize = vectorize
        self.weighting = weighting or Weighting()
        self.elementwise = elementwise or nn.Identity()
        self.normalization: Normalization = normalization or MatrixRoot(method, **method_options)
        self.in_range = elementwise is not None or self.normalization.in_range
        self.matrix_size = self.channels + self.weighting.added_channels
        self.out_features = packed_size(self.matrix_size) if vectorize == "triu" else self.matrix_size**2

    @property
    def method(self) -> Method | None:
        """The method of the square root; ``None`` for other normalisations."""
        return getattr(self.normalization, "method", None)

    @method.setter
    def method(self, method: Method) -> None:
        assert isinstance(self.normalization, MatrixRoot)
        self.normalization.method = method

    @property
    def is_exportable(self) -> bool:
        return self.normalization.is_exportable

    def entries(self, X: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.compute == "mixed" and self.method and not isinstance(self.elementwise, nn.Identity):
            X = X.double()  # a signed root magnifies the rounding of small entries of the root
        X, centered = self.weighting(X, mask), self.centered
        if mask is not None:
            wide = self.compute == "float64" or (self.compute == "mixed" and not self.normalization.is_iterative)
            X, centered = counted(X, mask, centered, torch.float64 if wide else torch.float32), False
        return self.normalization(X, centered, self.compute, self.vectorize)

    def represent(self, X: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.in_precision(self.elementwise(self.entries(X, mask)), X)

    def matrix(self, vectors: Tensor) -> Tensor:
        self._check_width(vectors)
        if self.vectorize == "triu":
            return unpack_symmetric(vectors, self.matrix_size)
        return vectors.unflatten(-1, (self.matrix_size, self.matrix_size))

    def weight_matrix(self, weights: Tensor) -> Tensor:
        """The symmetric matrices W (..., n, n) with ⟨W, Q⟩ = ⟨weights, vector of Q⟩ for every symmetric Q.

        Raises:
            ShapeError: unless ``weights`` are (..., ``out_features``).

        Examples:
            >>> create_pool("svdpade", 2).weight_matrix(torch.tensor([1.0, 2.0, 3.0]))
            tensor([[1., 1.],
                    [1., 3.]])
        """
        self._check_width(weights)
        if self.vectorize == "triu":
            return unpack_gradient(weights, self.matrix_size)
        return symmetrize(weights.unflatten(-1, (self.matrix_size, self.matrix_size)))

    def _check_width(self, vectors: Tensor) -> None:
        if vectors.ndim == 0 or vectors.shape[-1] != self.out_features:
            raise ShapeError(
                f"{self.pool_type} pool: expected vectors (..., {self.out_features}), got shape {tuple(vectors.shape)}"
            )


def root_pool(name: str) -> Callable[..., CovariancePool]:
    """The builder of the pool by one method; the options of the method are those of the pool."""

    def build(in_channels: int, **options: Any) -> CovariancePool:
        return CovariancePool(in_channels, name, **options)

    return build


def seb(in_channels: int, **shared: Any) -> CovariancePool:
    return CovariancePool(in_channels, pool_type="seb", normalization=ScalingEigenBranch(), **shared)


def powcov(
    in_channels: int, *, p: float = 0.5, learn_p: bool = False, device: Any = None, dtype: Any = None, **shared: Any
) -> CovariancePool:
    factory: dict[str, Any] = dict(device=device, dtype=dtype)
    power = MatrixPower(p=p, learn_p=learn_p, **factory)
    return CovariancePool(in_channels, pool_type="powcov", normalization=power, **factory, **shared)


def logcov(in_channels: int, *, eps: float = 1e-3, **shared: Any) -> CovariancePool:
    return CovariancePool(in_channels, pool_type="logcov", normalization=MatrixLogarithm(eps=eps), **shared)


def bilinear_pool(in_channels: int, pool_type: str, eps: float, **options: Any) -> CovariancePool:
    """As bilinear pooling is published: of the second moment, every entry; signed root and l2 norm; no reduction."""
    published: dict[str, Any] = dict(centered=False, vectorize="full", reduce_channels=None)
    elementwise = SignedRootL2(eps=eps)
    return CovariancePool(in_channels, pool_type=pool_type, elementwise=elementwise, **(published | options))


def bcnn(in_channels: int, *, eps: float = 1e-8, **shared: Any) -> CovariancePool:
    return bilinear_pool(in_channels, "bcnn", eps, normalization=Plain(), **shared)


def ibcnn(in_channels: int, *, method: str | Method = "svdpade", eps: float = 1e-8, **options: Any) -> CovariancePool:
    return bilinear_pool(in_channels, "ibcnn", eps, method=method, **options)


for _name in list_methods("sqrtm"):
    POOLS.add(_name, root_pool(_name), SQUARE_ROOTS.about.get(_name))

POOLS.add("seb", seb, About("square root times a factor that its small eigenvalues raise", "exact", "T-PAMI 2022"))
POOLS.add(
    "powcov",
    powcov,
    About("power p of the covariance, p = 0.5 or learned (`learn_p=True`)", "exact, also for p", "ICCV 2017"),
)
POOLS.add("logcov", logcov, About("logarithm log(I + A / ε) of the covariance A", "exact", "ICCV 2015"))
POOLS.add("bcnn", bcnn, About("second moment, signed square root, l2 norm", "exact", "ICCV 2015"))
POOLS.add("ibcnn", ibcnn, About("square root of the second moment, signed square root, l2 norm", "exact", "BMVC 2017"))
