"""Methods that change the picture: masks that hide parts of it, and pictures made from noise by gradient steps."""

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
from .methods import EXPLANATIONS, ExplanationMethod, check_seed
from .model_view import ForwardPass, ModelView

# How often a cell of RISE's masks is seen, and how many cells a side has.
SEEN = 0.5
CELLS = 7
# TorchRay's grid of the mask in pixels, its smoothing and the strongest blur were chosen for inputs of this side.
TUNED_SIDE = 224
STEP, SIGMA_STEPS, MAX_BLUR = 7, 3, 20.0
NOISE = 0.2  # standard deviation of the start, before the sigmoid
JITTER = 16


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
        batch_size: masked inputs in one forward pass; the map is the same for all.
        versus: take the probability of the class given that it is one of the two.

    Source: Petsiuk, Das & Saenko, "RISE: Randomized Input Sampling for Explanation of Black-box Models", BMVC 2018.
    """
    x = view.to_model(passed.x).float()
    weighted, shown = torch.zeros(x.shape[2:]).to(x), torch.zeros(x.shape[2:]).to(x)
    with _progress("rise", masks) as bar:
        for part in random_masks(masks, x.shape[2:], batch_size, seed):
            part = part.to(x)
            logits = view.logits(part.unsqueeze(1) * x)
            if versus is None:
                p = view.probabilities(logits)[:, target]
            else:
                p = (logits[:, target] - logits[:, versus]).double().sigmoid()
            weighted += torch.einsum("b,bhw->hw", p.to(x), part)
            shown += part.sum(dim=0)
            bar.update(len(part))
    # With few masks no mask may have shown a pixel: nothing is known of it.
    mean = torch.where(shown > 0, weighted / shown, weighted.sum() / shown.sum().clamp_min(1e-12))
    return Explanation(mean, signed=False, relative=True)


def random_masks(count: int, size: Sequence[int], batch_size: int, seed: int) -> Iterator[Tensor]:
    """Smooth masks (b, H, W) in 0..1: a coarse grid of cells, half of them seen, enlarged and shifted at random."""
    random, (height, width) = torch.Generator("cpu").manual_seed(seed), size
    cells = min(CELLS, height, width)
    step = (-(-height // cells), -(-width // cells))
    grids = (torch.rand((count, 1, cells + 1, cells + 1), generator=random) < SEEN).float()
    shifts = torch.stack([torch.randint(s, (count,), generator=random) for s in step], dim=1)
    side = [(cells + 1) * s for s in step]
    for some, places in zip(grids.split(batch_size), shifts.split(batch_size), strict=True):
        masks = nn.functional.interpolate(some, side, mode="bilinear", align_corners=False)[:, 0]
        shifted = zip(masks, places.tolist(), strict=True)
        yield torch.stack([mask[row : row + height, column : column + width] for mask, (row, column) in shifted])


def extremal_perturbation(
    view: ModelView, passed: ForwardPass, target: int, *, iterations: int = 300, areas: Sequence[float] = (0.1,)
) -> Explanation:
    """Mean of smooth masks (H, W) in 0..1 that keep the class score largest when all outside them is blurred.

    It is TorchRay's. The network sees the picture as it is, never its mirror image. Nothing in it is random.

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
    options = dict(areas=list(areas), max_iter=iterations, step=step, sigma=SIGMA_STEPS * step, jitter=False)
    with (
        _strongest_blur(torchray, scale * MAX_BLUR),
        torch.enable_grad(),
        _progress("extremal_perturbation", iterations * len(areas)) as bar,
    ):
        masks, _ = torchray.extremal_perturbation(_OneScore(view.model, target, bar), x, 0, **options)
    return Explanation(masks.mean(dim=0)[0], signed=False, relative=True)


class _OneScore(nn.Module):
    """The score of one class, (B, 1) in float32, and a progress bar that counts the inputs."""

    def __init__(self, model: nn.Module, target: int, bar: tqdm) -> None:
        super().__init__()
        self.model, self.target, self.bar = model, target, bar

    def forward(self, x: Tensor) -> Tensor:
        self.bar.update(len(x))
        return self.model(x.to(next(self.model.parameters())))[:, [self.target]].float()


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


def maximal_image(
    view: ModelView,
    passed: ForwardPass,
    target: int,
    *,
    iterations: int = 50,
    seed: int = 0,
    smoothness: float = 1000.0,
    jitter: int = JITTER,
) -> Explanation:
    """What the class looks like to the network: the picture that minimises ``smoothness`` · TV - logit.

    TV is the mean squared difference of neighbouring pixels. Of the input only the size is used. The extras are
    ``picture`` (3, H, W) and ``logit``, its class score.

    Args:
        iterations: steps of Adam, each a forward and backward pass.
        seed: of the noise and the jitter; no other random numbers are drawn or changed.
        smoothness: the weight of the total variation.
        jitter: each step shifts the picture by up to this many pixels, so that no pattern is tied to a place of the
            network's grid.

    Source: Mahendran & Vedaldi, "Visualizing Deep Convolutional Neural Networks Using Natural Pre-images", IJCV 2016;
    for second-order models Lin & Maji, "Visualizing and Understanding Deep Texture Representations", CVPR 2016.
    """

    def loss(made: Tensor) -> Tensor:
        return -view.model(made)[0, target]

    pixels = _descend(view, passed.x, loss, iterations, seed, smoothness, jitter, levels=5, step=0.02)
    return _picture(pixels, logit=view.logits(view.preprocessing.normalized(pixels))[0, target])


