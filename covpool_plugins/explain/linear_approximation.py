"""Activation times gradient at a layer, by TorchRay."""

from __future__ import annotations

from torch import Tensor

from ..errors import NotApplicableError
from .backprop import disposable, saliency
from .methods import METHODS, Attribution
from .model_view import ModelView


@METHODS.register("linear_approx")
def linear_approx(view: ModelView, x: Tensor, target: int, *, layer: str | None = None) -> Attribution:
    """Activation times gradient, summed over the channels, on the grid of a layer (H, W).

    Unlike Grad-CAM it does not average the gradient over the positions, so that it is also defined right in front of a
    centred covariance. It is not blind to a constant added to the features there, as the covariance is; the method
    ``contribution`` is.

    Args:
        view: the model.
        x: input (1, 3, H, W).
        target: the class.
        layer: name of a stage of the view; the default is the last map of the backbone.

    Raises:
        UnknownNameError: for an unknown layer.
        OptionError: for a model without a pool that we know.
        NotApplicableError: for a model without a layer that can be probed, where none is named.

    Source: Kindermans et al., "Investigating the influence of noise and distractors on the interpretation of neural
    networks", NIPS workshop 2016; at a layer: Olah et al., "The Building Blocks of Interpretability", Distill 2018.
    """
    layer = last_layer(view, "linear_approx") if layer is None else layer
    return Attribution(saliency("linear_approx", disposable(view), x, target, layer), signed=True, layer=layer)


def last_layer(view: ModelView, method: str) -> str:
    """The last map of the backbone.

    Raises:
        OptionError: for a model without a pool that we know.
        NotApplicableError: for one without a layer that can be probed.
    """
    view.known_pool()
    if not view.shallow_stages:
        raise NotApplicableError(f"{method}: the model has no layer with a map that can be probed")
    return view.shallow_stages[-1]
