"""Statistics of channel groups and a linear map per group, over all groups at once.

In training a layer is three steps: :class:`GroupStatistics` gives the mean μ and the covariance Σ of each group; a
matrix W is computed from Σ, which is small; :class:`GroupedMap` gives γ W (x - μ) + β. Together they take two products
with the features forward and three backward, and keep nothing but the features. Evaluation is :func:`mapped`.

The functions have no ``setup_context``, which would make each call take longer than some of the products.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..linalg.tensors import (
    autocast_off,
    first_derivative_only,
    product,
    symmetrize,
    working_dtype,
)

# With fewer positions, one product over all samples is faster than one for each image, for all the copying it takes.
FEW_POSITIONS = 32
# Where the channels of a sample lie side by side, narrower groups are copied: their products take longer than that.
WIDTH = 16
# Features are squared in this unit: squares of 1e18 leave the range of float32, and their sum before.
UNIT = 64.0
# Numbers that are centred at a time on a CPU: they stay in its cache, and no memory is taken for all features.
AT_A_TIME = 1 << 17


def wide_dtype(device: torch.device) -> torch.dtype:
    """The precision of sums and of small matrices; Apple's GPUs have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def synchronized_group(sync: bool) -> dist.ProcessGroup | None:
    """The process group over which statistics are reduced; ``None`` for one process."""
    if not (sync and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return None
    return dist.group.WORLD


class GroupStatistics(torch.autograd.Function):
    """The features by groups, and the mean and the covariance they have over batch, positions and processes.

    Args:
        x: features (B, C, ...) of any floating point type.
        groups: G, into which the C = G d channels are divided.
        process_group: over whose processes to sum; ``None`` for this one alone.

    Returns:
        Features (K, G, d, M), see :func:`to_groups`, in float32 or float64; mean (G, d, 1) and covariance (G, d, d) in
        float64; the factor that makes the covariance unbiased (one for a single sample), as a 0-dimensional tensor.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, groups: int, process_group: dist.ProcessGroup | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        with autocast_off(x.device.type):
            wide, work, C = wide_dtype(x.device), working_dtype(x.dtype), x.shape[1]
            # In two stages: a sum in another precision would convert all features first.
            total = as_features(x).sum(2, dtype=work).sum(0, dtype=wide)
            count = torch.full((1,), x.numel() / C, dtype=wide, device=x.device)
            if process_group is not None:
                message = torch.cat([total, count])
                dist.all_reduce(message, group=process_group)
                total, count = message.split([C, 1])
            mean = (total / count).view(groups, -1, 1)
            features = to_groups(x, groups, work)
            covariance = centred_products(features, mean.to(work), wide)
            if process_group is not None:
                dist.all_reduce(covariance, group=process_group)
            count = count.view(()).clone()
            unbiased = count / (count - 1).clamp_min(1)
        ctx.process_group, ctx.like = process_group, like(x)
        ctx.mark_non_differentiable(unbiased)
        ctx.save_for_backward(features, mean, count)
        return features, mean, covariance / count, unbiased

    @staticmethod
    def backward(ctx: Any, grad: Tensor, along_mean: Tensor, along_covariance: Tensor, _: Tensor) -> tuple:
        features, mean, count = ctx.saved_tensors
        with autocast_off(grad.device.type):
            if ctx.process_group is not None:
                message = torch.cat([along_covariance, along_mean], dim=2)
                dist.all_reduce(message, group=ctx.process_group)
                along_covariance, along_mean = message.split([message.shape[1], 1], dim=2)
            factor = symmetrize(along_covariance) * (2 / count)
            shift = (along_mean / count - factor @ mean).to(grad.dtype)
            factor = repeated((factor * UNIT).to(grad.dtype), features)
            if torch.is_grad_enabled():
                grad = torch.baddbmm(flat(grad), factor, flat(features), alpha=1 / UNIT).view(grad.shape) + shift
                sources = (features, mean, along_covariance, along_mean)
                grad = first_derivative_only(grad, "synchronised statistics", *sources) if ctx.process_group else grad
            else:  # in place: it comes from GroupedMap, and nobody else has it
                grad = grad if by_rows(grad) else grad.contiguous()
                flat(grad).baddbmm_(factor, flat(features), alpha=1 / UNIT)
                grad.add_(shift)
            return to_features(grad, *ctx.like), None, None


class GroupedMap(torch.autograd.Function):
    """γ W (x - μ) + β for features (K, G, d, M), and the rest as :func:`affine_map` takes it.

    The result has the (shape, dtype, memory format) ``like``.
    """

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, W: Tensor, mean: Tensor, weight: Tensor | None, bias: Tensor | None, like: tuple
    ) -> Tensor:
        ctx.save_for_backward(features, W, mean, weight)
        ctx.bias_dtype = None if bias is None else bias.dtype
        with autocast_off(features.device.type):
            A, b = affine_map(W, mean, weight, bias, features.dtype)
            if by_rows(features) and not torch.jit.is_tracing():
                shape, dtype, memory_format = like
                y = torch.empty(shape, dtype=features.dtype, device=features.device, memory_format=memory_format)
                torch.baddbmm(b, A, flat(features), out=flat(to_groups(y, A.shape[0], y.dtype)))
                return y.to(dtype)
            y = torch.baddbmm(repeated(b, features), repeated(A, features), flat(features)).view(features.shape)
            return to_features(y, *like)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        features, W, mean, weight = ctx.saved_tensors
        along_features = along_W = along_mean = along_weight = along_bias = None
        with autocast_off(grad.device.type):
            gamma = None if weight is None else weight.view(mean.shape).to(W.dtype)
            G = to_groups(grad, W.shape[0], features.dtype, parts=features.shape[0])
            if ctx.needs_input_grad[0]:
                in_place = by_rows(features) and not torch.is_grad_enabled()
                out = flat(torch.empty_like(features)) if in_place else None
                A = (W if gamma is None else gamma * W).to(features.dtype)
                along_features = torch.bmm(repeated(A.transpose(1, 2), features), flat(G), out=out)
                along_features = along_features.view(features.shape)
            if any(ctx.needs_input_grad[1:5]):
                shift = G.sum(dim=(0, 3)).unsqueeze(-1).to(W.dtype)
                along_A = torch.baddbmm(products(G, features).to(W.dtype), shift, mean.transpose(1, 2), alpha=-1)
                along_W = along_A if gamma is None else gamma * along_A
                along_mean = -torch.bmm(W.transpose(1, 2), shift if gamma is None else gamma * shift)
                along_weight = None if weight is None else (along_A * W).sum(-1).flatten().to(weight.dtype)
                along_bias = None if ctx.bias_dtype is None else shift.flatten().to(ctx.bias_dtype)
        return along_features, along_W, along_mean, along_weight, along_bias, None


def affine_map(
    W: Tensor, mean: Tensor, weight: Tensor | None, bias: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """γ W and β - γ W μ in a lower precision, for W (G, d, d), μ (G, d, 1), and γ, β (C,) or ``None`` for one and zero.

    No matrix product, which autocast would take for its own in a backward pass.
    """
    A = W if weight is None else W * weight.view(mean.shape)
    A = A.to(dtype)
    b = -(A.to(mean.dtype) * mean.transpose(1, 2)).sum(-1, keepdim=True)
    return A, (b if bias is None else bias.view(b.shape) + b).to(dtype)


def mapped(x: Tensor, W: Tensor, mean: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """γ W (x - μ) + β for features (B, C, ...), by operations that all transforms, tracers and exporters know.

    Args:
        x: features of any floating point type.
        W, mean: matrices (G, d, d) and means (G, d, 1) in float64.
        weight, bias: γ and β (C,), or ``None`` for one and zero.
    """
    with autocast_off(x.device.type):
        dtype = working_dtype(x.dtype)
        A, b = affine_map(W, mean, weight, bias, dtype)
        # Vectors are positions of one image.
        features, batch = (x.flatten(2), x.shape[0]) if x.ndim > 2 else (x.transpose(0, 1).unsqueeze(0), 1)
        X = features.to(dtype).unflatten(1, (W.shape[0], -1))
        A, b = A.expand(batch, -1, -1, -1), b.expand(batch, -1, -1, -1)
        if torch.is_grad_enabled() or torch.jit.is_tracing():
            y = (product(A, X) + b).flatten(1, 2)
        else:  # in one pass
            y = torch.baddbmm(flat(b), flat(A), flat(X)).view(X.shape).flatten(1, 2)
        y = y.view(x.shape) if x.ndim > 2 else y.squeeze(0).transpose(0, 1)
        return y.to(x.dtype).contiguous(memory_format=like(x)[2])


def like(x: Tensor) -> tuple[torch.Size, torch.dtype, torch.memory_format]:
    """Shape, dtype and memory format; channels last where x is that and not also contiguous."""
    memory_format = torch.contiguous_format
    # Under vmap a tensor does not know its layout.
    if x.ndim in (4, 5) and not x.is_contiguous() and not torch._C._are_functorch_transforms_active():
        last = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
        if x.is_contiguous(memory_format=last):
            memory_format = last
    return x.shape, x.dtype, memory_format


def as_features(x: Tensor) -> Tensor:
    """(B, C, ...) as (B, C, M)."""
    return x.flatten(2) if x.ndim > 2 else x.unsqueeze(-1)


def to_groups(x: Tensor, groups: int, dtype: torch.dtype, parts: int | None = None) -> Tensor:
    """Features (B, C, ...) as (K, G, d, M), without copying them where that is possible.

    K is the batch and M the positions where the features lie so, and the positions are enough for a product; otherwise
    K is one and M all samples. Or K is the number of ``parts``. In memory order, but for channels that are last:
    wide groups of these stay so on a CPU, see :func:`by_rows`.
    """
    features = as_features(x)
    B, C, M = features.shape
    by_batch = parts == B if parts is not None else features.is_contiguous() and M >= FEW_POSITIONS
    last = like(x)[2] != torch.contiguous_format and parts in (None, 1) and C // groups >= WIDTH
    if last and x.device.type == "cpu" and not torch.compiler.is_compiling():
        return features.to(dtype).transpose(0, 1).reshape(1, groups, C // groups, B * M)
    if by_batch:
        return features.to(dtype).contiguous().view(B, groups, C // groups, M)
    return features.transpose(0, 1).to(dtype).contiguous().view(1, groups, C // groups, B * M)


def to_features(X: Tensor, shape: torch.Size, dtype: torch.dtype, memory_format: torch.memory_format) -> Tensor:
    """The reverse: (K, G, d, M) as features (B, C, ...) of that kind."""
    if by_rows(X):
        return X.view(shape[1], shape[0], *shape[2:]).transpose(0, 1).to(dtype).contiguous(memory_format=memory_format)
    if X.shape[0] == shape[0]:
        # Not a view for autograd: activations in place follow, which a custom function's view forbids.
        return torch.ops.aten._unsafe_view(X, shape).to(dtype).contiguous(memory_format=memory_format)
    result = torch.empty(shape, dtype=dtype, device=X.device, memory_format=memory_format)
    return result.copy_(X.reshape(shape[1], shape[0], *shape[2:]).transpose(0, 1))


def by_rows(X: Tensor) -> bool:
    """Whether features (1, G, d, M) lie with the channels of a sample side by side."""
    return X.shape[0] == 1 and not X.is_contiguous() and X.permute(0, 3, 1, 2).is_contiguous()


def flat(X: Tensor) -> Tensor:
    """(K, G, d, M) as a batch of matrices (K G, d, M)."""
    return X.flatten(0, 1)


def repeated(A: Tensor, like: Tensor) -> Tensor:
    """Matrices (G, d, m) for each of the K parts of features, (K G, d, m)."""
    return A if like.shape[0] == 1 else A.expand(like.shape[0], *A.shape).flatten(0, 1)


def products(X: Tensor, Y: Tensor) -> Tensor:
    """X Yᵀ (G, d, d), summed over the K parts of features."""
    parts = torch.bmm(flat(X), flat(Y).transpose(1, 2)).view(X.shape[0], X.shape[1], X.shape[2], X.shape[2])
    return parts[0] if X.shape[0] == 1 else parts.sum(0)


def centred_products(X: Tensor, mean: Tensor, dtype: torch.dtype) -> Tensor:
    """(X - μ) (X - μ)ᵀ (G, d, d) in ``dtype`` for features (K, G, d, M), a part after the other on a CPU."""
    whole = X.device.type != "cpu" or torch.compiler.is_compiling() or X.numel() <= AT_A_TIME
    axis = 0 if X.shape[0] > 1 else 3
    total: Tensor | None = None
    for part in (X,) if whole else X.split(max(1, AT_A_TIME * X.shape[axis] // X.numel()), dim=axis):
        centred = (part - mean).mul_(1 / UNIT)
        of_part = products(centred, centred).to(dtype)
        total = of_part if total is None else total + of_part
    assert total is not None
    return total * UNIT**2
