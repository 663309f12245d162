"""MaxExp: spectral power normalisation by matrix products alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..checks import check_integer
from ..linalg import covariance, smaller_covariance
from ..linalg.covariance import fewer_positions
from ..linalg.tensors import identity_like, product, trace, transpose
from ..tables import About
from .base import POOLS
from .held_size import HeldSizePool, of_unit_size
from .normalizations import Normalization
from .positions import counted


class MaxExp(Normalization):
    """I - (I - A / tr A)^η: eigenvalues λ become 1 - (1 - λ / Σ λ)^η, the chance to meet a feature in η draws.

    With B = A / tr A this is B S for the geometric series S = Σ_{k<η} (I - B)^k, which takes about 2 log₂ η products of
    the smaller of covariance and Gram matrix, and cancels nothing where an eigenvalue is zero. The result does not
    change with the scale of the features; a zero covariance gives zeros.

    Args:
        eta: η, a positive integer; one gives A / tr A. The default is a choice of this project.

    Source: Koniusz & Zhang, "Power Normalizations in Fine-Grained Image, Few-Shot Image and Graph Classification",
    T-PAMI 2021.

    Raises:
        OptionError: unless η is a positive integer.

    Examples:
        >>> MaxExp(eta=2)(torch.tensor([[[1.0, -1.0], [0.0, 0.0]]]), True, "mixed", "triu")
        tensor([[1., 0., 0.]])
    """

    def __init__(self, *, eta: int = 20) -> None:
        super().__init__()
        check_integer("maxexp: eta", eta)
        self.eta = eta

    @property
    def is_exportable(self) -> bool:
        return True

    def of_features(self, X: Tensor, centered: bool) -> Tensor:
        Y = counted(of_unit_size(X), None, centered)
        few = fewer_positions(X)
        A = smaller_covariance(Y, centered=False) if few else covariance(Y, centered=False)
        total = trace(A)
        total = torch.where(total > 0, total, torch.ones_like(total)) + 0 * total  # NaN stays NaN
        B = A / total
        S = geometric_series(B, self.eta)
        if not few:
            return product(B, S)
        return product(product(Y / (total * X.shape[-1]), S), transpose(Y))

    def extra_repr(self) -> str:
        return f"eta={self.eta}"


def geometric_series(B: Tensor, count: int) -> Tensor:
    """Σ_{k<count} (I - B)^k for B (..., n, n), by doubling: S_2k = S_k + (I - B)^k S_k."""
    eye = identity_like(B)
    total, power = eye.expand_as(B), eye - B  # of one term; (I - B)^1
    for bit in f"{count:b}"[1:]:
        total, power = total + product(power, total), product(power, transpose(power))
        if bit == "1":
            total, power = total + power, power - product(power, B)
    return total


def maxexp(in_channels: int, *, eta: int = 20, **shared: Any) -> HeldSizePool:
    return HeldSizePool(in_channels, pool_type="maxexp", normalization=MaxExp(eta=eta), **shared)


POOLS.add("maxexp", maxexp, About("I - (I - A / tr A)^η of the covariance A, η = 20", "exact", "T-PAMI 2021"))
