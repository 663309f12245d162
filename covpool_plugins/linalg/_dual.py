"""Matrices with a tangent: forward-mode arithmetic for the iterative methods.

The derivative of a matrix function at a symmetric matrix is self-adjoint, so the gradient of any matrix iteration
is the iteration itself, run once more on (value, tangent) with the upstream gradient as the tangent. One step
function per method is therefore enough: no stored iterates, and the backward can itself be differentiated.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import torch
from torch import Tensor


class Dual(NamedTuple):
    """A matrix (..., n, n) and a direction in which it moves."""

    value: Tensor
    tangent: Tensor


Matrix = TypeVar("Matrix", Tensor, Dual)


def product(left: Matrix, right: Matrix) -> Matrix:
    """Matrix product."""
    if isinstance(left, Dual):
        return Dual(left.value @ right.value, left.tangent @ right.value + left.value @ right.tangent)
    return left @ right


def affine(matrix: Matrix, identity: float, factor: float) -> Matrix:
    """``identity * I + factor * matrix``."""
    if isinstance(matrix, Dual):
        return Dual(affine(matrix.value, identity, factor), factor * matrix.tangent)
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    return torch.add(factor * matrix, eye, alpha=identity)
