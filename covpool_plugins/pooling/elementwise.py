"""What is done to the entries of the vector: the last step of bilinear pooling."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..checks import check_number
from ..linalg.tensors import autocast_off
from .base import widened

LARGEST_FLOOR = 1e30


class SignedRootL2(nn.Module):
    """sign(v) √(|v| + ε), then v / ‖v‖₂, for vectors (B, D); computed in float32 at least.

    Args:
        eps: ε, without which the slope at zero would be infinite.

    Source: Lin, RoyChowdhury & Maji, "Bilinear CNN Models for Fine-grained Visual Recognition", ICCV 2015.

    Raises:
        OptionError: unless ε is between 0 and 1.

    Examples:
        >>> SignedRootL2()(torch.tensor([[9.0, -16.0]]))
        tensor([[ 0.6000, -0.8000]])
    """

    def __init__(self, *, eps: float = 1e-8) -> None:
        super().__init__()
        check_number("eps of the signed root", eps, "(0, 1)")
        self.eps = float(eps)

    def forward(self, v: Tensor, unit: Tensor | None = None) -> Tensor:
        """The result for the vectors ``unit`` ``v``, which may leave the range where ``v`` does not; (B, 1)."""
        with autocast_off(v.device.type):
            wide = widened(v)
            if unit is None:
                signed = wide.sign() * (wide.abs() + self.eps).sqrt()
            else:
                # Beside a floor beyond the precision of any entry all are alike, and have no gradient.
                floor = self.eps / unit
                alike = floor > LARGEST_FLOOR
                signed = wide.sign() * torch.where(alike, 1.0, (wide.abs() + torch.where(alike, 1.0, floor)).sqrt())
            # The squares in the length of a vector leave the range before its entries do.
            largest = signed.detach().abs().amax(dim=-1, keepdim=True)
            return nn.functional.normalize(signed / torch.where(largest > 0, largest, 1.0), dim=-1).to(v.dtype)

    def extra_repr(self) -> str:
        return f"eps={self.eps:g}"
