"""Bad input: one line that names what was found and what is allowed."""

import pytest
import torch

from covpool_plugins.linalg import NewtonSchulz, covariance, covariance_sqrt, sqrtm


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: sqrtm(torch.eye(3), "exakt"), "unknown method 'exakt'; available: exact, "),
        (lambda: sqrtm(torch.eye(3), "svdpad"), "unknown method 'svdpad'; available: svdpade, "),
        (lambda: sqrtm(torch.eye(3), "isqrt", steps=3), "method 'isqrt' has no option 'steps'; its options: "),
        (lambda: sqrtm(torch.eye(3), "isqrt", iterations=0), "iterations must be a positive integer, got 0"),
        (lambda: NewtonSchulz(scaling="max"), "scaling must be one of trace, frobenius, spectral, got 'max'"),
        (lambda: sqrtm(torch.ones(2, 3)), r"square matrices \(..., C, C\), got shape \(2, 3\)"),
        (lambda: sqrtm(torch.ones(3)), r"got shape \(3,\)"),
        (lambda: sqrtm(torch.eye(3).long()), "must be real floating point, got torch.int64"),
        (lambda: sqrtm(torch.eye(3).to(torch.complex64)), "must be real floating point, got torch.complex64"),
        (lambda: sqrtm([[1.0]]), "A must be a tensor, got list"),
        (lambda: covariance(torch.ones(4)), r"features \(..., C, M\).* got shape \(4,\)"),
        (lambda: covariance(torch.ones(2, 4, 0)), r"C and M positive, got shape \(2, 4, 0\)"),
        (lambda: covariance_sqrt(torch.ones(4, 3), compute="half"), "compute must be one of mixed, float32, float64"),
        (lambda: covariance_sqrt(torch.ones(4, 3), vectorize="tril"), "vectorize must be one of full, triu"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
