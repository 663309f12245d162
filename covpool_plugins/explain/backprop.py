"""Gradient and Grad-CAM, by TorchRay."""

from __future__ import annotations

from torch import Tensor

from ..errors import OptionError, require_extra
from .methods import METHODS, Attribution
from .model_view import ModelView, token_grid
from .stages import to_nchw

DEGENERATE = 1e-4


class DegenerateLayerError(OptionError):
    """A layer at which Grad-CAM would show rounding errors."""


@METHODS.register("gradient")
def gradient(view: ModelView, x: Tensor, target: int) -> Attribution:
    """Size of the score's gradient at every pixel, the largest over the channels, (H, W).

    Source: Simonyan, Vedaldi & Zisserman, "Deep Inside Convolutional Networks", ICLR workshop 2014.
    """
    torchray = require_extra("torchray.attribution.gradient", "explain")
    saliency = torchray.gradient(view.model, view.to_model(x).clone(), target)
    return Attribution(saliency[0, 0].detach(), signed=False)


@METHODS.register("grad_cam")
def grad_cam(view: ModelView, x: Tensor, target: int, *, layer: str | None = None) -> Attribution:
    """Grad-CAM on the grid of a layer, (H, W).

    A covariance does not change when a constant is added to the features, so the gradients at its input sum to zero
    over the positions: Grad-CAM weights there are rounding errors, and its normalised map looks plausible. Such a
    layer is refused. The default is the last map of the backbone, which has the reduction's ReLU behind it; where
    it has not, the last layer before that is not degenerate.

    Args:
        view: the model.
        x: input (1, 3, H, W).
        target: the class.
        layer: name of a stage of the view.

    Raises:
        UnknownNameError: for an unknown layer.
        OptionError: for a model without a pool that we know.
        DegenerateLayerError: for a layer with nothing non-linear between it and a centred covariance.

    Source: Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization",
    ICCV 2017.
    """
    if layer is not None:
        return _grad_cam_at(view, x, target, layer)
    for candidate in reversed(view.shallow_stages):
        try:
            return _grad_cam_at(view, x, target, candidate)
        except DegenerateLayerError:
            continue
    view.known_pool()
    raise DegenerateLayerError("grad_cam: the model has no layer with a map at which Grad-CAM is defined")


def _grad_cam_at(view: ModelView, x: Tensor, target: int, layer: str) -> Attribution:
    torchray = require_extra("torchray.attribution.grad_cam", "explain")
    ratios: list[float] = []
    pool = view.known_pool()

    def to_saliency(probed: Tensor) -> Tensor:
        assert probed.grad is not None
        maps, grad = (to_nchw(t, pool.input_fmt, pool.num_prefix_tokens) for t in (probed.detach(), probed.grad))
        ratios.append(mean_gradient_ratio(grad))
        if pool.input_fmt == "NLC":
            grid = token_grid(maps.shape[2], *x.shape[-2:])
            maps, grad = maps.reshape(*maps.shape[:2], *grid), grad.reshape(*grad.shape[:2], *grid)
        maps.grad = grad
        return torchray.gradient_to_grad_cam_saliency(maps)

    saliency = torchray.grad_cam(
        view.model,
        view.to_model(x).clone(),
        target,
        saliency_layer=view.stage(layer),
        gradient_to_saliency=to_saliency,
    )
    # Raised out here: an exception inside TorchRay would leave its probe on the model.
    if ratios[0] < DEGENERATE:
        raise DegenerateLayerError(
            f"grad_cam at {layer!r} would show rounding errors: nothing non-linear lies between it and the covariance, "
            f"so its gradients sum to zero ({ratios[0]:.1e}); take an earlier layer, or leave it out"
        )
    return Attribution(saliency[0, 0].detach(), signed=False, layer=layer)


def mean_gradient_ratio(grad: Tensor) -> float:
    """Norm of the gradient (B, C, H, W) averaged over the positions, against its root mean square over them.

    One for no gradient at all: that is an honest zero.
    """
    size = grad.square().sum(dim=1).mean().sqrt()
    return (grad.mean(dim=(2, 3)).norm() / size).item() if size > 0 else 1.0
