"""Bilinear pooling beside its full matrix: of two networks, compact, of low rank."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..checks import check_choice, check_integer, is_integer
from ..errors import OptionError, ShapeError
from ..linalg import covariance
from ..linalg.covariance import fewer_positions
from ..linalg.tensors import autocast_off, exporting, power_of_two, product
from ..tables import About
from .base import POOLS, Pool, widened
from .covariance_pool import SignedRootL2
from .positions import count_positions, counted

# All hashes drawn for D numbers stay below a smaller bound with at most this probability.
UNLIKELY = 1e-9

SketchRoute = Literal["auto", "matrix", "fft"]


class BilinearPool(Pool):
    """X Yᵀ / M of two feature maps with the same positions, signed square root, l2: C₁ C₂ numbers, row by row.

    ``forward(x, y)`` takes (B, C₁, H, W) and (B, C₂, H, W), or any other layout, and ``mask=`` as any pool.
    ``forward(x)`` is ``forward(x, x)``, the pool ``bcnn``. It has no name in the table, where a pool takes one input.

    Args:
        in_channels: C₁, channels of the first input.
        second_channels: C₂, channels of the second; as many as of the first by default.
        eps: ε of the signed root, see :class:`SignedRootL2`.
        layout: ``input_fmt`` and ``num_prefix_tokens`` of both inputs, see :class:`Pool`.

    Source: Lin, RoyChowdhury & Maji, "Bilinear CNN Models for Fine-grained Visual Recognition", ICCV 2015.

    Raises:
        OptionError: for an option outside its range.
        ShapeError: from ``forward``, if the inputs differ in batch or positions, or one is missing.

    Examples:
        >>> BilinearPool(8, 4)(torch.randn(2, 8, 7, 7), torch.randn(2, 4, 7, 7)).shape
        torch.Size([2, 32])
    """

    def __init__(
        self,
        in_channels: int,
        second_channels: int | None = None,
        *,
        eps: float = 1e-8,
        **layout: Any,
    ) -> None:
        second = in_channels if second_channels is None else second_channels
        check_integer("second_channels", second)
        super().__init__(in_channels, pool_type="bilinear", **layout)
        self.out_features = in_channels * second
        self.second_stream = Pool(second, pool_type="bilinear (second input)", **layout)
        self.elementwise = SignedRootL2(eps=eps)

    def forward(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Vectors (B, C₁ C₂) for one input, or for two with the same positions, of which the mask (B, M) is true."""
        X = self.features(x, mask)
        vectors = self.represent(X, None if y is None else self.second_stream.features(y, mask), mask)
        return vectors if mask is None else torch.where(mask.any(dim=-1, keepdim=True), vectors, 0.0)

    def represent(self, X: Tensor, Y: Tensor | None = None, mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Vectors (B, C₁ C₂) for features (B, C₁, M) and (B, C₂, M); ``Y`` is ``X`` unless given."""
        if Y is None:
            if self.second_stream.in_channels != self.in_channels:
                raise ShapeError(
                    f"bilinear pool of {self.in_channels} and {self.second_stream.in_channels} channels: "
                    "expected two inputs, got one"
                )
            Y = X
        if X.shape[::2] != Y.shape[::2]:
            raise ShapeError(
                "bilinear pool: expected inputs with the same batch and positions, got features "
                f"{tuple(X.shape)} and {tuple(Y.shape)}"
            )
        with autocast_off(X.device.type):
            dtype = torch.promote_types(torch.promote_types(X.dtype, Y.dtype), torch.float32)
            A = product(X.to(dtype) / count_positions(X, mask), Y.to(dtype).transpose(1, 2))
            return self.elementwise(A.flatten(1)).to(torch.promote_types(X.dtype, Y.dtype))


class CompactBilinearPool(Pool):
    """Tensor sketch of X Xᵀ, signed square root, l2: D numbers instead of the C² of bilinear pooling.

    Each channel i has two hashes h₁(i), h₂(i) in 0 ... D-1 and two signs s₁(i), s₂(i), all drawn once. The sketch adds
    entry (i, j) of X Xᵀ, with the sign s₁(i) s₂(j), to bin (h₁(i) + h₂(j)) mod D. Over the draws, the inner product of
    two sketches is on average that of the two matrices, so the sketches keep the kernel of bilinear pooling.

    Two routes lead to the same sums: ``matrix`` forms X Xᵀ and adds its entries up; ``fft`` convolves the two count
    sketches of every position, sums over the positions in the frequency domain, and goes back once per image. The first
    handles C² numbers per image, the second 2 M D, and time and memory follow; ``auto`` takes the smaller, for example
    ``matrix`` for 512 channels at 28x28, a tenth of the time, and ``fft`` for 2048 channels at 7x7, a quarter. An
    export takes ``matrix``.

    As in the published code the sketch is a sum over the positions, not their mean; after the l2 norm only ``eps``
    tells the two apart. Hashes and signs are in the state dict. Those of seed 1 are the ones that checkpoints of
    fast-MPN-COV, which do not hold them, were trained with.

    Args:
        in_channels: channels of the input.
        projection: D, the length of the vector.
        seed: of the hashes and signs; the global generator is neither used nor changed.
        route: ``auto``, ``matrix`` or ``fft``.
        eps: ε of the signed root, see :class:`SignedRootL2`.
        shared: options of :class:`Pool`.

    Source: Gao, Beijbom, Zhang & Darrell, "Compact Bilinear Pooling", CVPR 2016, algorithm 2; Pham & Pagh, "Fast and
    Scalable Polynomial Kernels via Explicit Feature Maps", KDD 2013.

    Examples:
        >>> CompactBilinearPool(64, projection=128)(torch.randn(2, 64, 7, 7)).shape
        torch.Size([2, 128])
    """

    centered = False
    shown = ("seed", "route")

    def __init__(
        self,
        in_channels: int,
        *,
        projection: int = 8192,
        seed: int = 1,
        route: SketchRoute = "auto",
        eps: float = 1e-8,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **shared: Any,
    ) -> None:
        check_integer("cbp: projection", projection)
        if not is_integer(seed, 0) or seed >= 2**63:
            raise OptionError(f"cbp: seed must be an integer from 0 to 2**63 - 1, got {seed!r}")
        check_choice("cbp: route", route, get_args(SketchRoute))
        super().__init__(in_channels, pool_type="cbp", device=device, dtype=dtype, **shared)
        self.out_features = projection
        self.seed = seed
        self.route = route
        self.elementwise = SignedRootL2(eps=eps)
        hashes, signs = torch.zeros(self.channels, dtype=torch.int64), torch.ones(self.channels)
        self.h1, self.h2 = nn.Buffer(hashes), nn.Buffer(hashes.clone())
        self.s1, self.s2 = nn.Buffer(signs), nn.Buffer(signs.clone())
        self.to(device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the hashes and signs of ``seed`` again, for example after ``to_empty``."""
        if self.h1.is_meta:
            return
        # A checkpoint of the published code means these draws, in this order: both hashes, then both signs.
        generator = torch.Generator("cpu").manual_seed(self.seed)
        for hashes in (self.h1, self.h2):
            hashes.copy_(torch.randint(0, self.out_features, hashes.shape, generator=generator, device="cpu"))
        for signs in (self.s1, self.s2):
            signs.copy_(2 * torch.randint(0, 2, signs.shape, generator=generator, device="cpu") - 1)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Refuses hashes that were drawn for vectors of another length, as far as they tell."""
        hashes = [state_dict[prefix + name] for name in ("h1", "h2") if prefix + name in state_dict]
        if len(hashes) == 2 and not hashes[0].is_meta:
            drawn, length = torch.cat(hashes), int(max(h.max() for h in hashes)) + 1
            unlikely = (length / self.out_features) ** drawn.numel() < UNLIKELY
            if length > self.out_features or unlikely:
                error_messages = args[-1]
                error_messages.append(
                    f"cbp: the hashes go up to {length - 1}, which does not fit projection={self.out_features}"
                )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def represent(self, X: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.elementwise(self.sketch(X)).to(X.dtype)

    def entries(self, X: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.sketch(X)

    def sketch(self, X: Tensor) -> Tensor:
        """The tensor sketch (B, D) of X Xᵀ for features (B, C, M), before the element-wise step, in float64.

        Of features over a power of two, which does not round. The sum of squares may leave the range of float32.
        """
        with autocast_off(X.device.type):
            wide = widened(X)
            scale = power_of_two(wide)
            sketch = self._by_matrix(wide / scale) if self._takes_matrix(X) else self._by_fft(wide / scale)
            return sketch.double() * scale.squeeze(-1).double().square()

    def _takes_matrix(self, X: Tensor) -> bool:
        if self.route == "auto" and exporting():
            return True  # for any number of positions, and ONNX's older exporter has no rfft
        channels, positions = X.shape[1:]
        return self.route == "matrix" or (self.route == "auto" and channels**2 <= 2 * positions * self.out_features)

    def _by_matrix(self, X: Tensor) -> Tensor:
        first, second = (X * signs.to(X.dtype).unsqueeze(-1) for signs in (self.s1, self.s2))
        entries = product(first, second.transpose(1, 2)).flatten(1)
        bins = ((self.h1.unsqueeze(-1) + self.h2) % self.out_features).flatten()
        zeros = X.new_zeros(X.shape[0], self.out_features)
        return zeros.scatter_add(1, bins.expand(X.shape[0], -1), entries)

    def _by_fft(self, X: Tensor) -> Tensor:
        positions = X.transpose(1, 2)
        spectra = self._spectrum(positions, self.h1, self.s1) * self._spectrum(positions, self.h2, self.s2)
        return torch.fft.irfft(spectra.sum(1), n=self.out_features).masked_fill(self._empty_bins(X), 0.0)

    def _spectrum(self, values: Tensor, hashes: Tensor, signs: Tensor) -> Tensor:
        """Fourier transform (..., D // 2 + 1) of the count sketch of (..., C)."""
        zeros = values.new_zeros(*values.shape[:-1], self.out_features)
        return torch.fft.rfft(zeros.index_add(-1, hashes, values * signs.to(values.dtype)))

    def _empty_bins(self, X: Tensor) -> Tensor:
        """True (B, D) where no two live channels meet: the rounding left there would be signed and rooted to √ε."""
        live = (X != 0).any(-1).to(X.dtype)
        ones = torch.ones_like(self.s1)
        pairs = self._spectrum(live, self.h1, ones) * self._spectrum(live, self.h2, ones)
        return torch.fft.irfft(pairs, n=self.out_features) < 0.5


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
        shared: options of :class:`Pool`. The defaults, 100 channels by the linear ``projection`` without bias, are the
            paper's: it has m = 100 columns, which the filters share (co-decomposition).

    Attributes:
        factors: U, (K, 2, r/2, C): the positive directions of each filter, then the negative ones.

    Source: Kong & Fowlkes, "Low-rank Bilinear Pooling for Fine-Grained Classification", CVPR 2017.

    Examples:
        >>> LowRankBilinearPool(64, filters=10)(torch.randn(2, 64, 7, 7)).shape
        torch.Size([2, 10])
    """

    centered = False
    in_range = False
    shown = ("rank",)
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
        **shared: Any,
    ) -> None:
        check_integer("lrbp: filters", filters)
        if not is_integer(rank, 2) or rank % 2:
            raise OptionError(f"lrbp: rank must be a positive even integer, got {rank!r}")
        super().__init__(in_channels, pool_type="lrbp", device=device, dtype=dtype, **shared)
        self.out_features = filters
        self.rank = rank
        self.factors = nn.Parameter(torch.empty(filters, 2, rank // 2, self.channels, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Directions of about unit length, so that a response has the size of the features' variance."""
        if not self.factors.is_meta:
            nn.init.normal_(self.factors, std=self.factors.shape[-1] ** -0.5)

    def represent(self, X: Tensor, mask: Tensor | None = None) -> Tensor:
        with autocast_off(X.device.type):
            wide = widened(X) if mask is None else counted(X, mask, False)
            # Squares leave the range before their mean does; a power of two does not round.
            unit = power_of_two(wide)
            wide = wide / unit
            directions = self.factors.to(wide.dtype).flatten(0, 2)
            if not fewer_positions(wide):
                A = covariance(wide, centered=False)
                images = product(A.flatten(0, 1), directions.T).unflatten(0, A.shape[:2])
                energies = (images * directions.T).sum(1)
            else:
                rows = wide.transpose(1, 2)
                energies = product(rows.flatten(0, 1), directions.T).unflatten(0, rows.shape[:2]).square().mean(1)
            positive, negative = energies.unflatten(-1, self.factors.shape[:3]).sum(-1).unbind(-1)
            return self.in_precision((positive - negative) * unit.squeeze(-1).square(), X)


POOLS.add(
    "cbp",
    CompactBilinearPool,
    About("tensor sketch of the second moment, signed square root, l2 norm", "exact", "CVPR 2016"),
)
POOLS.add("lrbp", LowRankBilinearPool, About("responses of 200 low-rank bilinear filters", "exact", "CVPR 2017"))
