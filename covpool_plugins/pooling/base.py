"""What all pools share: input layouts, masks, the two halves of a forward pass, the table of names.

A row of the table is a builder: a subclass of :class:`Pool`, a function that makes a ``CovariancePool`` of its parts,
or the latter with its normalisation::

    add_normalization("powcov", MatrixPower, About("power p of the covariance", "exact, also for p", "ICCV 2017"))

Its options are its keyword arguments, or those of the normalisation, each with a default, and what it passes on as
``**shared``: the options of the class, ``shared_options`` in it, and ``device`` and ``dtype``. Where ``method`` is one
of them, the fields of that method are options, too.
"""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from ..checks import check_choice, check_integer, check_known
from ..errors import ExportError, OptionError, ShapeError
from ..linalg import resolve_method, smaller_covariance
from ..linalg.methods.base import SQUARE_ROOTS
from ..linalg.tensors import check_floating, guarded_eigh, working_dtype
from ..tables import About, Table
from .positions import is_one_position, mean_over_positions, reduced_positions
from .reduction import REDUCTIONS, reduced_channels

InputFormat = Literal["NCHW", "NHWC", "NLC", "NCL", "NCDHW"]
INPUT_FORMATS: tuple[str, ...] = get_args(InputFormat)
TOKEN_FORMATS = ("NLC", "NCL")

LAYOUT_OPTIONS = ("input_fmt", "num_prefix_tokens")
REDUCTION_OPTIONS = ("reduce_channels", "reduction", *LAYOUT_OPTIONS)
COVARIANCE_OPTIONS = ("centered", "compute", "vectorize", *REDUCTION_OPTIONS)


ONE_POSITION = (
    "{} pool: 1 position, and the covariance of a single position is zero: every picture gets the same scores, and the "
    "backbone no gradient; use last_stride=1, a larger picture or a backbone for small ones (resnet18_cifar)"
)


class Spectrum(NamedTuple):
    """Of covariances of C channels at M positions, in float64; all but the rank are NaN unless they are finite.

    Attributes:
        eigenvalues: the min(C, M) largest, descending, (B, min(C, M)).
        condition_number: largest over smallest of those that can be told from zero, (B,); infinite for zero features.
        effective_rank: exp of the entropy of the eigenvalues as shares of their sum (Roy & Vetterli, 2007), (B,).
        rank: how many eigenvalues can be told from zero, (B,).
    """

    eigenvalues: Tensor
    condition_number: Tensor
    effective_rank: Tensor
    rank: Tensor

    @classmethod
    def of(cls, ascending: Tensor) -> Spectrum:
        """From all eigenvalues (B, n) of a covariance or Gram matrix."""
        eigenvalues = ascending.clamp_min(0).flip(-1)
        largest = eigenvalues[:, :1]
        significant = eigenvalues > eigenvalues.shape[-1] * torch.finfo(eigenvalues.dtype).eps * largest
        smallest = torch.where(significant, eigenvalues, torch.inf).amin(-1)
        shares = eigenvalues / torch.where(largest == 0, 1.0, eigenvalues.sum(-1, keepdim=True))
        effective = torch.where(largest[:, 0] == 0, 0.0, torch.exp(-torch.xlogy(shares, shares).sum(-1)))
        condition = torch.where(largest[:, 0] == 0, torch.inf, largest[:, 0] / smallest)
        condition = torch.where(largest[:, 0].isnan(), torch.nan, condition)
        return cls(eigenvalues, condition, effective, significant.sum(-1))


class Described(nn.Module):
    """A module whose ``repr`` has the attributes named in ``shown``."""

    shown: ClassVar[tuple[str, ...]] = ()

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in self.shown)


