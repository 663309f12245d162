"""Pictures made for a class or from a representation: gradient steps from noise, kept smooth by total variation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm

from ..checks import check_integer
from .explanation import Explanation
from .methods import EXPLANATIONS, ExplanationMethod, check_count, check_seed, check_weight
from .model_view import ForwardPass, ModelView

STEP = 0.1  # of Adam at first, on pixels before the sigmoid
NOISE = 0.2  # standard deviation of the start, before the sigmoid
ITERATIONS = 100
JITTER = 16
CLASS_SMOOTHNESS = 1000.0
INVERSE_SMOOTHNESS = 100.0
Loss = Callable[[Tensor], Tensor]


def maximal_image(
    view: ModelView,
    passed: ForwardPass,
    target: int,
    *,
    iterations: int = ITERATIONS,
    seed: int = 0,
    smoothness: float = CLASS_SMOOTHNESS,
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

    def loss(picture: Tensor) -> Tensor:
        return -view.model(picture)[0, target]

    pixels = _descend(view, passed.x, loss, iterations, seed, smoothness, jitter)
    return _attribution(pixels, logit=view.logits(_as_input(view, pixels))[0, target])


def inverse_image(
    view: ModelView,
    passed: ForwardPass,
    target: int,
    *,
    iterations: int = ITERATIONS,
    seed: int = 0,
    smoothness: float = INVERSE_SMOOTHNESS,
    jitter: int = JITTER,
) -> Explanation:
    """What the pooled vector φ knows of the picture: one with nearly the same vector, found from noise.

    It minimises ‖φ - φ₀‖² / ‖φ₀‖² + ``smoothness`` · TV, see :func:`maximal_image`. A covariance forgets places and
    keeps what varies together: textures come back, at other positions. The extras are ``picture`` (3, H, W) and
    ``distance``, ‖φ - φ₀‖ / ‖φ₀‖.

    Args:
        iterations, seed, smoothness, jitter: as of :func:`maximal_image`.

    Raises:
        NotApplicableError: for a model without a pool that we know.

    Source: Mahendran & Vedaldi, IJCV 2016; Lin & Maji, CVPR 2016.
    """
    view.known_pool()
    original = passed.pooled
    assert original is not None and view.pool_site is not None
    pooled: list[Tensor] = []

    def loss(picture: Tensor) -> Tensor:
        pooled.clear()
        view.model(picture)
        return (pooled[-1] - original).square().sum() / original.square().sum().clamp_min(1e-12)

    with view.pool_site.register_forward_hook(lambda module, args, output: pooled.append(output.flatten(1))):
        pixels = _descend(view, passed.x, loss, iterations, seed, smoothness, jitter)
        with torch.no_grad():
            distance = loss(_as_input(view, pixels)).sqrt()
    return _attribution(pixels, distance=distance)


def _descend(
    view: ModelView, x: Tensor, loss: Loss, iterations: int, seed: int, smoothness: float, jitter: int
) -> Tensor:
    """Pixels (1, C, H, W) in 0..1 that make ``loss`` of the input plus the total variation small."""
    random = torch.Generator("cpu").manual_seed(seed)
    start = NOISE * torch.randn(x.shape, generator=random, device="cpu", dtype=torch.float32)
    unbounded = view.to_model(start).requires_grad_(True)
    optimizer = torch.optim.Adam([unbounded], lr=STEP)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)  # lets the noise of the jitter settle
    with torch.enable_grad():
        for _ in tqdm(range(iterations), unit="step", disable=None, leave=False):
            pixels = unbounded.sigmoid()
            shift = torch.randint(-jitter, jitter + 1, (2,), generator=random).tolist()
            shifted = pixels.roll(shift, dims=(2, 3))
            total = loss(_as_input(view, shifted)) + smoothness * total_variation(pixels)
            optimizer.zero_grad()
            total.backward(inputs=[unbounded])
            optimizer.step()
            schedule.step()
    return unbounded.detach().sigmoid()


def total_variation(pixels: Tensor) -> Tensor:
    """The mean squared difference of neighbouring pixels of pictures (B, C, H, W), both directions added."""
    return pixels.diff(dim=2).square().mean() + pixels.diff(dim=3).square().mean()


def _as_input(view: ModelView, pixels: Tensor) -> Tensor:
    """The network's input for pixels in 0..1, whose channels are red, green and blue or grey."""
    means, stds = view.preprocessing.mean, view.preprocessing.std
    mean, std = (pixels.new_tensor(values).view(-1, 1, 1) for values in (means, stds))
    x = (pixels - mean) / std
    return x.flip(1) if view.preprocessing.bgr else x


def _attribution(pixels: Tensor, **numbers: Tensor) -> Explanation:
    picture = pixels[0].double().expand(3, -1, -1)
    return Explanation(picture.mean(0), signed=False, extras={"picture": picture, **numbers}, space="picture")


for function in (maximal_image, inverse_image):
    EXPLANATIONS.add(
        function.__name__,
        ExplanationMethod(
            function, iterations=check_integer, seed=check_seed, smoothness=check_weight, jitter=check_count
        ),
    )
