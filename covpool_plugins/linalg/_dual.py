"""Matrices with a tangent: forward-mode arithmetic for the iterative methods.

The derivative of a matrix function at a symmetric matrix is self-adjoint, so the gradient of any matrix iteration
is the iteration itself, run once more on (value, tangent) with the upstream gradient as the tangent. One step
function per method is therefore enough: no stored iterates, and the backward can itself be differentiated.
"""

from __future__ import annotations

from collections.abc import Sequence
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


def polynomials(coefficients: Sequence[Sequence[float]], Z: Matrix, block: int = 3) -> list[Matrix]:
    """Polynomials in Z of one degree, coefficients in ascending order (Paterson-Stockmeyer).

    The powers Z², ..., Z^block are shared; each polynomial then takes one product per further block.
    """
    block = min(block, len(coefficients[0]) - 1)
    powers = [Z]
    for _ in range(block - 1):
        powers.append(product(powers[-1], Z))
    results = []
    for row in coefficients:
        blocks = [list(row[start : start + block]) for start in range(0, len(row), block)]
        result = _add_block(None, blocks.pop(), powers)
        while blocks:
            result = _add_block(product(powers[-1], result), blocks.pop(), powers)
        results.append(result)
    return results


def _add_block(total: Matrix | None, block: Sequence[float], powers: list[Matrix]) -> Matrix:
    """``total`` plus the polynomial of low degree whose coefficients are ``block``."""
    if total is not None:
        return combination(block[0], [1.0, *block[1:]], [total] + powers[: len(block) - 1])  # noqa: RUF005
    if len(block) == 1:
        return combination(block[0], [0.0], powers[:1])
    return combination(block[0], block[1:], powers[: len(block) - 1])


def solve_positive(Q: Matrix, P: Matrix) -> Matrix:
    """Q⁻¹ P for positive definite Q that commutes with P, by one Cholesky factorisation."""
    if isinstance(Q, Dual):
        factor = torch.linalg.cholesky_ex(Q.value)[0]
        value = torch.cholesky_solve(P.value, factor)
        return Dual(value, torch.cholesky_solve(P.tangent - Q.tangent @ value, factor))
    return torch.cholesky_solve(P, torch.linalg.cholesky_ex(Q)[0])


def inverse_positive(Q: Matrix) -> Matrix:
    """Q⁻¹ for positive definite Q."""
    if isinstance(Q, Dual):
        value = inverse_positive(Q.value)
        return Dual(value, -(value @ Q.tangent @ value))
    eye = torch.eye(Q.shape[-1], dtype=Q.dtype, device=Q.device).expand_as(Q)
    return torch.cholesky_solve(eye, torch.linalg.cholesky_ex(Q)[0])
