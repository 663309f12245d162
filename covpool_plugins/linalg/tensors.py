"""What every function of this room does with its tensors: checks, working precision, autocast, poisoned samples."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..checks import check_flag
from ..errors import DtypeError, ShapeError


def check_square(A: Tensor, name: str = "A") -> None:
    """Raise unless ``A`` is a floating point tensor of shape (..., C, C)."""
    check_floating(A, name)
    if A.ndim < 2 or A.shape[-1] != A.shape[-2]:
        raise ShapeError(f"{name} must be square matrices (..., C, C), got shape {tuple(A.shape)}")


def check_features(X: Tensor, centered: bool) -> None:
    """Raise unless ``X`` is a floating point tensor of shape (..., C, M) with C and M positive, ``centered`` a flag."""
    check_floating(X, "X")
    check_flag("centered", centered)
    if X.ndim < 2 or X.shape[-1] == 0 or X.shape[-2] == 0:
        raise ShapeError(f"X must be features (..., C, M) with C and M positive, got shape {tuple(X.shape)}")


def check_floating(A: Tensor, name: str) -> None:
    """Raise unless ``A`` holds real floating point numbers."""
    if not isinstance(A, Tensor):
        raise DtypeError(f"{name} must be a tensor, got {type(A).__name__}")
    if not A.is_floating_point():
        raise DtypeError(f"{name} must be real floating point, got {A.dtype} of shape {tuple(A.shape)}")


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Half precision is computed in float32; float32 and float64 stay."""
    return dtype if dtype == torch.float64 else torch.float32


def autocast_off(device_type: str) -> AbstractContextManager:
    """A context without autocast. Needed in forward *and* backward: backward products are autocast too."""
    return nullcontext() if device_type == "meta" else torch.autocast(device_type, enabled=False)


def exporting() -> bool:
    """Whether a graph is being exported, to ONNX or by ``torch.export``."""
    return torch.onnx.is_in_onnx_export() or torch.compiler.is_exporting()


def transpose(A: Tensor) -> Tensor:
    """Aᵀ for A (..., n, m), by an operation that both ONNX exporters know; ``.mT`` is none."""
    return A.transpose(-2, -1)


def trace(A: Tensor) -> Tensor:
    """The trace of each matrix of A (..., n, n), shape (..., 1, 1)."""
    if torch.onnx.is_in_onnx_export():
        # The older exporter writes a diagonal of float64 matrices that onnxruntime refuses to load.
        return (A * torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)).sum(dim=(-2, -1), keepdim=True)
    return A.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]


def root_of(count: Any) -> Any:
    """√count, for the size of a dimension, which is a tensor of integers while ``torch.jit`` traces."""
    return count.double().sqrt() if isinstance(count, Tensor) else count**0.5


def symmetrize(G: Tensor) -> Tensor:
    """(G + Gᵀ) / 2 for G (..., C, C)."""
    return (G + transpose(G)).mul_(0.5)


def identity_like(A: Tensor) -> Tensor:
    """The identity (n, n) in the dtype and on the device of matrices A (..., n, n)."""
    return torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)


def power_of_two(X: Tensor, multiple: int = 1) -> Tensor:
    """The power of two below the largest entry of each X (..., n, m), shape (..., 1, 1); one for zeros.

    Its exponent is a multiple of ``multiple``. Dividing by it does not round, and keeps products in range; it is a
    constant to the gradient.
    """
    largest = X.detach().abs().amax(dim=(-2, -1), keepdim=True)
    exponent = multiple * torch.floor(torch.log2(torch.where(largest > 0, largest, 1.0)) / multiple)
    return 2.0**exponent


def finite_matrices(A: Tensor) -> Tensor:
    """True for each matrix of A (..., n, n) that holds finite numbers only; shape (..., 1, 1)."""
    # The extremes carry NaN along, and take a tenth of the time of a test of every entry.
    A = A.detach()  # which autograd would keep
    return torch.isfinite(A.amax(dim=(-2, -1), keepdim=True)) & torch.isfinite(A.amin(dim=(-2, -1), keepdim=True))


