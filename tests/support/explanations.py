"""What a test over all explanation methods, or over all heads, needs to know of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from covpool_plugins.pooling import list_pools

# Options with which a method that takes many passes is fast.
CHEAP: dict[str, dict[str, Any]] = {
    "rise": {"masks": 20},
    "extremal_perturbation": {"iterations": 5},
    "maximal_image": {"iterations": 3},
    "inverse_image": {"iterations": 3},
}
# The pool that a method has a meaning for, where that is not every square root of a covariance.
POOL_OF = {"democratic_weights": "democratic"}
# Methods that average pooling has no answer to.
SECOND_ORDER = {"democratic_weights", "eigen", "energy", "channel_pairs"}
# One pool of each kind of code; the others are tested among the slow.
FAMILIES = ("svdpade", "isqrt", "logcov", "seb", "bcnn", "cbp", "democratic", "crosscov", "moment", "temporal", "gap")
# A ResNet of 30,000 weights as the tools name it.
NARROW = ["--model-kwargs", "channels=(8,8,8,16)", "reduce_channels=8"]


def heads(names: Iterable[str] = (), fast: Iterable[str] = FAMILIES) -> Callable[[Any], Any]:
    """A test over heads, by default over all of them, of which one of each family is fast."""

    def decorate(test: Any) -> Any:
        return pytest.mark.fast_for(*fast)(pytest.mark.parametrize("name", list(names) or list_pools())(test))

    return decorate


class ToLayout(nn.Module):
    """Maps in another layout, with a token in front for ``NLC``."""

    def __init__(self, input_fmt: str) -> None:
        super().__init__()
        self.input_fmt = input_fmt

    def forward(self, x: Tensor) -> Tensor:
        if self.input_fmt == "NHWC":
            return x.permute(0, 2, 3, 1) * 1.0
        tokens = x.flatten(2).mT
        return torch.cat([torch.ones_like(tokens[:, :1]), tokens], dim=1)
