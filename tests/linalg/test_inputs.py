"""Bad input: one line that names what was found and what is allowed."""

import pytest
import torch

from covpool_plugins.linalg import (
    covariance,
    covariance_powm,
    covariance_sqrt,
    inv_sqrtm,
    list_methods,
    lyapunov,
    pack_triu,
    powm,
    resolve_method,
    sqrtm,
    unpack_symmetric,
)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: sqrtm(torch.eye(3), "exakt"), "unknown method 'exakt'; available: exact, "),
        (lambda: sqrtm(torch.eye(3), "isqrt", steps=3), "method 'isqrt' has no option 'steps'; its options: "),
        (lambda: sqrtm(torch.eye(3), "isqrt", iterations=0), "iterations must be a positive integer, got 0"),
        (lambda: sqrtm(torch.ones(2, 3)), r"square matrices \(..., C, C\), got shape \(2, 3\)"),
        (lambda: sqrtm(torch.eye(3).long()), "must be real floating point, got torch.int64"),
        (lambda: sqrtm([[1.0]]), "A must be a tensor, got list"),
        (lambda: covariance(torch.ones(4, 3), "no"), "centered must be True or False, got 'no'"),
        (lambda: covariance_sqrt(torch.ones(4, 3), centered=1), "centered must be True or False, got 1"),
        (lambda: covariance_powm(torch.ones(4, 3), torch.tensor(0.5), 0), "centered must be True or False, got 0"),
        (lambda: covariance(torch.ones(2, 4, 0)), r"C and M positive, got shape \(2, 4, 0\)"),
        (lambda: covariance_sqrt(torch.ones(4, 3), compute="half"), "compute must be one of mixed, float32, float64"),
        (lambda: covariance_sqrt(torch.ones(4, 3), vectorize="tril"), "vectorize must be one of full, triu"),
        (lambda: inv_sqrtm(torch.eye(6), eps=-1), r"eps must be a number in \[0, inf\), got -1"),
        (lambda: inv_sqrtm(torch.eye(6), eps="small"), r"eps must be a number in \[0, inf\), got 'small'"),
        (lambda: pack_triu(torch.ones(2, 3)), r"S must be square matrices \(..., n, n\), got shape \(2, 3\)"),
        (lambda: pack_triu(torch.ones(3)), r"S must be square matrices \(..., n, n\), got shape \(3,\)"),
        (lambda: unpack_symmetric(torch.ones(5), 3), r"v must be vectors \(..., 6\) for .* size 3, got shape \(5,\)"),
        (lambda: unpack_symmetric(torch.ones(7), 3), r"v must be vectors \(..., 6\) for .* size 3, got shape \(7,\)"),
        (lambda: inv_sqrtm(torch.eye(6), resolve_method("svdpade")), "is no method for inv_sqrtm; available: exact"),
        (lambda: powm(torch.eye(6), float("inf")), "p must be a finite number, got inf"),
        (lambda: lyapunov(torch.eye(6), torch.ones(2, 2)), r"one shape, got \(6, 6\) and \(2, 2\)"),
        (lambda: lyapunov(torch.eye(6), torch.eye(6), "schur"), "unknown method 'schur'; available: "),
        (lambda: list_methods("sinm"), "unknown matrix function 'sinm'; available: "),
        (lambda: sqrtm(torch.eye(6), "minimax", degree=4), "degree must be one of 3, 5, 7, 9, got 4"),
        (lambda: sqrtm(torch.eye(6), "minimax", smallest=1.5), r"smallest must be a number in \(0, 1\), got 1.5"),
        (lambda: sqrtm(torch.eye(6), "svdtopn", n=0), "n must be a positive integer, got 0"),
        (lambda: sqrtm(torch.eye(6), "svdtrunc", cap=0), r"cap must be a number in \(0, inf\), got 0"),
        (lambda: sqrtm(torch.eye(3), "mpa", gradient="none"), "gradient must be one of auto, exact, lyapunov, got"),
        (lambda: sqrtm(torch.eye(3), "isqrt", scaling="max"), "scaling must be one of trace, frobenius, spectral, got"),
        (lambda: sqrtm(torch.eye(3), route="gpu"), "route must be one of auto, eigh, products, got 'gpu'"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