def inverse_image(
    view: ModelView,
    passed: ForwardPass,
    target: int,
    *,
    iterations: int = 100,
    seed: int = 0,
    smoothness: float = 100.0,
    jitter: int = JITTER,
) -> Explanation:
    """What the pooled vector φ knows of the picture: one with nearly the same vector, found from noise.

    It minimises ‖φ - φ₀‖² / ‖φ₀‖² + ``smoothness`` · TV. A covariance forgets places and keeps what varies together:
    textures come back, at other positions. The extras are ``picture`` (3, H, W) and ``distance``, ‖φ - φ₀‖ / ‖φ₀‖.

    Args:
        iterations, seed, smoothness, jitter: as of :func:`maximal_image`, from the same sources.
    """
    view.known_pool()
    original: Any = passed.pooled

    def loss(made: Tensor) -> Tensor:
        difference = view.forward_pass(made).pooled - original
        return difference.square().sum() / original.square().sum().clamp_min(1e-12)

    pixels = _descend(view, passed.x, loss, iterations, seed, smoothness, jitter, levels=1, step=0.1)
    return _picture(pixels, distance=loss(view.preprocessing.normalized(pixels)).sqrt())


def _descend(
    view: ModelView,
    x: Tensor,
    loss: Callable[[Tensor], Tensor],
    iterations: int,
    seed: int,
    smoothness: float,
    jitter: int,
    levels: int,
    step: float,
) -> Tensor:
    """Pixels (1, C, H, W) in 0..1 that make ``loss`` of the input plus the total variation small.

    Before the sigmoid they are the sum of ``levels`` pictures, each of half the size of the one before, which all move
    by up to ``step``, less and less: a smooth picture takes fewer steps so.
    """
    random, size = torch.Generator("cpu").manual_seed(seed), x.shape[2:]
    start = NOISE * torch.randn(x.shape, generator=random, device="cpu", dtype=torch.float32)
    coarse = [torch.zeros(*x.shape[:2], *(max(1, side >> level) for side in size)) for level in range(1, levels)]
    parts = [view.to_model(part).requires_grad_(True) for part in (start, *coarse)]
    optimizer = torch.optim.Adam(parts, lr=step)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)  # lets the noise of the jitter settle

    def drawn() -> Tensor:
        full = [nn.functional.interpolate(part, size, mode="bilinear") for part in parts]
        return torch.stack(full).sum(dim=0).sigmoid()

    with torch.enable_grad():
        for _ in tqdm(range(iterations), unit="step", disable=None, leave=False):
            pixels = drawn()
            shift = torch.randint(-jitter, jitter + 1, (2,), generator=random).tolist()
            made = view.preprocessing.normalized(pixels.roll(shift, dims=(2, 3)))
            total = loss(made) + smoothness * total_variation(pixels)
            optimizer.zero_grad()
            total.backward(inputs=parts)
            optimizer.step()
            schedule.step()
    return drawn().detach()


def total_variation(pixels: Tensor) -> Tensor:
    """The mean squared difference of neighbouring pixels of pictures (B, C, H, W), both directions added."""
    return pixels.diff(dim=2).square().mean() + pixels.diff(dim=3).square().mean()


def _picture(pixels: Tensor, **numbers: Tensor) -> Explanation:
    picture = pixels[0].double().expand(3, -1, -1)
    return Explanation(picture.mean(0), signed=False, extras={"picture": picture, **numbers}, space="picture")


def _progress(name: str, inputs: int) -> tqdm:
    return tqdm(total=inputs, desc=name, unit="input", leave=False, disable=None)


def _check_shares(option: str, value: Any) -> None:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise OptionError(f"{option} must be a list of numbers in (0, 1), got {value!r}")
    for share in value:
        check_number(option, share, "(0, 1)")


check_count = partial(check_integer, least=0)
check_weight = partial(check_number, interval="[0, inf)")
EXPLANATIONS.add(
    "rise",
    ExplanationMethod(rise, masks=check_integer, seed=check_seed, batch_size=check_integer),
)
EXPLANATIONS.add(
    "extremal_perturbation",
    ExplanationMethod(extremal_perturbation, iterations=check_integer, areas=_check_shares),
)
for made in (maximal_image, inverse_image):
    EXPLANATIONS.add(
        made.__name__,
        ExplanationMethod(made, iterations=check_integer, seed=check_seed, smoothness=check_weight, jitter=check_count),
    )