class Pool(Described):
    """Feature maps, tokens, sequences or volumes to one vector per sample.

    ``forward(x)`` is ``represent(features(x))``: ``features`` brings any layout to (B, C, M), M positions row by
    row, and reduces the channels; ``represent`` makes the vector. Explanations work on the features in between.

    ``forward(x, mask)`` leaves out the positions where the boolean ``mask`` (B, M) is false, as if the sample were
    shorter; a sample without any position gives zeros. ``represent`` gets features that are zero at those positions,
    and the mask: sums are right as they are, and ``positions.py`` has means and covariances.

    A subclass passes on by ``**shared`` what it does not take itself of the arguments after ``pool_type``, and sets
    ``out_features`` where that is not the number of channels.

    Args:
        in_channels: channels of the input.
        pool_type: the name in the table of pools.
        reduce_channels: channels C after the reduction, ``None`` without one; by default ``default_channels`` of the
            class, or ``in_channels`` where that is less.
        reduction: name of the reduction; by default ``conv-bn-relu`` for maps and ``linear-ln`` for tokens.
        input_fmt: ``NCHW`` (B, C, H, W), ``NHWC`` (B, H, W, C), ``NLC`` (B, N, C), ``NCL`` (B, C, N) or ``NCDHW``
            (B, C, D, H, W). The entries of a sequence, ``NLC`` and ``NCL``, are called tokens.
        num_prefix_tokens: how many leading tokens (class token, registers) to leave out; ``NLC`` only.

    Attributes:
        channels: after the reduction.
        out_features: length of the vector.

    Raises:
        OptionError: for an option outside its range.
        ShapeError, DtypeError: from ``forward``, for an input of another layout, or a mask that does not fit it.

    Examples:
        >>> create_pool("gap", 64).out_features, create_pool("svdpade", 64).out_features
        (64, 2080)
        >>> tokens, mask = torch.ones(2, 5, 8), torch.arange(5) < torch.tensor([[5], [3]])  # of lengths 5 and 3
        >>> create_pool("gap", 8, input_fmt="NLC")(tokens, mask).shape
        torch.Size([2, 8])
    """

    default_channels: ClassVar[int | None] = None
    default_reductions: ClassVar[tuple[str, str]] = ("conv-bn-relu", "linear-ln")  # for maps, for tokens
    shared_options: ClassVar[tuple[str, ...]] = REDUCTION_OPTIONS
    centered: bool = True  # whether the covariance is that of centred features
    in_range: bool = True  # whether float16 holds the vectors of features that it holds
    needs_positions: bool = False  # whether samples of one position all have the same vectors

    def __init__(
        self,
        in_channels: int,
        *,
        pool_type: str,
        reduce_channels: int | str | None = "default",
        reduction: str | None = None,
        input_fmt: InputFormat = "NCHW",
        num_prefix_tokens: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_choice("input_fmt", input_fmt, INPUT_FORMATS)
        check_integer("num_prefix_tokens", num_prefix_tokens, 0)
        if num_prefix_tokens and input_fmt != "NLC":
            raise OptionError(f"num_prefix_tokens={num_prefix_tokens} needs input_fmt='NLC', got {input_fmt!r}")
        self.pool_type = pool_type
        self.warned = False  # that there is one position only
        self.in_channels = in_channels
        self.input_fmt = input_fmt
        self.num_prefix_tokens = num_prefix_tokens
        self.channels = reduced_channels(in_channels, reduce_channels, self.default_channels)
        self.out_features = self.channels
        reduced = reduce_channels is not None and (reduce_channels != "default" or self.default_channels is not None)
        channels = self.channels if reduced else None
        self.reduction = self.build_reduction(channels, reduction, device=device, dtype=dtype)

    def build_reduction(self, channels: int | None, reduction: str | None, **factory: Any) -> nn.Module:
        """The reduction to so many channels, by name or by default for the layout; none for ``None``."""
        if channels is not None:
            kind = REDUCTIONS[reduction or self.default_reductions[self.input_fmt in TOKEN_FORMATS]]
            return kind(self.in_channels, channels, **factory)
        if reduction is not None:
            raise OptionError(f"reduction={reduction!r} needs reduce_channels, got None")
        return nn.Identity()

    @property
    def is_exportable(self) -> bool:
        """Whether ONNX can express the pool: it takes no matrix decomposition."""
        return True

    def features(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Features (B, C, M) that ``represent`` takes, for an input in the layout of this pool; zero where masked."""
        return reduced_positions(self.reduction, self.to_maps(x), mask)

    def represent(self, X: Tensor, mask: Tensor | None = None) -> Tensor:
        """Vectors (B, out_features) for features (B, C, M), which are zero where the mask is false."""
        raise NotImplementedError

    def entries(self, X: Tensor, mask: Tensor | None = None) -> Tensor:
        """The vectors before an element-wise last step (signed root, length one), if the pool has one."""
        return self.represent(X) if mask is None else self.represent(X, mask)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if isinstance(x, torch.fx.Proxy):  # what is drawn is the pool, as a leaf
            return x.tracer.create_proxy("call_module", x.tracer.path_of_module(self), (x, mask), {})
        if torch.onnx.is_in_onnx_export() and not self.is_exportable:
            raise ExportError(
                f"the {self.pool_type} pool needs a matrix decomposition, which ONNX does not have; "
                "covpool_plugins.pooling.list_pools(exportable=True) are those that do without"
            )
        X = self.features(x, mask)
        if self.training and self.needs_positions and not self.warned and is_one_position(X):
            self.warned = True
            warnings.warn(ONE_POSITION.format(self.pool_type), stacklevel=2)
        if mask is None:
            return self.represent(X)
        mask = self.mask_of_features(mask)
        return torch.where(mask.any(dim=-1, keepdim=True), self.represent(X, mask), 0.0)

    def in_precision(self, vectors: Tensor, X: Tensor) -> Tensor:
        """The vectors in the precision of the features; in float32 where float16 may not hold them."""
        return vectors.to(torch.float32 if X.dtype == torch.float16 and not self.in_range else X.dtype)

    def mask_of_features(self, mask: Tensor) -> Tensor:
        """The mask of ``features(x, mask)``: that of the input, unless the pool joins samples."""
        return mask

    def to_maps(self, x: Tensor) -> Tensor:
        """View of the input as maps (B, C, H, W); N tokens and D x H x W voxels become N x 1 and DH x W positions."""
        check_floating(x, f"input of the {self.pool_type} pool")
        channels_at = -1 if self.input_fmt in ("NHWC", "NLC") else 1
        if x.ndim != len(self.input_fmt) or x.shape[channels_at] != self.in_channels:
            raise ShapeError(
                f"{self.pool_type} pool: expected {self.input_fmt} with in_channels={self.in_channels}, "
                f"got shape {tuple(x.shape)}"
            )
        # ONNX's older exporter takes no negative axis.
        maps = x if channels_at == 1 else x[:, self.num_prefix_tokens :].movedim(x.ndim - 1, 1)
        maps = maps.unsqueeze(-1) if maps.ndim == 3 else maps.flatten(2, -2)
        if maps.shape[2] == 0 or maps.shape[3] == 0:
            raise ShapeError(f"{self.pool_type} pool: no positions to pool over, got shape {tuple(x.shape)}")
        return maps

    def matrix(self, vectors: Tensor) -> Tensor:
        """The symmetric matrices (..., n, n) that the vectors (..., ``out_features``) hold.

        Raises:
            OptionError: for a pool whose vectors hold no symmetric matrix.
            ShapeError: for vectors of another length.

        Examples:
            >>> pool = create_pool("svdpade", 8)
            >>> pool.matrix(pool(torch.randn(2, 8, 7, 7))).shape
            torch.Size([2, 8, 8])
        """
        raise OptionError(f"{self.pool_type} pool: its vectors hold no symmetric matrices")

    def varying(self, X: Tensor) -> Tensor:
        """Those of the features (B, C, M) whose covariance the pool takes."""
        return X

    @torch.no_grad()
    def spectrum(self, x: Tensor) -> Spectrum:
        """Eigenvalues of the covariance of ``features(x)``, centred as it is in the pool, and what they tell of it.

        The features are those of the mode that the pool is in; running statistics are left as they are.
        """
        X = self.varying(copy.deepcopy(self).features(x))
        values, _ = guarded_eigh(smaller_covariance(X.double(), self.centered))
        return Spectrum.of(values)

    def __prepare_scriptable__(self) -> nn.Module:
        raise ExportError(
            f"torch.jit.script cannot take the {self.pool_type} pool, for TorchScript has no custom gradients; "
            "use torch.jit.trace, torch.export or torch.compile"
        )

    def extra_repr(self) -> str:
        layout = f"{self.pool_type!r}, {self.in_channels} -> {self.out_features}, input_fmt={self.input_fmt!r}"
        prefix = f"num_prefix_tokens={self.num_prefix_tokens}" if self.num_prefix_tokens else ""
        return ", ".join(filter(None, [layout, prefix, super().extra_repr()]))


def widened(X: Tensor) -> Tensor:
    """X in float32 at least."""
    return X.to(working_dtype(X.dtype))


POOLS: Table[Callable[..., Pool]] = Table("pool")


class AveragePool(Pool):
    """Global average pooling: the mean over the positions, C numbers.

    Examples:
        >>> AveragePool(8)(torch.randn(2, 8, 7, 7)).shape
        torch.Size([2, 8])
    """

    shared_options = LAYOUT_OPTIONS

    def __init__(self, in_channels: int, **shared: Any) -> None:
        super().__init__(in_channels, pool_type="gap", **shared)

    def represent(self, X: Tensor, mask: Tensor | None = None) -> Tensor:
        return mean_over_positions(X, mask).squeeze(-1)


def list_pools(exportable: bool = False) -> list[str]:
    """Names that :func:`create_pool` takes.

    Args:
        exportable: only those that export to ONNX as they are by default.

    Examples:
        >>> "svdtopn" in list_pools(), "svdtopn" in list_pools(exportable=True)
        (True, False)
    """
    return [name for name in POOLS if not exportable or create_pool(name, 4, device="meta").is_exportable]


def pool_options(name: str, of_parts: bool = True, method: Any = None) -> list[str]:
    """Names of the options that a pool takes.

    Args:
        name: one of :func:`list_pools`.
        of_parts: those of its parts too, for example of its matrix method; they come first.
        method: the matrix method, where the pool leaves it open.

    Raises:
        UnknownNameError: for a pool or a method that does not exist.

    Examples:
        >>> pool_options("gap")
        ['input_fmt', 'num_prefix_tokens']
        >>> "iterations" in pool_options("isqrt"), "iterations" in pool_options("isqrt", of_parts=False)
        (True, False)
    """
    build: Any = POOLS[name]
    is_class = isinstance(build, type)
    taking: Any = build.keywords.get("normalization") if isinstance(build, partial) else build
    signature = taking.__init__ if isinstance(taking, type) else taking  # type: ignore[misc]
    own: dict[str, Any] = getattr(signature, "__kwdefaults__", None) or {}
    shared = build.shared_options if is_class else COVARIANCE_OPTIONS
    names = [option for option in own if option not in (*shared, "method", "device", "dtype")]
    if not of_parts:
        return [*(names if is_class else ()), *shared]
    default = own.get("method")
    root = SQUARE_ROOTS[name] if name in SQUARE_ROOTS else default and resolve_method(method or default)
    fields = [field.name for field in dataclasses.fields(root)] if root else []
    return [*(["method"] if default else []), *fields, *names, *shared]


def create_pool(
    name: str,
    in_channels: int,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> Pool:
    """Build a pool by name.

    Args:
        name: one of :func:`list_pools`.
        in_channels: channels of the input.
        options: options of the pool (``input_fmt``, ``reduce_channels``, ...) and of its matrix method
            (``iterations``, ...).

    Returns:
        A module: an input of the layout ``input_fmt``, and if need be a mask -> (B, ``out_features``).

    Raises:
        UnknownNameError: for a name that is not in the table.
        OptionError: for an option that the pool does not take.

    Examples:
        >>> pool = create_pool("isqrt", 64, reduce_channels=16, iterations=3)
        >>> pool(torch.randn(2, 64, 7, 7)).shape
        torch.Size([2, 136])
        >>> create_pool("svdpade", 64, input_fmt="NLC", num_prefix_tokens=1)(torch.randn(2, 50, 64)).shape
        torch.Size([2, 2080])
    """
    check_known(f"pool {name!r}", options, pool_options(name, method=options.get("method")))
    return POOLS[name](in_channels, device=device, dtype=dtype, **options)


POOLS.add("gap", AveragePool, About("global average pooling", "-", "for comparison"))
