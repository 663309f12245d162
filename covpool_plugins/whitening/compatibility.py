"""The original whitening layers as their released code computes them, for checkpoints and for comparison.

``released_layer("ZCANormSVDPI", 64, groups=8)`` is a layer of this package set up like the original of that name, and
``convert_state`` turns the original's entries of a state dict into this layer's. What it then does differently from the
defaults, all of it in the ``method``:

========================  ===========================  ================================================================
original                  method                       quirk
========================  ===========================  ================================================================
``ZCANormSVDPI``          ``svdpi_released``           keeps eigenvectors while they have less than 1 - eps of the
                                                       energy: the last one is always dropped, and a group of one
                                                       channel gives the bias; gradient of deflated power iteration
``ZCANormSVDunstable``    ``svd_released``             keeps one eigenvector, or all that are not null if some are
``ZCANormPIunstable``     ``power_iteration``          random starting vectors in every step; here always the same
``ZCANormBatch``          ``mpa_released``             10 iterations for the gradient instead of 9
``myPCANormSVDPI``        ``svdpi_released``           16 components; unbiased variance in training; that gradient
========================  ===========================  ================================================================

In evaluation only the buffers count, and the layers agree whatever the method. Sources: cvlab-epfl/Power-Iteration-SVD
and KingJamesSong/FastDifferentiableMatSqrt.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..linalg import MPA
from ..linalg.eigenbasis import spectral_function
from ..linalg.tensors import symmetrize
from ..tables import Table
from .leading import Leading
from .matrices import WHITENING_METHODS, EigenvectorMethod
from .norm import PCANorm2d, WhiteningNorm, ZCANorm2d

STARTING_VECTOR = re.compile(r"(eigenvector\d+-)?\d+")


@dataclass(frozen=True)
class Deflated(Leading):
    """The gradient of power iterations that run on what larger eigenvalues have left, and differentiate that too.

    With x = λ_min / λ_max and n = iterations + 1, the eigenvector of the larger eigenvalue gets n terms of the
    geometric series and the other, through the deflation, n - 1: K (1 - x^n) + f(λ_min) x^(n - 1) / λ_max. For equal
    eigenvalues and the inverse root that is f / λ, where the exact K is -f / (2 λ).
    """

    def coefficients(self, values: Tensor, others: Tensor) -> Tensor:
        assert self.iterations is not None
        exact = Leading.coefficients(replace(self, iterations=None), values, values)
        shifted, f = values + self.eps, self.values(values)
        first, second = shifted.unsqueeze(-1), shifted.unsqueeze(-2)
        high = torch.maximum(first, second)
        high = torch.where(high == 0, 1.0, high)
        x = torch.minimum(first, second) / high
        # Eigenvalues ascend, so that the smaller index has the smaller of two, also of equal ones.
        index = torch.arange(values.shape[-1], device=values.device)
        smaller = torch.where(index.unsqueeze(-1) <= index, f.unsqueeze(-1), f.unsqueeze(-2))
        n = self.iterations + 1
        approximate = exact * (1 - x**n) + smaller * x ** (n - 1) / high
        return torch.where(index.unsqueeze(-1) == index, exact, approximate)


@dataclass(frozen=True)
class ReleasedInverseRoot(Deflated):
    """Eigenvectors count while those up to them have less than 1 - eps of the energy; null ones never do."""

    def dropped(self, eigenvalues: Tensor) -> Tensor:
        shifted = eigenvalues + self.eps
        sums = shifted.cumsum(-1)
        total = sums[..., -1:]
        return (total - sums + shifted >= (1 - self.eps) * total) | (eigenvalues == 0)


@dataclass(frozen=True)
class ReleasedSVDPI(EigenvectorMethod):
    """eigh, and the deflated power iteration's gradient."""

    unbiased: ClassVar[bool] = True
    iterations: int = 19

    def apply(self, covariance: Tensor, function: Leading) -> Tensor:
        options = dict(vars(function), iterations=self.iterations)
        released = Deflated(**options) if function.projector else ReleasedInverseRoot(**options)
        return spectral_function(symmetrize(covariance), released)


@dataclass(frozen=True)
class ReleasedSVDInverseRoot(Leading):
    """One eigenvector where all eigenvalues are positive, else those of the positive ones."""

    def dropped(self, eigenvalues: Tensor) -> Tensor:
        null = eigenvalues == 0
        kept = torch.where(null.any(-1, keepdim=True), (~null).sum(-1, keepdim=True), 1)
        n = eigenvalues.shape[-1]
        return torch.arange(n, device=eigenvalues.device) < n - kept


