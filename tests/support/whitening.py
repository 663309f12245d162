"""Inputs for the whitening layers, and the reference."""

import torch


def correlated(batch=6, channels=8, side=5, dtype=torch.float64, spread=2.0, mean=0.5):
    """Features (B, C, H, W) whose channels are mixed, with eigenvalues of the covariance between 1 and spread²."""
    basis = torch.linalg.qr(torch.randn(channels, channels, dtype=torch.float64))[0]
    mixing = basis * torch.linspace(1, spread, channels, dtype=torch.float64)
    x = torch.randn(batch, side, side, channels, dtype=torch.float64) @ mixing + mean
    return x.permute(0, 3, 1, 2).contiguous().to(dtype)


def samples(x, groups=1):
    """(B, C, ...) as (G, d, N) in float64."""
    return x.detach().double().transpose(0, 1).flatten(1).unflatten(0, (groups, -1))


def statistics(x, groups=1):
    """Mean (G, d, 1) and covariance (G, d, d)."""
    X = samples(x, groups)
    centred = X - X.mean(-1, keepdim=True)
    return X.mean(-1, keepdim=True), centred @ centred.mT / X.shape[-1]


def inverse_root(covariance, eps, kept=None):
    """(Σ + eps I)^(-1/2), of the leading eigenvectors if a number is given."""
    values, U = torch.linalg.eigh(covariance)
    f = (values + eps).rsqrt()
    if kept is not None:
        f[..., : f.shape[-1] - kept] = 0
    return (U * f.unsqueeze(-2)) @ U.mT