def null_threshold(eigenvalues: Tensor, dtype: torch.dtype) -> Tensor:
    """The size below which an eigenvalue (..., n) of a matrix given in ``dtype`` cannot be told from zero; (..., 1).

    A few roundings of the largest: those of a singular covariance are about two in size for n = 256, and grow like √n.
    """
    few = max(4.0, eigenvalues.shape[-1] ** 0.5 / 4) * torch.finfo(dtype).eps
    return eigenvalues[..., -1:].clamp_min(0) * few


def guarded_eigh(A: Tensor) -> tuple[Tensor, Tensor]:
    """``torch.linalg.eigh`` in which a matrix with NaN or infinity spoils only itself.

    LAPACK refuses the whole batch for one non-finite matrix. Here such a matrix gets NaN eigenvalues and finite
    vectors. Returns eigenvalues (..., n) in ascending order and eigenvectors (..., n, n) in columns, for symmetric
    matrices A (..., n, n).
    """
    # LAPACK wants columns in a row, which is what the transpose of a row-major matrix is.
    if _known_finite(A):
        return torch.linalg.eigh(A.mT)
    values, vectors = torch.linalg.eigh(torch.nan_to_num(A, 0.0, 0.0, 0.0).mT)
    return torch.where(finite_matrices(A).squeeze(-1), values, torch.nan), vectors


def _known_finite(A: Tensor) -> bool:
    """Whether A is found finite by its sum; not asked where that would wait for a GPU or be traced."""
    if type(A) is not Tensor or A.device.type != "cpu" or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return not is_transformed() and math.isfinite(A.sum().item())


class Function(torch.autograd.Function):
    """A function of this package: it keeps its inputs, and its backward gets them by :func:`kept`.

    For forward mode, it has a method ``tangent`` with the arguments of ``jvp``, which Dynamo does not take. An outer
    forward mode does not see its operations, so that it is refused; ``twice_forward`` says that it has them all.
    """

    generate_vmap_rule = True
    twice_forward = False

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        keep(ctx, *inputs)


def keep(ctx: Any, *inputs: Any) -> None:
    """Keep tensors and, behind them, other inputs for ``backward`` and for ``tangent``."""
    tensors = [x for x in inputs if isinstance(x, Tensor)]
    ctx.others = inputs[len(tensors) :]
    ctx.save_for_backward(*tensors)
    if not torch.compiler.is_compiling():
        ctx.save_for_forward(*tensors)


def kept(ctx: Any) -> tuple:
    """What :func:`keep` got."""
    return (*ctx.saved_tensors, *ctx.others)


class _NoContext:
    """Stands for the context of a function whose backward will never run."""

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        pass

    mark_non_differentiable = save_for_backward


def apply(function: Any, *inputs: Any) -> Any:
    """``function.apply(*inputs)``, as plain tensor operations where nobody will ask for its gradient.

    That is where no gradient is recorded and no transform of ``torch.func`` is at work, and while ``torch.jit`` traces:
    such a graph can be saved, and whatever counts or replaces operations finds them.
    """
    if torch.compiler.is_compiling():  # Dynamo sees into the function anyway.
        return function.apply(*inputs)
    if is_plain(*inputs):
        return function.forward(*([] if issubclass(function, Function) else [_NoContext()]), *inputs)
    if not issubclass(function, Function):  # one with its context in ``forward``
        return function.apply(*inputs)
    if not is_transformed():
        return _with_context(function).apply(*inputs)
    if _is_forward_over_forward() and not function.twice_forward:
        raise RuntimeError(
            f"{function.__name__} has no forward derivative of a forward derivative, which PyTorch would take for "
            "zero; torch.func.hessian, forward over reverse, has it"
        )
    return _with_forward_mode(function).apply(*inputs)


