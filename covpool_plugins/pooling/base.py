"""What all pools share: input layouts, the two halves of a forward pass, the table of names."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from ..checks import check_choice, check_integer, check_known
from ..errors import ExportError, OptionError, ShapeError
from ..linalg import smaller_covariance
from ..linalg.tensors import check_floating, guarded_eigh, working_dtype
from ..tables import Table
from .reduction import REDUCTIONS, reduced_channels

InputFormat = Literal["NCHW", "NHWC", "NLC"]
INPUT_FORMATS: tuple[str, ...] = get_args(InputFormat)


class Spectrum(NamedTuple):
    """Of covariances of C channels at M positions, in float64.

    Attributes:
        eigenvalues: the min(C, M) largest, descending, (B, min(C, M)).
        condition_number: largest over smallest of the eigenvalues that can be told from zero, (B,); infinite for
            zero features.
        effective_rank: exp of the entropy of the eigenvalues as shares of their sum (Roy & Vetterli, 2007), (B,); zero
            for zero features.
        rank: how many eigenvalues can be told from zero, (B,).

    All but the rank are NaN for features that are not finite.
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


class Pool(nn.Module):
    """Feature maps or tokens to one vector per image.

    ``forward(x)`` is ``represent(features(x))``: ``features`` brings any layout to (B, C, M), M positions row by
    row, and reduces the channels; ``represent`` makes the vector. Explanations work on the features in between.

    A subclass passes on by ``**common`` what it does not take itself of the arguments after ``pool_type``, and sets
    ``out_features`` where that is not the number of channels.

    Args:
        in_channels: channels of the input.
        pool_type: the name in the table of pools.
        reduce_channels: channels C after the reduction; ``None`` leaves it out. The default is the class's
            ``default_channels``, or ``in_channels`` where that is less.
        reduction: name of the reduction; by default ``conv-bn-relu`` for maps and ``linear-ln`` for tokens.
        input_fmt: ``NCHW`` (B, C, H, W), ``NHWC`` (B, H, W, C) or ``NLC`` (B, N, C).
        num_prefix_tokens: how many leading tokens (class token, registers) to leave out; ``NLC`` only.

    Attributes:
        channels: after the reduction.
        out_features: length of the vector.

    Raises:
        OptionError: for an option outside its range.

    Examples:
        >>> isinstance(create_pool("svdpade", 64), Pool)
        True
        >>> create_pool("gap", 64).out_features, create_pool("svdpade", 64).out_features
        (64, 2080)
    """

    default_channels: ClassVar[int | None] = None
    default_reductions: ClassVar[tuple[str, str]] = ("conv-bn-relu", "linear-ln")  # for maps, for tokens
    # Keyword parameters that are no options: a row of the table or the caller's own arguments decide them.
    not_options: ClassVar[tuple[str, ...]] = ("pool_type", "device", "dtype")

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
        check_integer("in_channels", in_channels)
        check_choice("input_fmt", input_fmt, INPUT_FORMATS)
        check_integer("num_prefix_tokens", num_prefix_tokens, 0)
        if num_prefix_tokens and input_fmt != "NLC":
            raise OptionError(f"num_prefix_tokens={num_prefix_tokens} needs input_fmt='NLC', got {input_fmt!r}")
        if reduce_channels == "default":
            reduce_channels = self.default_channels and min(self.default_channels, in_channels)
        self.pool_type = pool_type
        self.in_channels = in_channels
        self.input_fmt = input_fmt
        self.num_prefix_tokens = num_prefix_tokens
        self.channels = reduced_channels(in_channels, reduce_channels)
        self.out_features = self.channels
        channels = () if reduce_channels is None else (self.channels,)
        reductions = self.build_reductions(channels, reduction, device=device, dtype=dtype)
        self.reduction: nn.Module = reductions[0] if reductions else nn.Identity()

    def build_reductions(self, channels: tuple[int, ...], reduction: str | None, **factory: Any) -> list[nn.Module]:
        """Reductions to so many channels each, by name or by default for the layout of the input.

        Raises:
            UnknownNameError, OptionError: for a reduction that does not exist, or one without channels.
        """
        if reduction is not None and not channels:
            raise OptionError(f"reduction={reduction!r} needs reduce_channels, got None")
        kind = REDUCTIONS[reduction or self.default_reductions[self.input_fmt == "NLC"]]
        return [kind(self.in_channels, count, **factory) for count in channels]

    @property
    def is_exportable(self) -> bool:
        """Whether ONNX can express the pool: it takes no matrix decomposition."""
        return True

    def features(self, x: Tensor) -> Tensor:
        """Features (B, C, M) that ``represent`` takes, for an input in the layout of this pool."""
        return self.reduction(self.to_maps(x)).flatten(2)

    def represent(self, X: Tensor) -> Tensor:
        """Vectors (B, out_features) for features (B, C, M)."""
        raise NotImplementedError

    def entries(self, X: Tensor) -> Tensor:
        """The vectors before an element-wise last step (signed root, length one), if the pool has one."""
        return self.represent(X)

    def forward(self, x: Tensor) -> Tensor:
        return self.represent(self.features(x))

    def to_maps(self, x: Tensor) -> Tensor:
        """View of the input as maps (B, C, H, W); N tokens become N x 1 positions."""
        check_floating(x, f"input of the {self.pool_type} pool")
        channels_at = -1 if self.input_fmt in ("NHWC", "NLC") else 1
        if x.ndim != len(self.input_fmt) or x.shape[channels_at] != self.in_channels:
            raise ShapeError(
                f"{self.pool_type} pool: expected {self.input_fmt} with in_channels={self.in_channels}, "
                f"got shape {tuple(x.shape)}"
            )
        if self.input_fmt == "NLC":
            maps = x[:, self.num_prefix_tokens :].transpose(1, 2).unsqueeze(-1)
        else:
            maps = x.permute(0, 3, 1, 2) if self.input_fmt == "NHWC" else x
        if maps.shape[2] == 0 or maps.shape[3] == 0:
            raise ShapeError(f"{self.pool_type} pool: no positions to pool over, got shape {tuple(x.shape)}")
        return maps

    @torch.no_grad()
    def spectrum(self, x: Tensor) -> Spectrum:
        """Eigenvalues of the covariance of ``features(x)``, and what they tell of its condition.

        The features are those of the mode that the pool is in; running statistics are left as they are.
        """
        kept = [(module, dict(module._buffers)) for module in self.modules()]
        for module, buffers in kept:  # others, not changed ones: a backward pass may still need them
            module._buffers.update({k: None if v is None else v.clone() for k, v in buffers.items()})
        # In some versions of torch a weight that autocast casts without gradient has none in the forward pass after it.
        cached = torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(False)
        try:
            X = self.features(x)
        finally:
            torch.set_autocast_cache_enabled(cached)
            for module, buffers in kept:
                module._buffers.update(buffers)
        values, _ = guarded_eigh(smaller_covariance(X.double()))
        return Spectrum.of(values)

    def __prepare_scriptable__(self) -> nn.Module:
        raise ExportError(
            f"torch.jit.script cannot take the {self.pool_type} pool, for TorchScript has no custom gradients; "
            "use torch.jit.trace, torch.export or torch.compile"
        )

    def extra_repr(self) -> str:
        return f"{self.pool_type!r}, {self.in_channels} -> {self.out_features}, input_fmt={self.input_fmt!r}"

    @classmethod
    def options(cls) -> list[str]:
        """Names of the options, those included that are passed on to the class above."""
        names: list[str] = []
        for kind in cls.__mro__:
            if "__init__" in vars(kind):
                parameters = inspect.signature(vars(kind)["__init__"]).parameters.values()
                names += [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
                if all(p.kind is not p.VAR_KEYWORD for p in parameters):
                    break
        return [name for name in dict.fromkeys(names) if name not in cls.not_options]

    @classmethod
    def part_options(cls, **decided: Any) -> list[str]:
        """Names of the options of the parts that a row of the table decides on."""
        return []

    @classmethod
    def takes_method(cls, **decided: Any) -> bool:
        """Whether the matrix method is an option, with what a row of the table decides."""
        return False


def widened(X: Tensor) -> Tensor:
    """X in float32 at least."""
    return X.to(working_dtype(X.dtype))


POOLS: Table[Callable[..., Pool]] = Table("pool")


def list_pools(exportable: bool = False) -> list[str]:
    """Names that :func:`create_pool` takes.

    Args:
        exportable: only those that export to ONNX as they are by default.

    Examples:
        >>> "svdtopn" in list_pools(), "svdtopn" in list_pools(exportable=True)
        (True, False)
    """
    return [name for name in POOLS if not exportable or create_pool(name, 4, device="meta").is_exportable]


def pool_classes() -> list[type[Pool]]:
    """The classes that the rows of the table build."""
    return list(dict.fromkeys(_row(name)[0] for name in POOLS))


def _row(name: str) -> tuple[type[Pool], dict[str, Any]]:
    """The class that a row of the table builds, and what the row decides of its arguments."""
    row: Any = POOLS[name]
    if isinstance(row, partial):
        return row.func, dict(row.keywords)  # type: ignore[return-value]
    return row, {}


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
    kind, decided = _row(name)
    if not of_parts:
        return kind.options()
    open_method = kind.takes_method(**decided)
    if open_method and method is not None:
        decided["method"] = method
    return [*(["method"] if open_method else []), *kind.part_options(**decided), *kind.options()]


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
        A module (B, C, H, W), (B, H, W, C) or (B, N, C), as ``input_fmt`` says, -> (B, ``out_features``).

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
