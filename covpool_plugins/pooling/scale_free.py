"""Functions of the covariance whose size does not grow with that of the features: inverses and MaxExp."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import check_integer, check_number
from ..linalg import covariance, inv_sqrtm, smaller_covariance
from ..linalg.covariance import fewer_positions
from ..linalg.tensors import identity_like, power_of_two, product, symmetrize, trace, transpose
from ..tables import About
from .covariance_pool import Normalization, add_normalization
from .positions import counted

SMALLEST = 2.0**-80
INVERSE_STEPS = 7
# J: everywhere, and besides on the diagonal, where the released code draws from [0, 1e-9] in every call.
JITTER, DIAGONAL_JITTER = 1e-10, 0.5e-9


class Precision(Normalization):
    """(A + J)⁻¹, the precision matrix, by Newton-Schulz steps; J is a fixed jitter of 1e-10 to 1e-9.

    A zero covariance gives zeros; in the released code the inverse of the jitter, 1e9.

    Args:
        iterations: steps; with k of them no eigenvalue of the result exceeds 1.5^(2k) / tr A, by default 292 / tr A.

    Source: baseline of Rahman, Koniusz, Wang, Zhou, Moghadam & Sun, "Learning Partial Correlation Based Deep Visual
    Representation for Image Classification", CVPR 2023, as in the authors' code.

    Examples:
        >>> x = torch.tensor([[1.0, 1.0, -1.0, -1.0], [2.0, -2.0, 2.0, -2.0]]).view(1, 2, 2, 2)  # variances 1 and 4
        >>> pool = create_pool("precision", 2, reduce_channels=None)
        >>> pool.matrix(pool(x)).diagonal(dim1=-2, dim2=-1)
        tensor([[1.0000, 0.2500]])
    """

    in_range = False
    products_only = True
    needs_float64 = False
    size_power = 2
    shown = ("iterations",)

    def __init__(self, *, iterations: int = INVERSE_STEPS) -> None:
        super().__init__()
        check_integer("precision: iterations", iterations)
        self.iterations = iterations

    def of_features(self, X: Tensor, centered: bool) -> Tensor:
        unit = power_of_two(X).clamp_min(1)  # (unit² A + J)⁻¹ in numbers that stay in range
        A = covariance(X / unit, centered)
        zero = is_zero_covariance(A)
        found = inverse(torch.where(zero, identity_like(A), A + jitter(A) / unit / unit), self.iterations)
        return torch.where(zero, 0.0, found / unit / unit)


class SparseInverse(Normalization):
    """Sparse inverse covariance Λ / √(tr Λ), by proximal gradient steps from the inverse Λ = A⁻¹ of A = Σ / tr Σ.

    For i = 0 ... n - 2, with G = A - Λ⁻¹ and η = step_size · (1 - i / (n - 1)):

        Λ <- relu(relu(Λ) - η (G + sparsity)) - relu(relu(-Λ) - η (sparsity - G)),    Λ <- (Λ + Λᵀ) / 2.

    The released code takes the n-th step too, whose η is zero. Both inverses are seven Newton-Schulz steps of the
    matrix plus a jitter, see :class:`Precision`; on 256 channels it is their bound of the eigenvalues, 292, that
    regularises most. The result does not change with the scale of the features; a zero covariance gives zeros.

    Args:
        iterations: n, at least two.
        step_size: of the first step.
        sparsity: the weight of ‖Λ‖₁; 0.01 makes 1 to 7 % of the entries zero, 0.1 about half.

    Source: iSICE: Rahman, Koniusz, Wang, Zhou, Moghadam & Sun, "Learning Partial Correlation Based Deep Visual
    Representation for Image Classification", CVPR 2023; the formulas are those of the authors' code.

    Examples:
        >>> create_pool("isice", 8, reduce_channels=None, sparsity=0.1)(torch.randn(2, 8, 7, 7)).shape
        torch.Size([2, 36])
    """

    products_only = True
    needs_float64 = False
    size_power = 1
    shown = ("iterations", "step_size", "sparsity")

    def __init__(self, *, iterations: int = 5, step_size: float = 5.0, sparsity: float = 0.01) -> None:
        super().__init__()
        check_integer("isice: iterations", iterations, 2)
        check_number("isice: step_size", step_size, "(0, inf)")
        check_number("isice: sparsity", sparsity, "[0, inf)")
        self.iterations = iterations
        self.step_size = float(step_size)
        self.sparsity = float(sparsity)

    def of_features(self, X: Tensor, centered: bool) -> Tensor:
        S = covariance(of_unit_size(X), centered)
        zero = is_zero_covariance(S)
        A = torch.where(zero, identity_like(S), S)
        A = A / trace(A)
        L = inverse(A + jitter(A), INVERSE_STEPS)
        for i in range(self.iterations - 1):
            G = A - inverse(L + jitter(A), INVERSE_STEPS)
            step = self.step_size * (1 - i / (self.iterations - 1))
            positive = (L.relu() - step * (G + self.sparsity)).relu()
            negative = ((-L).relu() - step * (self.sparsity - G)).relu()
            L = symmetrize(positive - negative)
        return torch.where(zero, 0.0, L / trace(L).sqrt())


def inverse(A: Tensor, iterations: int) -> Tensor:
    """A⁻¹ as the square of its inverse root, by so many Newton-Schulz steps on A over its trace."""
    root = inv_sqrtm(A, "newton_schulz", scaling="trace", iterations=iterations)
    return product(root, transpose(root))  # one tensor twice is more than Dynamo takes


def jitter(A: Tensor) -> Tensor:
    """J, for matrices like A (..., C, C)."""
    return JITTER + DIAGONAL_JITTER * identity_like(A)


def is_zero_covariance(A: Tensor) -> Tensor:
    """True for each covariance (..., C, C) of constant features; shape (..., 1, 1)."""
    return trace(A.detach()) <= 0


class MaxExp(Normalization):
    """I - (I - A / tr A)^η: eigenvalues λ become 1 - (1 - λ / Σ λ)^η, the chance to meet a feature in η draws.

    With B = A / tr A this is B S for the geometric series S = Σ_{k<η} (I - B)^k, which takes about 2 log₂ η products of
    the smaller of covariance and Gram matrix, and cancels nothing where an eigenvalue is zero. The result does not
    change with the scale of the features; a zero covariance gives zeros.

    Args:
        eta: η, a positive integer; one gives A / tr A. The default is a choice of this project.

    Source: Koniusz & Zhang, "Power Normalizations in Fine-Grained Image, Few-Shot Image and Graph Classification",
    T-PAMI 2021.

    Examples:
        >>> MaxExp(eta=2)(torch.tensor([[[1.0, -1.0], [0.0, 0.0]]]), True, "mixed", "triu")
        tensor([[1., 0., 0.]])
    """

    products_only = True
    size_power = 1
    shown = ("eta",)

    def __init__(self, *, eta: int = 20) -> None:
        super().__init__()
        check_integer("maxexp: eta", eta)
        self.eta = eta

    def of_features(self, X: Tensor, centered: bool) -> Tensor:
        Y = counted(of_unit_size(X), None, centered)
        few = fewer_positions(X)
        A = smaller_covariance(Y, centered=False) if few else covariance(Y, centered=False)
        total = trace(A)
        total = torch.where(total > 0, total, torch.ones_like(total)) + 0 * total  # NaN stays NaN
        B = A / total
        S = geometric_series(B, self.eta)
        if not few:
            return product(B, S)
        return product(product(Y / (total * X.shape[-1]), S), transpose(Y))


def geometric_series(B: Tensor, count: int) -> Tensor:
    """Σ_{k<count} (I - B)^k for B (..., n, n), by doubling: S_2k = S_k + (I - B)^k S_k."""
    eye = identity_like(B)
    total, power = eye.expand_as(B), eye - B  # of one term; (I - B)^1
    for bit in f"{count:b}"[1:]:
        total, power = total + product(power, total), product(power, transpose(power))
        if bit == "1":
            total, power = total + power, power - product(power, B)
    return total


def of_unit_size(X: Tensor) -> Tensor:
    """Features (B, C, M) over a power of two near their largest entry, for vectors that do not depend on their size.

    Zeros, without gradient, for features below 1e-24: the gradient of such a vector, of degree -1 in the features,
    would leave the range of float32.
    """
    unit = power_of_two(X)
    return torch.where(unit > SMALLEST, X / unit, 0.0)


add_normalization(
    "precision",
    Precision,
    About("inverse of the covariance, by 7 Newton-Schulz steps", "exact for these steps", "CVPR 2023"),
)
add_normalization(
    "isice",
    SparseInverse,
    About("sparse inverse of the covariance, by 4 proximal steps", "exact for these steps", "CVPR 2023"),
)
add_normalization(
    "maxexp",
    MaxExp,
    About("I - (I - A / tr A)^η of the covariance A, η = 20", "exact", "T-PAMI 2021"),
)
