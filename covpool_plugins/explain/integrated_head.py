"""Integrated gradients through the head only, for any pool."""

from __future__ import annotations

from torch import Tensor

from .contribution import LinearHead, by_entries, contributions
from .methods import METHODS, Attribution
from .model_view import ModelView

POINTS = 24


@METHODS.register("integrated_head")
def integrated_head(view: ModelView, x: Tensor, target: int, *, points: int = POINTS) -> Attribution:
    """x̃_i · ∫ ∂s/∂x_i(t x̃) dt over 0 <= t <= 1, by Gauss-Legendre quadrature: shares of the score, (H, W) in float64.

    The path scales the pooled features, not the picture, so that one forward pass of the network is enough. For a
    square root it is the contribution map; for a logarithm, a power or a learned pool it is complete too. The factors
    of an element-wise last step (signed roots, length one) are held at their values, as in the contribution map.

    Args:
        view: a model with a pool of this package or global average pooling.
        x: input (1, 3, H, W).
        target: the class.
        points: of the quadrature, each a forward and backward pass through the pool.

    Raises:
        OptionError: for a number of points that is not positive, a model without a pool that we know, or if the
            shares miss the score.
        NotApplicableError: for a model with more than a linear layer behind the pool.

    Source: Sundararajan, Taly & Yan, "Axiomatic Attribution for Deep Networks", ICML 2017.
    """
    head = LinearHead.of(view, x, target)
    shares, score, base = contributions(by_entries(head.pool, head.X), head.X, head.weight, points)
    return head.attribution("integrated_head", shares, score, base)
