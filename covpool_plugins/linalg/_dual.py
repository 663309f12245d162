"""Matrices with a tangent: forward-mode arithmetic for the iterative methods.

The derivative of a matrix function at a symmetric matrix is self-adjoint, so the gradient of any matrix iteration
is the iteration itself, run once more on (value, tangent) with the upstream gradient as the tangent. One step
function per method is therefore enough: no stored iterates, and the backward can itself be differentiated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

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
    return combination(identity, [factor], [matrix])


def combination(identity: float, factors: Sequence[float], matrices: Sequence[Matrix]) -> Matrix:
    """``identity * I`` plus the sum of ``factor * matrix``."""
    first = matrices[0]
    if isinstance(first, Dual):
        values = combination(identity, factors, [m.value for m in matrices])
        tangent = factors[0] * first.tangent
        for factor, matrix in zip(factors[1:], matrices[1:], strict=True):
            tangent = torch.add(tangent, matrix.tangent, alpha=factor)
        return Dual(values, tangent)
    eye = torch.eye(first.shape[-1], dtype=first.dtype, device=first.device)
    total = torch.add(factors[0] * first, eye, alpha=identity)
    for factor, matrix in zip(factors[1:], matrices[1:], strict=True):
        total = torch.add(total, matrix, alpha=factor)
    return total


def polynomial(row: Sequence[float], Z: Any, block: int = 3) -> Any:
    """The polynomial in Z with these coefficients, in ascending order (Paterson-Stockmeyer).

    After the powers Z², ..., Z^block it takes one product for each further block; the top block goes up to Z^block
    itself, which is there already.
    """
    block = min(block, len(row) - 1)
    powers = [Z]
    for _ in range(block - 1):
        powers.append(product(powers[-1], Z))
    top = max(0, (len(row) - 2) // block * block)
    result = combination(row[top], row[top + 1 :], powers[: len(row) - 1 - top])
    for start in range(top - block, -1, -block):
        terms = [product(powers[-1], result), *powers[:-1]]
        result = combination(row[start], [1.0, *row[start + 1 : start + block]], terms)
    return result


def inverse_positive(Q: Matrix) -> Matrix:
    """Q⁻¹ for positive definite Q."""
    if isinstance(Q, Dual):
        value = inverse_positive(Q.value)
        return Dual(value, -(value @ Q.tangent @ value))
    eye = torch.eye(Q.shape[-1], dtype=Q.dtype, device=Q.device).expand_as(Q)
    return torch.cholesky_solve(eye, torch.linalg.cholesky_ex(Q)[0])
