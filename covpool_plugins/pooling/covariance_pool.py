"""Covariance pooling, composed of reduction, weighting, normalisation, vectorisation and element-wise step.

Each row of the table names its parts; the options of the parts are options of the pool.
"""

from __future__ import annotations

import dataclasses
import inspect
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..checks import check_flag, check_known
from ..errors import OptionError
from ..linalg import Compute, Method, Vectorize, check_root_options, list_methods, packed_size, resolve_method
from ..linalg.methods.base import SQUARE_ROOTS
from ..tables import About
from .base import POOLS, Pool
from .elementwise import SignedRootL2
from .normalizations import (
    MatrixLogarithm,
    MatrixPower,
    MatrixRoot,
    Normalization,
    Plain,
    ScalingEigenBranch,
)
from .reduction import DEFAULT_CHANNELS

# What a part may ask for besides its options.
CONTEXT = ("channels", "method", "device", "dtype")


class CovariancePool(Pool):
    """Reduction, weighting, covariance and its normalisation, vectorisation, element-wise step.

    Args:
        in_channels: channels of the input.
        method: name or object of the square-root method, for the normalisation by a root; ``svdpade`` by default.
        pool_type: the name in messages; that of the method by default.
        weighting: class of a module (B, C, M) -> (B, C, M) on the features.
        normalization: class of the :class:`Normalization`.
        elementwise: class of a module on the vectors (B, D).
        centered: subtract the mean over the positions.
        compute: ``mixed``, ``float32`` or ``float64``, see :func:`covpool_plugins.linalg.covariance_sqrt`.
        vectorize: ``triu``, the C(C+1)/2 upper entries in the order of ``torch.triu_indices``, or ``full``.
        options: of the parts, for example ``iterations=3`` of the method; and ``reduce_channels`` (256 by default, as
            in the papers), ``reduction``, ``input_fmt`` and the others of :class:`Pool`.

    Raises:
        OptionError: for an option outside its range, or one that neither the pool nor a part has.

    Examples:
        >>> pool = CovariancePool(64, "isqrt", iterations=3, reduce_channels=16)
        >>> pool(torch.randn(2, 64, 7, 7)).shape
        torch.Size([2, 136])
        >>> pool.spectrum(torch.randn(2, 64, 7, 7)).eigenvalues.shape
        torch.Size([2, 16])
    """

    default_channels = DEFAULT_CHANNELS
    default_method: ClassVar[str | Method] = "svdpade"
    not_options = (*Pool.not_options, "weighting", "normalization", "elementwise")

    def __init__(
        self,
        in_channels: int,
        method: str | Method | None = None,
        *,
        pool_type: str | None = None,
        weighting: type[nn.Module] | None = None,
        normalization: type[Normalization] = MatrixRoot,
        elementwise: type[nn.Module] | None = None,
        centered: bool = True,
        compute: Compute = "mixed",
        vectorize: Vectorize = "triu",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        check_root_options(compute, vectorize)
        check_flag("centered", centered)
        if method is not None and normalization is not MatrixRoot:
            raise OptionError(f"{normalization.__name__} takes no square-root method, got {method!r}")
        method = method or self.default_method
        name = pool_type or (method if isinstance(method, str) else type(method).__name__)
        common = {option: options.pop(option) for option in Pool.options() if option in options}
        super().__init__(in_channels, pool_type=name, device=device, dtype=dtype, **common)
        self.out_features = packed_size(self.channels) if vectorize == "triu" else self.channels**2
        self.centered = centered
        self.compute = compute
        self.vectorize = vectorize
        context = {"channels": self.channels, "method": method, "device": device, "dtype": dtype}
        known = self.part_options(method, weighting, normalization, elementwise)
        check_known(f"pool {name!r}", options, [*known, *self.options()])
        self.weighting = build_part(weighting, options, context)
        self.elementwise = build_part(elementwise, options, context)
        self.normalization = build_part(normalization, options, context)

    @property
    def method(self) -> Method | None:
        """The method of the square root; ``None`` for other normalisations."""
        return getattr(self.normalization, "method", None)

    @method.setter
    def method(self, method: Method) -> None:
        self.normalization.method = method

    @property
    def is_exportable(self) -> bool:
        return self.normalization.is_exportable

    def entries(self, X: Tensor) -> Tensor:
        return self.normalization(self.weighting(X), self.centered, self.compute, self.vectorize)

    def represent(self, X: Tensor) -> Tensor:
        return self.elementwise(self.entries(X)).to(X.dtype)

    @classmethod
    def part_options(
        cls,
        method: str | Method | None = None,
        weighting: type[nn.Module] | None = None,
        normalization: type[Normalization] = MatrixRoot,
        elementwise: type[nn.Module] | None = None,
        **decided: Any,
    ) -> list[str]:
        names = options_of(weighting, normalization, elementwise)
        if normalization is MatrixRoot:
            chosen = resolve_method(method or cls.default_method)
            names += [field.name for field in dataclasses.fields(chosen)]
        return names

    @classmethod
    def takes_method(
        cls,
        method: str | Method | None = None,
        normalization: type[Normalization] = MatrixRoot,
        **decided: Any,
    ) -> bool:
        return method is None and normalization is MatrixRoot


def options_of(*kinds: type[nn.Module] | None) -> list[str]:
    """Names of the options that classes of parts take."""
    parameters = [p for kind in kinds if kind for p in inspect.signature(kind).parameters.values()]
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in CONTEXT]


def build_part(kind: type[nn.Module] | None, options: dict[str, Any], context: dict[str, Any]) -> Any:
    """A part of the pool, from the ``options`` that it takes, which are removed, and the ``context`` it asks for."""
    if kind is None:
        return nn.Identity()
    parameters = inspect.signature(kind).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    taken = {name: options.pop(name) for name in list(options) if takes_all or name in options_of(kind)}
    return kind(**taken, **{name: value for name, value in context.items() if name in parameters})


for _name in list_methods("sqrtm"):
    POOLS.add(_name, partial(CovariancePool, method=_name), SQUARE_ROOTS.about.get(_name))

POOLS.add(
    "seb",
    partial(CovariancePool, pool_type="seb", normalization=ScalingEigenBranch),
    About("square root times a factor that its small eigenvalues raise", "exact", "T-PAMI 2022"),
)
POOLS.add(
    "powcov",
    partial(CovariancePool, pool_type="powcov", normalization=MatrixPower),
    About("power p of the covariance, p = 0.5 or learned (`learn_p=True`)", "exact, also for p", "ICCV 2017"),
)
POOLS.add(
    "logcov",
    partial(CovariancePool, pool_type="logcov", normalization=MatrixLogarithm),
    About("logarithm log(I + A / ε) of the covariance A", "exact", "ICCV 2015"),
)
BILINEAR: dict[str, Any] = dict(elementwise=SignedRootL2, centered=False, vectorize="full", reduce_channels=None)
POOLS.add(
    "bcnn",
    partial(CovariancePool, pool_type="bcnn", normalization=Plain, **BILINEAR),
    About("second moment, signed square root, l2 norm", "exact", "ICCV 2015"),
)
POOLS.add(
    "ibcnn",
    partial(CovariancePool, pool_type="ibcnn", **BILINEAR),
    About("square root of the second moment, signed square root, l2 norm", "exact", "BMVC 2017"),
)
