"""Numbers that tell how far an explanation can be relied on, and what it was made from."""

from __future__ import annotations

import contextlib
import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..checks import check_integer
from ..errors import NotApplicableError, ShapeError
from ..pooling import CovariancePool, Spectrum
from .explanation import Explanation
from .images import blur
from .model_view import ForwardPass, ModelView
from .spectral_maps import covariance_basis

CELLS = 14  # positions along a side, at most, by which pixels are deleted
STEPS = 10
ORDERS = 3
BATCH = 16


class DeletionInsertion(NamedTuple):
    """Areas under the curves of the class's probability, from 0 to 1.

    Attributes:
        deletion: the important pixels replaced first; small for a good map.
        insertion: the important pixels put back first; large for a good map.
        random_deletion, random_insertion: means over random orders.
    """

    deletion: float
    insertion: float
    random_deletion: float
    random_insertion: float


def deletion_insertion(
    view: ModelView,
    x: Tensor,
    map: Tensor | np.ndarray,
    target: int,
    *,
    steps: int = STEPS,
    orders: int = ORDERS,
    seed: int = 0,
) -> DeletionInsertion:
    """How the probability of a class falls and rises with the pixels that a map calls important.

    A deleted pixel gets its value in a blurred picture (a Gaussian of 5 % of the shorter side), which keeps the colours
    and is less strange to a network than grey. The map is averaged to at most 14 x 14 positions and pixels are deleted
    by position, as in the random orders for comparison. A better map has a smaller deletion and a larger insertion; a
    map no better than chance has those of the random orders.

    Args:
        view: a model.
        x: input (1, C, H, W).
        map: (h, w), the larger the more important.
        target: the class.
        steps: of the curves, equal parts of the positions.
        orders: how many random orders.
        seed: of these; no other random numbers are drawn or changed.

    Raises:
        OptionError: for a number that is not positive.
        ShapeError: for a map that is no matrix.

    Source: Petsiuk, Das & Saenko, "RISE: Randomized Input Sampling for Explanation of Black-box Models", BMVC 2018.

    Examples:
        >>> view = ModelView.of(covpool_plugins.create_model("test_resnet", num_classes=3, reduce_channels=8))
        >>> areas = deletion_insertion(view, torch.randn(1, 3, 64, 64), torch.rand(2, 2), 0, steps=2, orders=1)
        >>> 0 < areas.deletion < 1
        True
    """
    check_integer("deletion_insertion: steps", steps)
    check_integer("deletion_insertion: orders", orders)
    check_integer("deletion_insertion: seed", seed, 0)
    values = torch.as_tensor(map, dtype=torch.float64)
    if values.ndim != 2 or values.numel() == 0:
        raise ShapeError(f"a map must be a matrix (H, W), got shape {tuple(values.shape)}")
    cells = (min(CELLS, values.shape[0]), min(CELLS, values.shape[1]))
    coarse = nn.functional.adaptive_avg_pool2d(values[None], cells).flatten()
    random = torch.Generator("cpu").manual_seed(seed)
    ranked = [coarse.argsort(descending=True, stable=True)]
    ranked += [torch.randperm(coarse.numel(), generator=random) for _ in range(orders)]
    counts = torch.linspace(0, coarse.numel(), steps + 1).round()
    picture = view.to_model(x)
    blurred = blur(picture)
    areas = []
    for order in tqdm(ranked, unit="order", disable=None, leave=False):
        deleted = (order.argsort() < counts[:, None]).view(-1, 1, *cells).to(picture)  # none, more and more, all
        masks = nn.functional.interpolate(deleted, picture.shape[-2:], mode="nearest")
        both = [torch.lerp(picture, blurred, masks), torch.lerp(blurred, picture, masks)]
        areas.append([_area(view, pictures, target) for pictures in both])
    return DeletionInsertion(*areas[0], *np.mean(areas[1:], axis=0).tolist())


def _area(view: ModelView, pictures: Tensor, target: int) -> float:
    logits = torch.cat([view.logits(part) for part in pictures.split(BATCH)])
    return torch.trapezoid(view.probabilities(logits)[:, target], dx=1 / (len(pictures) - 1)).item()


def entropy(map: Tensor | np.ndarray) -> float | None:
    """Entropy of the magnitudes of a map as shares of their sum, over that of a uniform map: 0 for one position, 1 for
    all alike; ``None`` for a map of zeros or of one position."""
    magnitude = torch.as_tensor(map, dtype=torch.float64).abs().flatten()
    total = magnitude.sum()
    if magnitude.numel() < 2 or not total > 0:
        return None
    shares = magnitude / total
    return (-torch.xlogy(shares, shares).sum() / math.log(magnitude.numel())).item()


CONDITIONING = ("condition_number", "normalized_condition_number", "effective_rank")


@torch.no_grad()
def conditioning(view: ModelView, passed: ForwardPass) -> dict[str, float | None]:
    """How the covariance of an input is conditioned before and after the pool normalises it.

    Returns:
        ``condition_number`` of the covariance, by the eigenvalues that can be told from zero;
        ``normalized_condition_number`` of the matrix that the classifier takes, by the magnitudes of its eigenvalues,
        or ``None`` where it takes no symmetric matrix; ``effective_rank`` of the covariance, see
        :class:`covpool_plugins.pooling.Spectrum`.

    Raises:
        NotApplicableError: for a model without a pool that we know, or a pool that takes no covariance.
    """
    pool, X = view.float64_pool, view.features(passed)[0].double()
    before = Spectrum.of(covariance_basis(pool, X).values.flip(0)[None])
    numbers: list[float | None] = [before.condition_number.item(), None, before.effective_rank.item()]
    if isinstance(pool, CovariancePool):
        after = torch.linalg.eigvalsh(pool.matrix(pool.represent(X))).abs().sort().values
        numbers[1] = Spectrum.of(after).condition_number.item()
    return dict(zip(CONDITIONING, numbers, strict=True))


def metrics(
    view: ModelView,
    passed: ForwardPass,
    explanation: Explanation,
    *,
    steps: int = STEPS,
    orders: int = ORDERS,
    seed: int = 0,
) -> dict[str, float | None]:
    """All numbers of this module for one explanation; ``None`` for what does not apply.

    Args:
        view: the model.
        passed: what it computes of the input that was explained.
        explanation: of that input.
        steps, orders, seed: of :func:`deletion_insertion`, whose deletion goes to a blurred picture and whose baseline
            are random orders; it takes 2 (steps + 1) (orders + 1) forward passes, and 0 steps leave it out.

    Examples:
        >>> view = ModelView.of(covpool_plugins.create_model("test_resnet", num_classes=3, reduce_channels=8))
        >>> x = torch.randn(1, 3, 64, 64)
        >>> metrics(view, view.forward_pass(x), explain(view, x), steps=0)["completeness_gap"] < 1e-4
        True
    """
    names = (*DeletionInsertion._fields, "completeness_gap", *CONDITIONING, "entropy")
    numbers: dict[str, float | None] = dict.fromkeys(names)
    if explanation.space == "image" and steps:
        options = {"steps": steps, "orders": orders, "seed": seed}
        numbers |= deletion_insertion(view, passed.x, explanation.map, explanation.target, **options)._asdict()
    numbers |= {"completeness_gap": explanation.completeness_gap, "entropy": entropy(explanation.map)}
    with contextlib.suppress(NotApplicableError):
        numbers |= conditioning(view, passed)
    return numbers
