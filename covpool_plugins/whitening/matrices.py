"""From the covariance of each group to the matrix that whitens it, or projects on its leading eigenvectors.

===================  =========================================  =======================  ============
method               forward                                    backward                 source
===================  =========================================  =======================  ============
``exact``            eigh                                       exact                    BMVC 2017
``svdpi``            eigh                                       power iteration          NeurIPS 2019
``power_iteration``  19 power iterations per vector, deflation  that of the steps taken  NeurIPS 2019
``newton_schulz``    5 steps, trace scaling (IterNorm)          that of the steps taken  CVPR 2019
``mpa``              Padé approximant, degree 5                 iterative Lyapunov       ICLR 2022
``mtp``              Taylor polynomial, degree 10               iterative Lyapunov       ICLR 2022
===================  =========================================  =======================  ============

The last four approximate the inverse root (Σ + eps I)^(-1/2): the output's covariance is not quite the identity, and
the further from it the worse Σ is conditioned; ``layer.whitening_error(x)`` tells how far.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..checks import check_integer
from ..errors import OptionError, UnknownNameError
from ..linalg import MPA, MTP, IterativeMethod, Method, NewtonSchulz
from ..linalg.eigenbasis import compose, spectral_function
from ..linalg.methods.base import option
from ..linalg.square_root import root_of_symmetric
from ..linalg.tensors import autocast_off, guarded_eigh, symmetrize
from ..tables import Table
from .leading import Leading

RELEASED = "_released"  # how names of methods end that are for compatibility only
ROUNDING = 1e-6  # of the largest eigenvalue: what power iterations leave of a null space


@dataclass(frozen=True)
class EigenvectorMethod(Method):
    """A method that has the eigenvectors, so that only the leading ones can be kept.

    ``unbiased`` says whether PCA divides by the unbiased variance in training, as released code does.
    """

    unbiased: ClassVar[bool] = False

    def apply(self, covariance: Tensor, function: Leading) -> Tensor:
        """f(Σ) for covariances (..., d, d), symmetric up to rounding."""
        raise NotImplementedError


@dataclass(frozen=True)
class Decomposition(EigenvectorMethod):
    """eigh, with the exact gradient or, for a number of ``iterations``, that of the power iteration."""

    iterations: int | None = option(None, check_integer, 1)

    def apply(self, covariance: Tensor, function: Leading) -> Tensor:
        if self.iterations is not None:
            function = replace(function, iterations=self.iterations)
        return spectral_function(covariance, function)


@dataclass(frozen=True)
class PowerIteration(EigenvectorMethod):
    """Power iterations, so many for one eigenvector after the other, each on what its predecessors have left.

    For comparison: eigenvectors of close eigenvalues do not converge, every error adds to those that follow. Those of
    eigenvalues that cannot be told from zero are left out.

    Source: Wang et al., "Backpropagation-Friendly Eigendecomposition", NeurIPS 2019, section 3.
    """

    iterations: int = option(19, check_integer, 1)

    def starts(self, A: Tensor) -> Tensor:
        """Starting vectors in the columns of (..., d, d); always the same."""
        d = A.shape[-1]
        numbers = torch.arange(1, d * d + 1, device=A.device, dtype=A.dtype)
        return (numbers.square() * 0.7).sin().view(d, d).expand_as(A)

    def apply(self, covariance: Tensor, function: Leading) -> Tensor:
        with autocast_off(covariance.device.type):
            eye = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
            values, vectors = self.eigenvectors(symmetrize(covariance) + function.eps * eye)
            # The function takes ascending eigenvalues; these descend where the iterations converged.
            values = values.flip(-1) - function.eps
            null = values <= ROUNDING * values[..., -1:]
            f = torch.where(null, 0.0, function.values(torch.where(null, 0.0, values))).flip(-1)
            return (vectors * f.unsqueeze(-2)) @ vectors.transpose(-2, -1)

    def eigenvectors(self, A: Tensor) -> tuple[Tensor, Tensor]:
        """Eigenvalues (..., d) and vectors in columns (..., d, d), as they are found."""
        values, vectors = [], []
        tiny = torch.finfo(A.dtype).tiny
        for start in self.starts(A).unbind(-1):
            v = start.unsqueeze(-1)
            for _ in range(self.iterations):
                v = A @ v
                v = v / torch.linalg.vector_norm(v, dim=-2, keepdim=True).clamp_min(tiny)
            Av = A @ v
            values.append((v * Av).sum((-2, -1)))
            vectors.append(v[..., 0])
            A = A - Av @ v.transpose(-2, -1)
        return torch.stack(values, -1), torch.stack(vectors, -1)


WHITENING_METHODS: Table[Method] = Table("whitening method")
WHITENING_METHODS.add("exact", Decomposition())
WHITENING_METHODS.add("svdpi", Decomposition(iterations=19))
WHITENING_METHODS.add("power_iteration", PowerIteration())
WHITENING_METHODS.add("newton_schulz", NewtonSchulz(scaling="trace", iterations=5))
WHITENING_METHODS.add("mpa", MPA())
WHITENING_METHODS.add("mtp", MTP())


def list_whitening_methods(eigenvectors: bool = False) -> list[str]:
    """Names of the whitening methods, without those that only reproduce released layers.

    Args:
        eigenvectors: only the methods that have them, which ``energy`` and a projector need.

    Examples:
        >>> list_whitening_methods(eigenvectors=True)
        ['exact', 'svdpi', 'power_iteration']
    """
    current = [(name, method) for name, method in WHITENING_METHODS.items() if not name.endswith(RELEASED)]
    return [name for name, method in current if not eigenvectors or isinstance(method, EigenvectorMethod)]


def resolve_whitening_method(method: str | Method, needs_eigenvectors: str = "") -> Method:
    """The method of a name, or an object of this module's or linalg's iterative methods.

    ``needs_eigenvectors`` is the option that does, for the message; empty if none.
    """
    if isinstance(method, str) and method not in WHITENING_METHODS:
        raise UnknownNameError("whitening method", method, list_whitening_methods())
    chosen: Any = WHITENING_METHODS[method] if isinstance(method, str) else method
    if not isinstance(chosen, EigenvectorMethod | IterativeMethod):
        raise OptionError(f"{method!r} is no whitening method; available: {', '.join(list_whitening_methods())}")
    if needs_eigenvectors and not isinstance(chosen, EigenvectorMethod):
        able = ", ".join(list_whitening_methods(eigenvectors=True))
        raise OptionError(f"{needs_eigenvectors} needs eigenvectors, which method {method!r} does not have; use {able}")
    return chosen


def whitening_matrix(covariance: Tensor, method: Method, eps: float, energy: float = 1.0) -> Tensor:
    """(Σ + eps I)^(-1/2) as the method computes it, for covariances Σ (G, d, d).

    With ``energy`` below one, of the leading eigenvectors alone: those whose eigenvalues have this share of the total.
    """
    if isinstance(method, EigenvectorMethod):
        return method.apply(covariance, Leading(energy=energy, eps=eps))
    assert isinstance(method, IterativeMethod)
    eye = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    return root_of_symmetric(symmetrize(covariance) + eps * eye, method, "inverse")


def whitened_covariance(W: Tensor, method: Method, eps: float, energy: float = 1.0) -> Tensor:
    """The covariances Σ = W⁻² - eps I (G, d, d), at least zero, that matrices W = (Σ + eps I)^(-1/2) whiten."""
    if energy < 1 or not isinstance(method, Decomposition):
        raise no_covariance(f"matrices of energy={energy}, method={method}")
    values, U = guarded_eigh(symmetrize(W.to(torch.float64)))
    if not bool((values > 16 * torch.finfo(W.dtype).eps * values[..., -1:]).all()):
        raise no_covariance("singular matrices")
    return compose((values**-2 - eps).clamp_min(0), U).to(W.dtype)


def no_covariance(what: str) -> OptionError:
    """For a checkpoint of averaged matrices from which no covariance follows."""
    return OptionError(
        f"average='covariance' cannot go on from a checkpoint of averaged {what}; use average='inverse_root'"
    )


def projector(covariance: Tensor, method: Method, components: int | None, energy: float = 1.0) -> Tensor:
    """U Uᵀ with the leading eigenvectors U of covariances (G, d, d): at most so many, and so much of the energy."""
    assert isinstance(method, EigenvectorMethod)
    return method.apply(covariance, Leading(projector=True, energy=energy, components=components))