def is_plain(*inputs: Any) -> bool:
    """Whether nobody will ask for a derivative along the inputs, or ``torch.jit`` traces."""
    recorded = torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in inputs)
    return torch.jit.is_tracing() or not (recorded or is_transformed())


def is_transformed() -> bool:
    """Whether a transform of ``torch.func`` or forward mode is at work."""
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


def unwrapped(A: Tensor) -> Tensor | None:
    """A as it was given to the transforms of ``torch.func`` that are at work; ``None`` where vmap maps over it."""
    if torch.compiler.is_compiling():
        return A
    while torch._C._functorch.is_functorch_wrapped_tensor(A):
        if torch._C._functorch.is_batchedtensor(A):
            return None
        A = torch._C._functorch.get_unwrapped(A)
    return A


def _is_forward_over_forward() -> bool:
    stack = torch._C._functorch.get_interpreter_stack() or []
    return sum(level.key() == torch._C._functorch.TransformType.Jvp for level in stack) > 1


@cache
def _with_forward_mode(function: Any) -> Any:
    return type(function.__name__, (function,), {"jvp": staticmethod(function.tangent)})


@cache
def _with_context(function: Any) -> Any:
    """The function with its context in ``forward``: PyTorch takes 60 us more to call one with ``setup_context``."""

    def forward(ctx: Any, *inputs: Any) -> Any:
        output = function.forward(*inputs)
        function.setup_context(ctx, inputs, output)
        return output

    methods = {"forward": forward, "setup_context": torch.autograd.Function.setup_context}
    return type(function.__name__, (function,), {name: staticmethod(method) for name, method in methods.items()})


class FirstDerivativeOnly(Function):
    """Passes a gradient on and refuses, when it is differentiated, to leave out that it depends on ``sources``."""

    @staticmethod
    def forward(gradient: Tensor, method: object, *sources: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.method = inputs[1]

    @staticmethod
    def backward(ctx: Any, H: Tensor) -> Any:
        raise no_further_derivative(ctx.method)

    @staticmethod
    def tangent(ctx: Any, along_gradient: Tensor, *_: Any) -> Any:
        raise no_further_derivative(ctx.method)


def no_further_derivative(method: object) -> RuntimeError:
    """For the backward of a gradient that has none; ``method`` is a text where no other one would do."""
    hint = "" if isinstance(method, str) else "; 'exact' has a second one"
    if hasattr(method, "gradient"):
        hint = "; 'exact' and gradient='exact' have a second one"
    return RuntimeError(f"{method} has no further derivative{hint}")


def first_derivative_only(gradient: Tensor, method: object, *sources: Tensor) -> Tensor:
    """``gradient``, guarded against being differentiated when a graph of it is being recorded."""
    return apply(FirstDerivativeOnly, gradient, method, *sources) if torch.is_grad_enabled() else gradient


class Product(Function):
    """A B without autocast, in the backward pass too, which may run where autocast is on."""

    @staticmethod
    def forward(A: Tensor, B: Tensor) -> Tensor:
        with autocast_off(A.device.type):
            return A @ B

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> tuple[Tensor | None, Tensor | None]:
        A, B = kept(ctx)
        of_A, of_B = ctx.needs_input_grad
        return product(G, transpose(B)) if of_A else None, product(transpose(A), G) if of_B else None

    @staticmethod
    def tangent(ctx: Any, along_A: Tensor | None, along_B: Tensor | None) -> Tensor:
        A, B = kept(ctx)
        total = A.new_zeros(()) if along_B is None else product(A, along_B)
        return total if along_A is None else product(along_A, B) + total


def product(A: Tensor, B: Tensor) -> Tensor:
    """A B for A (..., n, m) and B (..., m, k) with the same leading dimensions, never in a lower precision."""
    return apply(Product, A, B)
