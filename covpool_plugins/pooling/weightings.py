"""What is done to features before their covariance: Gaussian embedding, channel dropout, democratic weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import check_integer, check_number
from ..errors import OptionError
from ..linalg import Method
from ..linalg.tensors import autocast_off, power_of_two, product, transpose
from ..tables import About
from .base import POOLS, widened
from .covariance_pool import CovariancePool, Plain, Weighting, bilinear_pool
from .positions import counted, mean_over_positions, only
from .reduction import reduced_channels

TAPS = 3
DROPOUT_CHANNELS = 128  # of the published networks


class GaussianEmbedding(Weighting):
    """Features X (B, C, M), and a channel of ones, (B, C + 1, M); the mean counts β times.

    Their second moment is [[Σ + β² μμᵀ, β μ], [β μᵀ, 1]] with mean μ and covariance Σ of X, which is the Gaussian
    N(β μ, Σ) as a symmetric positive definite matrix.

    Args:
        weight: β, a positive number; one as published.

    Source: Wang, Li & Zhang, "G2DeNet: Global Gaussian Distribution Embedding Network and Its Application to Visual
    Recognition", CVPR 2017.

    Examples:
        >>> X = torch.tensor([[[1.0, 3.0]]])  # mean 2, variance 1
        >>> Y = GaussianEmbedding()(X)
        >>> Y @ Y.mT / 2
        tensor([[[5., 2.],
                 [2., 1.]]])
    """

    added_channels = 1
    shown = ("weight",)

    def __init__(self, *, weight: float = 1.0) -> None:
        super().__init__()
        check_number("gaussian: weight", weight, "(0, inf)")
        self.weight = float(weight)

    def forward(self, X: Tensor, mask: Tensor | None = None) -> Tensor:
        wide = widened(X)
        if self.weight != 1:
            wide = wide + (self.weight - 1) * mean_over_positions(wide, mask)
        return only(torch.cat([wide, torch.ones_like(wide[:, :1])], dim=1), mask)


class AdaptiveChannelDropout(Weighting):
    """Features (B, C, M) with channels weighted and dropped while training; as they are at inference.

    In training, with the means g (B, C) of the channels:

    * attention ω = softmax of a convolution of g along the channels, with one kernel of three taps and no bias;
    * the features become X' = (1 + ω) X;
    * r_i = Σ_j Σ_ij, the row sums of the covariance Σ of X'; c = ⟨ω, r⟩ / (‖ω‖ ‖r‖) for each sample;
    * one rate for the batch, ρ = 1 - (10 / log₂ C) mean(c), cut to [0, 1];
    * each channel of each sample is kept with the probability 1 - ρ, and divided by it.

    Attention that agrees with the correlation of the channels (c near one) means no dropout. ρ is a constant to the
    gradient and stays on the device. Samples whose row sums are zero, those that are constant over the positions, have
    no c and do not count, neither do those that are not finite; in the released code the rate is NaN then. Random
    numbers come from the global generator of the device.

    Args:
        channels: C.

    Attributes:
        weight: the taps (1, 1, 3), the only parameter.

    Source: Wang, Gao, Zhang, Xie, Li & Hu, "DropCov: A Simple yet Effective Method for Improving Deep Architectures",
    NeurIPS 2022; the formulas are those of the authors' code.

    Examples:
        >>> dropout = AdaptiveChannelDropout(256)
        >>> X = torch.randn(2, 256, 49)
        >>> dropout(X).shape, torch.equal(dropout.eval()(X), X)
        (torch.Size([2, 256, 49]), True)
    """

    shown = ("channels",)

    def __init__(self, channels: int, **factory: Any) -> None:
        super().__init__()
        self.channels = channels
        self.weight = nn.Parameter(torch.empty(1, 1, TAPS, **factory))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Begin as a convolution of torch does."""
        if not self.weight.is_meta:
            nn.init.uniform_(self.weight, -(TAPS**-0.5), TAPS**-0.5)

    def attention(self, X: Tensor, mask: Tensor | None = None) -> Tensor:
        """ω (B, C), which sums to one, for features (B, C, M); in float32 at least."""
        means = mean_over_positions(widened(X), mask).squeeze(-1)
        with autocast_off(X.device.type):
            # Not as a convolution, whose backward pass may be autocast.
            taps = nn.functional.pad(means, (TAPS // 2, TAPS // 2)).unfold(-1, TAPS, 1)
            return (taps * self.weight.to(means.dtype).flatten()).sum(-1).softmax(-1)

    @torch.no_grad()
    def rate(self, X: Tensor, attention: Tensor, mask: Tensor | None = None) -> Tensor:
        """ρ, a 0-dimensional tensor, for weighted features X' (B, C, M) and their attention (B, C)."""
        Xc = counted(X / power_of_two(X), mask, True)
        # Σ 1 = X' (X'ᵀ 1) without Σ.
        row_sums = (Xc * Xc.sum(-2, keepdim=True)).sum(-1)
        lengths = attention.norm(dim=-1) * row_sums.norm(dim=-1)
        counts = (lengths > 0) & lengths.isfinite()
        cosines = torch.where(counts, (attention * row_sums).sum(-1) / torch.where(counts, lengths, 1.0), 0.0)
        mean = cosines.sum() / counts.sum().clamp_min(1)
        return (1 - 10 / math.log2(max(self.channels, 2)) * mean).clamp(0, 1)

    def forward(self, X: Tensor, mask: Tensor | None = None) -> Tensor:
        """Features in float32 at least while training, for a kept channel may leave the range of a smaller type."""
        if not self.training:
            return X
        attention = self.attention(X, mask)
        weighted = widened(X) * (1 + attention).unsqueeze(-1)
        rate = self.rate(weighted, attention, mask)
        keep = torch.rand_like(attention) >= rate
        factor = keep * torch.where(rate < 1, 1 / (1 - rate), 0.0)
        return weighted * factor.unsqueeze(-1)


class DemocraticWeighting(Weighting):
    """Features x_i (B, C, M) times √α_i, so that their second moment is Σ α_i x_i x_iᵀ / M.

    With the kernel K_ij = <x_i, x_j>² the weights solve α_i Σ_j K_ij α_j = (Σ_j K_ij)^γ: γ = 1 leaves all weights at
    one (sum pooling), γ = 0 gives every position the same contribution (democratic pooling). The damped Sinkhorn
    iteration finds them: α_i <- α_i ((Σ_j K_ij)^γ / (α_i Σ_j K_ij α_j))^τ from α = 1. The gradient is that of the
    unrolled iteration, weights included.

    The paper writes the iteration for features as they are. Here they are divided by a power of two near their largest
    magnitude first, and the weights are scaled back, because K is of degree four and leaves the range of float32
    early. For τ = 1/2 this changes nothing: the first step finds the common scale of the weights. Positions that are
    zero up to rounding beside that magnitude contribute nothing; the iteration leaves them out, because the equation
    has no finite solution for them when γ < 1.

    Args:
        gamma: γ, 0 <= γ <= 1; 0.5 is what the authors recommend in general.
        iterations: steps of the Sinkhorn iteration; the default is a choice of this project.
        damping: τ, 0 < τ <= 1.

    Source: Lin, Maji & Koniusz, "Second-order Democratic Aggregation", ECCV 2018.

    Examples:
        >>> X = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])  # two positions, the second twice as large
        >>> DemocraticWeighting(gamma=0.0)(X).norm(dim=1)
        tensor([[1., 1.]])
    """

    shown = ("gamma", "iterations", "damping")

    def __init__(self, *, gamma: float = 0.5, iterations: int = 10, damping: float = 0.5) -> None:
        super().__init__()
        check_number("democratic: gamma", gamma, "[0, 1]")
        check_integer("democratic: iterations", iterations)
        check_number("democratic: damping", damping, "(0, 1]")
        self.gamma = float(gamma)
        self.iterations = iterations
        self.damping = float(damping)

    def weights(self, X: Tensor) -> Tensor:
        """The weights α (B, M) of the positions of features (B, C, M), in float32 at least."""
        alpha, scale = self._scaled_weights(X)
        return alpha * scale ** (2 * self.gamma - 2)

    def forward(self, X: Tensor, mask: Tensor | None = None) -> Tensor:  # masked positions are zero
        alpha, scale = self._scaled_weights(X)
        # √α as a whole: α itself, of the degree 2γ - 2 in the features, may leave the range where its root does not.
        factor = alpha.sqrt() * scale ** (self.gamma - 1)
        return (X * factor.unsqueeze(-2)).to(X.dtype)

    def _scaled_weights(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (B, M) for the features divided by their scale, and that scale (B, 1)."""
        wide = widened(X)
        with autocast_off(X.device.type):
            limits = torch.finfo(wide.dtype)
            scale = power_of_two(wide)
            Y = wide / scale
            dead = Y.detach().square().sum(-2) <= limits.eps**2
            K = product(transpose(Y), Y).square()
            target = torch.where(dead, 1.0, K.sum(-1)) ** self.gamma
            alpha = torch.ones_like(target)
            for _ in range(self.iterations):
                contribution = alpha * product(K, alpha.unsqueeze(-1)).squeeze(-1)
                # Dead positions are cut out before the power, whose slope at zero would be infinite.
                ratio = torch.where(dead, 1.0, target / torch.where(dead, 1.0, contribution))
                alpha = alpha * ratio**self.damping
        return alpha, scale.squeeze(-1)


def gaussian(
    in_channels: int,
    *,
    method: str | Method = "svdpade",
    weight: float = 1.0,
    centered: bool = False,
    **options: Any,
) -> CovariancePool:
    if centered is not False:
        raise OptionError(f"gaussian: centered must be False, for the matrix holds the mean, got {centered!r}")
    weighting = GaussianEmbedding(weight=weight)
    return CovariancePool(in_channels, method, pool_type="gaussian", weighting=weighting, centered=False, **options)


def dropcov(in_channels: int, *, reduce_channels: int | str | None = "default", **shared: Any) -> CovariancePool:
    channels = reduced_channels(in_channels, reduce_channels, DROPOUT_CHANNELS)
    shared |= dict(weighting=AdaptiveChannelDropout(channels), normalization=Plain())
    reduce_channels = None if reduce_channels is None else channels
    return CovariancePool(in_channels, pool_type="dropcov", reduce_channels=reduce_channels, **shared)


def democratic(
    in_channels: int,
    *,
    gamma: float = 0.5,
    iterations: int = 10,
    damping: float = 0.5,
    eps: float = 1e-8,
    **shared: Any,
) -> CovariancePool:
    weighting = DemocraticWeighting(gamma=gamma, iterations=iterations, damping=damping)
    return bilinear_pool(in_channels, "democratic", eps, weighting=weighting, normalization=Plain(), **shared)


POOLS.add(
    "gaussian",
    gaussian,
    About("square root of [[Σ + μμᵀ, μ], [μᵀ, 1]], mean and covariance in one matrix", "exact", "CVPR 2017"),
)
POOLS.add(
    "dropcov",
    dropcov,
    About(
        "covariance of 128 channels; training drops channels at a rate that attention decides", "exact", "NeurIPS 2022"
    ),
)
POOLS.add(
    "democratic",
    democratic,
    About(
        "second moment of positions weighted by Sinkhorn iterations, signed square root, l2 norm",
        "exact, also through the weights",
        "ECCV 2018",
    ),
)
