"""Log how well the whitening layers of a model whiten."""

from __future__ import annotations

from mmengine.registry import HOOKS
from torch import Tensor, nn

from ..errors import OptionError
from ..whitening.norm import WhiteningNorm
from .measuring_hook import MeasuringHook
from .necks import unwrapped


@HOOKS.register_module()
class WhiteningErrorHook(MeasuringHook):
    """Log how far the output of whitening layers is from white: ``whitening/<name of the layer>/error``.

    For each layer of ``covpool_plugins.whitening`` the distance ‖Σ - I‖ / ‖I‖ of the covariance of its output, before
    the affine map, from the identity; the mean over its groups. It is not zero for what cannot be whitened (fewer
    samples than channels, variances below ``eps``), for an iterative method that has not converged, and for PCA layers.

    Args:
        interval, by_epoch: of :class:`MeasuringHook`.

    Raises:
        OptionError: as :class:`MeasuringHook`.
    """

    topic = "whitening"

    def modules(self, model: nn.Module) -> dict[str, nn.Module]:
        named = unwrapped(model).named_modules()
        layers: dict[str, nn.Module] = {name: layer for name, layer in named if isinstance(layer, WhiteningNorm)}
        if not layers:
            raise OptionError("WhiteningErrorHook: the model has no layer of covpool_plugins.whitening in it")
        return layers

    def measure(self, module: nn.Module, features: Tensor) -> dict[str, Tensor]:
        assert isinstance(module, WhiteningNorm)
        return {"error": module.whitening_error(features).mean()}
