"""Covariance pooling, composed of reduction, weighting, normalisation, vectorisation and element-wise step."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..checks import check_flag, check_known, check_number
from ..errors import OptionError, ShapeError
from ..linalg import (
    Compute,
    IterativeMethod,
    Method,
    Vectorize,
    check_root_options,
    covariance,
    covariance_sqrt,
    list_methods,
    pack_triu,
    packed_size,
    resolve_method,
    unpack_symmetric,
)
from ..linalg.methods.base import SQUARE_ROOTS
from ..linalg.packing import unpack_gradient
from ..linalg.tensors import autocast_off, check_floating, symmetrize, working_dtype
from ..tables import About
from .base import COVARIANCE_OPTIONS, POOLS, REDUCTION_OPTIONS, Described, Pool, widened
from .positions import counted, squared_size
from .reduction import DEFAULT_CHANNELS


class Weighting(Described):
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


class Normalization(Described):
    """Features (B, C, M) to vectors: a function of their covariance.

    A subclass gives ``function``, or ``of_features`` or ``forward`` where features go there in fewer steps.

    Attributes:
        method: of the square root that it takes, if it takes one.
        in_range: see :class:`Pool`.
        products_only: whether it takes no matrix decomposition, where it has no ``method``.
        needs_float64: whether ``mixed`` computes in float64, where it has no ``method``.
        size_power: k, for a function F(X) that keeps its size, or shrinks, when the features grow. A contribution map
            shares out F(X) ‖X‖^(2 k), the factor held at its value, as it does for vectors normalised in length: F(X)
            itself is no sum over the positions.

    Examples:
        >>> class Doubled(Normalization):
        ...     def function(self, A):
        ...         return 2 * A
        ...
        >>> CovariancePool(8, normalization=Doubled(), pool_type="doubled")(torch.randn(2, 8, 7, 7)).shape
        torch.Size([2, 36])
    """

    method: Method | None = None
    in_range: bool = True
    products_only: bool = False
    needs_float64: bool = True
    size_power: int = 0

    @property
    def is_exportable(self) -> bool:
        """Whether ONNX can express it."""
        return self.products_only if self.method is None else self.method.exportable("sqrtm")

    def precision(self, dtype: torch.dtype, compute: Compute) -> torch.dtype:
        """In which the covariance of features of a type is taken."""
        wide = self.needs_float64 if self.method is None else not isinstance(self.method, IterativeMethod)
        return torch.float64 if compute == "float64" or (compute == "mixed" and wide) else working_dtype(dtype)

    def function(self, A: Tensor) -> Tensor:
        """The function of covariances (B, C, C), computed in the precision they come in."""
        raise NotImplementedError

    def of_features(self, X: Tensor, centered: bool) -> Tensor:
        """The function of the covariances of features (B, C, M), computed in the precision they come in."""
        return self.function(covariance(X, centered))

    def forward(self, X: Tensor, centered: bool, compute: Compute, vectorize: Vectorize) -> Tensor:
        """Vectors (B, width) in float32 at least."""
        with autocast_off(X.device.type):
            F = self.of_features(X.to(self.precision(X.dtype, compute)), centered)
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
        assert self.method is not None
        return covariance_sqrt(X, self.method, centered=centered, compute=compute, vectorize=vectorize).flatten(1)

    def extra_repr(self) -> str:
        return str(self.method)


class Plain(Normalization):
    """The covariance itself, or with ``centered=False`` the second moment of bilinear pooling.

    Examples:
        >>> Plain()(torch.tensor([[[1.0, 3.0], [2.0, 2.0]]]), True, "mixed", "triu")
        tensor([[1., 0., 0.]])
    """

    in_range = False
    products_only = True

    def function(self, A: Tensor) -> Tensor:
        return A


class SignedRootL2(Described):
    """sign(v) √(|v| + ε), then v / ‖v‖₂, for vectors (B, D); computed in float32 at least.

    Args:
        eps: ε between 0 and 1, without which the slope at zero would be infinite.

    Source: Lin, RoyChowdhury & Maji, "Bilinear CNN Models for Fine-grained Visual Recognition", ICCV 2015.

    Examples:
        >>> SignedRootL2()(torch.tensor([[9.0, -16.0]]))
        tensor([[ 0.6000, -0.8000]])
    """

    shown = ("eps",)

    def __init__(self, *, eps: float = 1e-8) -> None:
        super().__init__()
        check_number("eps of the signed root", eps, "(0, 1)")
        self.eps = float(eps)

    def forward(self, v: Tensor) -> Tensor:
        with autocast_off(v.device.type):
            wide = widened(v)
            signed = wide.sign() * (wide.abs() + self.eps).sqrt()
            # The squares in the length of a vector leave the range before its entries do.
            largest = signed.detach().abs().amax(dim=-1, keepdim=True)
            return nn.functional.normalize(signed / torch.where(largest > 0, largest, 1.0), dim=-1).to(v.dtype)


class CovariancePool(Pool):
    """Reduction, weighting, covariance and its normalisation, vectorisation, element-wise step.

    Args:
        in_channels: channels of the input.
        method: name or object of the square-root method, ``svdpade`` by default.
        pool_type: the name in messages; that of the method, or of the normalisation's class, by default.
        weighting: on the features.
        normalization: of the covariance: a module, or a class whose keyword arguments then are options, too.
        elementwise: a module on the vectors (B, D).
        centered: subtract the mean over the positions.
        compute: ``mixed``, ``float32`` or ``float64``, see :func:`covpool_plugins.linalg.covariance_sqrt`.
        vectorize: ``triu``, the C(C+1)/2 upper entries in the order of ``torch.triu_indices``, or ``full``.
        options: of :class:`Pool`, with 256 for ``reduce_channels`` as in the papers, and of the normalisation, for
            example the field ``iterations=3`` of the method.

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
    shown: ClassVar[tuple[str, ...]] = ("centered", "compute", "vectorize")

    def __init__(
        self,
        in_channels: int,
        method: str | Method | None = None,
        *,
        pool_type: str | None = None,
        weighting: Weighting | None = None,
        normalization: Normalization | Callable[..., Normalization] = MatrixRoot,
        elementwise: nn.Module | None = None,
        centered: bool = True,
        compute: Compute = "mixed",
        vectorize: Vectorize = "triu",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        check_root_options(compute, vectorize)
        check_flag("centered", centered)
        of_pool = {option: options.pop(option) for option in REDUCTION_OPTIONS if option in options}
        if isinstance(normalization, Normalization):
            pool_type = pool_type or type(normalization).__name__
            if method is not None:
                raise OptionError(f"{pool_type} takes no square-root method, got {method!r}")
            check_known(f"pool {pool_type!r}", options, self.shared_options)
        else:
            options |= {} if method is None else {"method": method}
            method = method or "svdpade"
            pool_type = pool_type or (method if isinstance(method, str) else type(method).__name__)
            normalization = normalization(**options)
        super().__init__(in_channels, pool_type=pool_type, **of_pool)
        self.centered = self.needs_positions = centered
        self.compute = compute
        self.vectorize = vectorize
        self.weighting = weighting or Weighting()
        self.normalization = normalization
        self.elementwise = elementwise or nn.Identity()
        self.in_range = elementwise is not None or normalization.in_range
        self.matrix_size = self.channels + self.weighting.added_channels
        self.out_features = packed_size(self.matrix_size) if vectorize == "triu" else self.matrix_size**2
        self.to(device=device, dtype=dtype)  # the parts, too

    @property
    def method(self) -> Method | None:
        """The method of the square root; ``None`` for other normalisations."""
        return getattr(self.normalization, "method", None)

    @method.setter
    def method(self, method: Method) -> None:
        assert self.method is not None
        self.normalization.method = method

    @property
    def is_exportable(self) -> bool:
        return self.normalization.is_exportable

    def normalized(self, X: Tensor, mask: Tensor | None = None) -> Tensor:
        """The function of the covariance of features (B, C, M), vectorised."""
        if self.compute == "mixed" and self.method and not isinstance(self.elementwise, nn.Identity):
            X = X.double()  # a signed root magnifies the rounding of small entries of the root
        X, centered = self.weighting(X, mask), self.centered
        if mask is not None:
            X = counted(X, mask, centered, self.normalization.precision(X.dtype, self.compute))
            centered = False
        return self.normalization(X, centered, self.compute, self.vectorize)

    def entries(self, X: Tensor, mask: Tensor | None = None) -> Tensor:
        vectors, k = self.normalized(X, mask), self.normalization.size_power
        return vectors * squared_size(X, mask, self.centered) ** k if k else vectors

    def represent(self, X: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.in_precision(self.elementwise(self.normalized(X, mask)), X)

    def matrix(self, vectors: Tensor) -> Tensor:
        return self._unpacked(vectors, unpack_symmetric)

    def weight_matrix(self, weights: Tensor) -> Tensor:
        """The symmetric matrices W (..., n, n) with ⟨W, Q⟩ = ⟨weights, vector of Q⟩ for every symmetric Q.

        Raises:
            ShapeError: unless ``weights`` are (..., ``out_features``).

        Examples:
            >>> create_pool("svdpade", 2).weight_matrix(torch.tensor([1.0, 2.0, 3.0]))
            tensor([[1., 1.],
                    [1., 3.]])
        """
        W = self._unpacked(weights, unpack_gradient)
        return W if self.vectorize == "triu" else symmetrize(W)

    def _unpacked(self, vectors: Tensor, unpack: Callable[[Tensor, int], Tensor]) -> Tensor:
        n = self.matrix_size
        check_floating(vectors, "vectors")
        if vectors.ndim == 0 or vectors.shape[-1] != self.out_features:
            raise ShapeError(
                f"{self.pool_type} pool: expected vectors (..., {self.out_features}), got shape {tuple(vectors.shape)}"
            )
        return unpack(vectors, n) if self.vectorize == "triu" else vectors.unflatten(-1, (n, n))


def add_normalization(name: str, normalization: type[Normalization], about: About, **options: Any) -> None:
    """Add a row to ``POOLS``: the covariance pool with that normalisation, whose keyword arguments are its options."""
    POOLS.add(name, partial(CovariancePool, pool_type=name, normalization=normalization, **options), about)


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
    POOLS.add(_name, partial(CovariancePool, method=_name), SQUARE_ROOTS.about.get(_name))

POOLS.add("bcnn", bcnn, About("second moment, signed square root, l2 norm", "exact", "ICCV 2015"))
POOLS.add("ibcnn", ibcnn, About("square root of the second moment, signed square root, l2 norm", "exact", "BMVC 2017"))
