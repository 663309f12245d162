"""Covariance pooling, composed of reduction, weighting, normalisation, vectorisation and element-wise step.

Each row of the table names its parts; the options of the parts are options of the pool.
"""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import OptionError
from ..linalg import Compute, Method, Vectorize, check_root_options, list_methods, packed_size
from .base import POOLS, InputFormat, Pool
from .elementwise import SignedRootL2
from .normalizations import (
    MatrixLogarithm,
    MatrixPower,
    MatrixRoot,
    Normalization,
    Plain,
    ScalingEigenBranch,
)
from .reduction import build_reduction, reduced_channels

# What a part may ask for besides its options.
CONTEXT = ("channels", "method", "device", "dtype")


class CovariancePool(Pool):
    """Reduction, weighting, covariance and its normalisation, vectorisation, element-wise step.

    Args:
        in_channels: channels of the input.
        method: name or object of the square-root method, for the normalisation by a root.
        pool_type: the name in messages; that of the method by default.
        weighting: class of a module (B, C, M) -> (B, C, M) on the features.
        normalization: class of the :class:`Normalization`.
        elementwise: class of a module on the vectors (B, D).
        reduce_channels: channels after the reduction; ``None`` leaves it out. The default is the papers' 256, or
            ``in_channels`` where that is less.
        reduction: ``conv-bn-relu`` (default for maps) or ``linear-ln`` (default for tokens).
        centered: subtract the mean over the positions.
        compute: ``mixed``, ``float32`` or ``float64``, see :func:`covpool_plugins.linalg.covariance_sqrt`.
        vectorize: ``triu``, the C(C+1)/2 upper entries in the order of ``torch.triu_indices``, or ``full``.
        input_fmt: ``NCHW``, ``NHWC`` or ``NLC``.
        num_prefix_tokens: leading tokens to leave out, ``NLC`` only.
        options: of the parts, for example ``iterations=3`` of the method.
    """

    def __init__(
        self,
        in_channels: int,
        method: str | Method = "svdpade",
        *,
        pool_type: str | None = None,
        weighting: type[nn.Module] | None = None,
        normalization: type[Normalization] = MatrixRoot,
        elementwise: type[nn.Module] | None = None,
        reduce_channels: int | str | None = "default",
        reduction: str | None = None,
        centered: bool = True,
        compute: Compute = "mixed",
        vectorize: Vectorize = "triu",
        input_fmt: InputFormat = "NCHW",
        num_prefix_tokens: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        check_root_options(compute, vectorize)
        channels = reduced_channels(in_channels, reduce_channels)
        name = pool_type or (method if isinstance(method, str) else type(method).__name__)
        width = packed_size(channels) if vectorize == "triu" else channels**2
        super().__init__(name, in_channels, width, input_fmt, num_prefix_tokens)
        self.centered = centered
        self.compute = compute
        self.vectorize = vectorize
        self.reduction = build_reduction(
            in_channels, reduce_channels, reduction, input_fmt=input_fmt, device=device, dtype=dtype
        )
        context = {"channels": channels, "method": method, "device": device, "dtype": dtype}
        self.weighting = build_part(weighting, options, context)
        self.elementwise = build_part(elementwise, options, context)
        self.normalization = build_part(normalization, options, context)
        if options:
            known = ", ".join(part_options(weighting, normalization, elementwise)) or "none"
            raise OptionError(f"pool {name!r} has no option {next(iter(options))!r}; those of its parts: {known}")

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

    def features(self, x: Tensor) -> Tensor:
        return self.reduction(self.to_maps(x)).flatten(2)

    def entries(self, X: Tensor) -> Tensor:
        return self.normalization(self.weighting(X), self.centered, self.compute, self.vectorize)

    def represent(self, X: Tensor) -> Tensor:
        return self.elementwise(self.entries(X))


def part_options(*kinds: type[nn.Module] | None) -> list[str]:
    """Names of the options that classes of parts take."""
    parameters = [p for kind in kinds if kind for p in inspect.signature(kind).parameters.values()]
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in CONTEXT]


def build_part(kind: type[nn.Module] | None, options: dict[str, Any], context: dict[str, Any]) -> Any:
    """A part of the pool, from the ``options`` that it takes, which are removed, and the ``context`` it asks for."""
    if kind is None:
        return nn.Identity()
    parameters = inspect.signature(kind).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    taken = {name: options.pop(name) for name in list(options) if takes_all or name in part_options(kind)}
    return kind(**taken, **{name: value for name, value in context.items() if name in parameters})


for _name in list_methods("sqrtm"):
    POOLS.add(_name, partial(CovariancePool, method=_name))

_BILINEAR: dict[str, Any] = {
    "elementwise": SignedRootL2,
    "centered": False,
    "vectorize": "full",
    "reduce_channels": None,
}
_PARTS: dict[str, dict[str, Any]] = {
    "seb": {"normalization": ScalingEigenBranch},
    "powcov": {"normalization": MatrixPower},
    "logcov": {"normalization": MatrixLogarithm},
    "bcnn": {"normalization": Plain, **_BILINEAR},
    "ibcnn": {"normalization": MatrixRoot, "method": "exact", **_BILINEAR},
}
for _name, _parts in _PARTS.items():
    POOLS.add(_name, partial(CovariancePool, pool_type=_name, **_parts))
