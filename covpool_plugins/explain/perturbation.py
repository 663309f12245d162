"""RISE, and extremal perturbations by TorchRay."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..checks import check_integer, check_number
from ..errors import OptionError, require_extra
from .explanation import Explanation
from .methods import EXPLANATIONS, ExplanationMethod, at_most, check_seed, checked_with_the_model
from .model_view import ForwardPass, ModelView

# RISE draws this many masks at a time: up to this, the map does not depend on the batch size of the network.
MASKS_PER_DRAW = 64
# How often a cell of RISE's masks is seen, and how many cells a side has.
SEEN = 0.5
CELLS = 7
# TorchRay's grid of the mask in pixels, its smoothing and the strongest blur were chosen for inputs of this side.
TUNED_SIDE = 224
STEP, SIGMA_STEPS, MAX_BLUR = 7, 3, 20.0


def rise(
    view: ModelView,
    passed: ForwardPass,
    target: int,
    *,
    masks: int = 1000,
    seed: int = 0,
    batch_size: int = 8,
    versus: int | None = None,
) -> Explanation:
    """Mean probability of the class over random masks that show a pixel, (H, W).

    Σ_m p(target | x ∘ m) m / Σ_m m, divided by how often the masks did show each pixel: with few masks the expected
    number would leave a pattern of its own. What a mask hides is the mean colour.

    Args:
        masks: how many; more give a smoother map.
        seed: of the masks; the caller's random numbers are not touched.
        batch_size: masked inputs in one forward pass, at most 64; the map is the same for all.
        versus: take the probability of the class given that it is one of the two.

    Source: Petsiuk, Das & Saenko, "RISE: Randomized Input Sampling for Explanation of Black-box Models", BMVC 2018.
    """
    x = view.to_model(passed.x).float()
    random = torch.Generator("cpu").manual_seed(seed)
    weighted, shown = torch.zeros(x.shape[2:]).to(x), torch.zeros(x.shape[2:]).to(x)
    with _progress("rise", masks) as bar:
        for first in range(0, masks, MASKS_PER_DRAW):
            drawn = random_masks(min(MASKS_PER_DRAW, masks - first), x.shape[2:], random).to(x)
            for part in drawn.split(batch_size):
                logits = view.logits(part.unsqueeze(1) * x)
                p = _probability(view, logits, target, versus).to(x)
                weighted += torch.einsum("b,bhw->hw", p, part)
                shown += part.sum(dim=0)
                bar.update(len(part))
    # With few masks no mask may have shown a pixel: nothing is known of it.
    mean = torch.where(shown > 0, weighted / shown, weighted.sum() / shown.sum().clamp_min(1e-12))
    return Explanation(mean, signed=False, relative=True)


def random_masks(count: int, size: Sequence[int], random: torch.Generator) -> Tensor:
    """Smooth masks (B, H, W) in 0..1: a coarse grid of cells, half of them seen, enlarged and shifted at random."""
    height, width = size
    cells = min(CELLS, height, width)
    step = (-(-height // cells), -(-width // cells))
    grid = (torch.rand((count, 1, cells + 1, cells + 1), generator=random) < SEEN).float()
    enlarged = nn.functional.interpolate(grid, [(cells + 1) * s for s in step], mode="bilinear", align_corners=False)
    shifts = torch.stack([torch.randint(s, (count,), generator=random) for s in step], dim=1).tolist()
    return torch.stack([mask[0, i : i + height, j : j + width] for mask, (i, j) in zip(enlarged, shifts, strict=True)])


def _probability(view: ModelView, logits: Tensor, target: int, versus: int | None) -> Tensor:
    """Of the class (B,); with ``versus``, given that it is one of the two."""
    if versus is not None:
        return (logits[:, target] - logits[:, versus]).double().sigmoid()
    return view.probabilities(logits)[:, target]


def extremal_perturbation(
    view: ModelView, passed: ForwardPass, target: int, *, iterations: int = 300, areas: Sequence[float] = (0.1,)
) -> Explanation:
    """Mean of smooth masks (H, W) in 0..1 that keep the class score largest when all outside them is blurred.

    The network sees the picture as it is, never its mirror image. Nothing in it is random.

    Args:
        iterations: steps of gradient ascent.
        areas: shares of the picture, each of which one mask covers.

    Source: Fong, Patrick & Vedaldi, "Understanding Deep Networks via Extremal Perturbations and Smooth Masks",
    ICCV 2019.
    """
    torchray = require_extra("torchray.attribution.extremal_perturbation", "explain")
    x = view.to_model(passed.x).float()
    scale = min(x.shape[2:]) / TUNED_SIDE
    step = max(1, round(scale * STEP))
    score = partial(torch.select, dim=1, index=target)
    with (
        _strongest_blur(torchray, scale * MAX_BLUR),
        torch.enable_grad(),
        _progress("extremal_perturbation", iterations * len(areas)) as bar,
    ):
        model = OneOutput(view.model, score, bar, batch_size=len(areas))
        masks, _ = torchray.extremal_perturbation(
            model, x, 0, areas=list(areas), max_iter=iterations, step=step, sigma=SIGMA_STEPS * step, jitter=False
        )
    return Explanation(masks.mean(dim=0)[0], signed=False, relative=True)


class OneOutput(nn.Module):
    """The model with one output instead of a score per class, in float32.

    Args:
        model: the classifier.
        output: scores (B, num_classes) to outputs (B,).
        bar: counts the inputs.
        batch_size: inputs in one forward pass.
    """

    def __init__(self, model: nn.Module, output: Callable[[Tensor], Tensor], bar: tqdm, batch_size: int) -> None:
        super().__init__()
        self.model, self.output, self.bar, self.batch_size = model, output, bar, batch_size

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self._outputs(part) for part in x.split(self.batch_size)])

    def _outputs(self, x: Tensor) -> Tensor:
        self.bar.update(len(x))
        return self.output(self.model(x.to(next(self.model.parameters())))).float().unsqueeze(1)


def _progress(name: str, inputs: int) -> tqdm:
    return tqdm(total=inputs, desc=name, unit="input", leave=False, disable=None)


@contextmanager
def _strongest_blur(torchray: Any, max_blur: float) -> Iterator[None]:
    """TorchRay's perturbation with another strongest blur, which its function does not take as an argument."""
    original = torchray.Perturbation
    torchray.Perturbation = partial(original, max_blur=max_blur)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.meshgrid", UserWarning)
            yield
    finally:
        torchray.Perturbation = original


def _check_shares(option: str, value: Any) -> None:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise OptionError(f"{option} must be a list of numbers in (0, 1), got {value!r}")
    for share in value:
        check_number(option, share, "(0, 1)")


EXPLANATIONS.add(
    "rise",
    ExplanationMethod(
        rise,
        masks=check_integer,
        seed=check_seed,
        batch_size=at_most(MASKS_PER_DRAW, least=1),
        versus=checked_with_the_model,
    ),
)
EXPLANATIONS.add(
    "extremal_perturbation",
    ExplanationMethod(extremal_perturbation, iterations=check_integer, areas=_check_shares),
)
