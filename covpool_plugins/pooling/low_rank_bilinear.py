"""Low-rank bilinear pooling: responses of bilinear classifiers of low rank."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..checks import check_integer, is_integer
from ..errors import OptionError, ShapeError
from ..linalg import covariance
from ..linalg.tensors import autocast_off
from ..tables import About
from .base import POOLS, Pool, widened


@POOLS.register("lrbp", About("responses of 200 low-rank bilinear filters", "exact", "CVPR 2017"))
class LowRankBilinearPool(Pool):
    """Responses ⟨W_k, X Xᵀ / M⟩ of K bilinear filters of low rank, which are learned.

    With W_k = U₊ U₊ᵀ - U₋ U₋ᵀ, both of rank r/2, the response is ‖U₊ᵀ X‖² / M - ‖U₋ᵀ X‖² / M: neither W_k nor, where
    it is larger than the features, X Xᵀ is formed. Where there are fewer channels than positions, tr(Uᵀ (X Xᵀ / M) U)
    is the same number for less (100 channels at 28x28: 4 against 48 ms on one CPU thread).

    In the paper there is one filter per class and the response is the class score up to a bias; here a linear
    classifier may follow, and ``filters`` is free.

    Args:
        in_channels: channels of the input.
        filters: K, the length of the vector; 200 is the paper's number for CUB-200.
        rank: r, even: r/2 positive and r/2 negative directions per filter.
        common: ``reduce_channels``, ``reduction``, ``input_fmt`` and the others of :class:`Pool`. The defaults, 100
            channels by the linear ``projection`` without bias, are the paper's: it has m = 100 columns, which the
            filters share (co-decomposition).

    Attributes:
        factors: U, (K, 2, r/2, C): the positive directions of each filter, then the negative ones.

    Source: Kong & Fowlkes, "Low-rank Bilinear Pooling for Fine-Grained Classification", CVPR 2017.

    Raises:
        OptionError: for an option outside its range.

    Examples:
        >>> LowRankBilinearPool(64, filters=10)(torch.randn(2, 64, 7, 7)).shape
        torch.Size([2, 10])
    """

    default_channels = 100
    default_reductions = ("projection", "projection")

    def __init__(
        self,
        in_channels: int,
        *,
        filters: int = 200,
        rank: int = 8,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **common: Any,
    ) -> None:
        check_integer("lrbp: filters", filters)
        check_rank(rank)
        super().__init__(in_channels, pool_type="lrbp", device=device, dtype=dtype, **common)
        self.out_features = filters
        self.rank = rank
        self.factors = nn.Parameter(torch.empty(filters, 2, rank // 2, self.channels, device=device, dtype=dtype))
        self.reset_parameters()

    @classmethod
    def from_classifiers(cls, W: Tensor, *, rank: int, **options: Any) -> LowRankBilinearPool:
        """The pool whose filters are the best approximations of given bilinear classifiers; no reduction.

        Args:
            W: classifiers (K, C, C), see :func:`low_rank_factors`.
            rank: of each filter; 2 C keeps them exactly.
            options: others of the pool.
        """
        factors = low_rank_factors(W, rank)
        options = {"device": W.device, "dtype": W.dtype, **options}
        pool = cls(W.shape[-1], filters=W.shape[0], rank=rank, reduce_channels=None, **options)
        with torch.no_grad():
            pool.factors.copy_(factors)
        return pool

    def reset_parameters(self) -> None:
        """Directions of about unit length, so that a response has the size of the features' variance."""
        if not self.factors.is_meta:
            nn.init.normal_(self.factors, std=self.factors.shape[-1] ** -0.5)

    def represent(self, X: Tensor) -> Tensor:
        with autocast_off(X.device.type):
            wide = widened(X)
            directions = self.factors.to(wide.dtype).flatten(0, 2)
            if wide.shape[1] < wide.shape[2]:
                energies = (directions @ covariance(wide, centered=False) * directions).sum(-1)
            else:
                energies = (directions @ wide).square().mean(-1)
            positive, negative = energies.unflatten(-1, self.factors.shape[:3]).sum(-1).unbind(-1)
            return (positive - negative).to(X.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={self.rank}"


def low_rank_factors(W: Tensor, rank: int) -> Tensor:
    """Factors U (K, 2, r/2, C) with W_k ≈ U₊ᵀ U₊ - U₋ᵀ U₋ for symmetric classifiers.

    The eigenvectors of the r/2 largest positive and the r/2 largest negative eigenvalues, scaled by the roots of their
    magnitudes; zero rows where a matrix has fewer of a sign. Only the symmetric part of W_k counts, as in its inner
    product with a symmetric matrix.

    Args:
        W: bilinear classifiers (K, C, C).
        rank: r, even.

    Raises:
        OptionError: unless the rank is even and positive.
        ShapeError: unless ``W`` has the shape (K, C, C).

    Examples:
        >>> factors = low_rank_factors(torch.diag(torch.tensor([4.0, 0.0, -9.0]))[None], rank=2)
        >>> factors.shape, factors.abs().amax(-1)
        (torch.Size([1, 2, 1, 3]), tensor([[[2.],
                 [3.]]]))
    """
    check_rank(rank)
    if W.ndim != 3 or W.shape[1] != W.shape[2]:
        raise ShapeError(f"classifiers must have the shape (K, C, C), got shape {tuple(W.shape)}")
    wide = W.detach().double()
    values, vectors = torch.linalg.eigh((wide + wide.mT) / 2)
    half = min(rank // 2, W.shape[-1])
    rows = values.abs().sqrt().unsqueeze(-1) * vectors.mT
    positive = torch.where(values.unsqueeze(-1) > 0, rows, 0.0)[:, -half:].flip(1)
    negative = torch.where(values.unsqueeze(-1) < 0, rows, 0.0)[:, :half]
    factors = torch.stack([positive, negative], 1)
    return nn.functional.pad(factors, (0, 0, 0, rank // 2 - half)).to(W.dtype)


def check_rank(rank: int) -> None:
    """Raise unless the rank divides into equally many positive and negative directions."""
    if not is_integer(rank, 2) or rank % 2:
        raise OptionError(f"lrbp: rank must be a positive even integer, got {rank!r}")