@dataclass(frozen=True)
class ReleasedSVD(EigenvectorMethod):
    """eigh and the exact gradient, for too few eigenvectors."""

    def apply(self, covariance: Tensor, function: Leading) -> Tensor:
        return spectral_function(symmetrize(covariance), ReleasedSVDInverseRoot(eps=function.eps))


WHITENING_METHODS.add("svdpi_released", ReleasedSVDPI())
WHITENING_METHODS.add("svd_released", ReleasedSVD())
WHITENING_METHODS.add("mpa_released", MPA(lyapunov_iterations=10))

RELEASED_LAYERS: Table[Callable[..., WhiteningNorm]] = Table("released whitening layer")
RELEASED_LAYERS.add("ZCANormSVDPI", partial(ZCANorm2d, method="svdpi_released"))
RELEASED_LAYERS.add("ZCANormSVDunstable", partial(ZCANorm2d, groups=4, method="svd_released"))
RELEASED_LAYERS.add("ZCANormPIunstable", partial(ZCANorm2d, method="power_iteration"))
RELEASED_LAYERS.add("ZCANormBatch", partial(ZCANorm2d, eps=1e-2, method="mpa_released"))
RELEASED_LAYERS.add("myPCANormSVDPI", partial(PCANorm2d, n_components=16, method="svdpi_released"))


def released_layer(name: str, num_features: int, **options: Any) -> WhiteningNorm:
    """A layer that does what the original of that name does.

    Args:
        name: the class of the original.
        num_features: C.
        options: replace the original's defaults: ``groups``, ``eps``, ``momentum``, ``affine``, ``device``, ``dtype``.

    Raises:
        UnknownNameError: for a name that there is not.
        OptionError: for an option out of its range.

    Examples:
        >>> released_layer("ZCANormSVDPI", 64, groups=8).method
        'svdpi_released'
    """
    return RELEASED_LAYERS[name](num_features, **options)


class Entry(NamedTuple):
    """Where a tensor of an original layer goes: the name in ours, which part of that it is, and whether transposed."""

    name: str
    part: int | None = None
    transposed: bool = False


def place_entry(name: str, pca: bool) -> Entry | None:
    """The place of a tensor of an original layer; ``None`` for a vector that power iterations start from.

    The layer of ``pca``, ``myPCANormSVDPI``, projects by the transpose of what it keeps.
    """
    numbered = re.fullmatch(r"running_subspace(\d+)", name)
    if numbered:
        return Entry("running_subspace", int(numbered[1]))
    if STARTING_VECTOR.fullmatch(name):
        return None
    return Entry(name, None, pca and name == "running_subspace")


def convert_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a layer of this package from that of an original layer.

    The subspaces of the groups, ``running_subspace0``, ``running_subspace1``, ..., become one (G, d, d); weights,
    biases and means of shapes (C, 1), (1, C, 1) or (G, d, 1) become (C,); the vectors that power iterations started
    from are left out. ``state`` has the entries of one layer, without a prefix.

    Examples:
        >>> original = ZCANorm2d(4, groups=2).state_dict()
        >>> original["weight"] = original["weight"].view(4, 1)
        >>> first, second = original.pop("running_subspace")
        >>> state = convert_state(original | {"running_subspace0": first, "running_subspace1": second})
        >>> state["weight"].shape, state["running_subspace"].shape
        (torch.Size([4]), torch.Size([2, 2, 2]))
    """
    pca = "running_subspace" in state and "running_var" in state
    converted: dict[str, Tensor] = {}
    subspaces: dict[int, Tensor] = {}
    for key, value in state.items():
        entry = place_entry(key, pca)
        if entry is None:
            continue
        if entry.part is not None:
            subspaces[entry.part] = value
        elif key == "running_subspace":
            value = value.mT if entry.transposed else value
            converted[key] = value if value.ndim == 3 else value.unsqueeze(0)
        else:
            converted[key] = value.flatten() if value.ndim else value
    if subspaces:
        converted["running_subspace"] = torch.stack([subspaces[group] for group in sorted(subspaces)])
    converted.setdefault("num_batches_tracked", torch.tensor(0))
    return converted
