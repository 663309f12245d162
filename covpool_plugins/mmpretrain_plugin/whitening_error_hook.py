"""How well a model's whitening layers whiten, in the log of its training."""

from __future__ import annotations

from mmengine.registry import HOOKS
from torch import Tensor, nn

from ..errors import OptionError
from ..whitening.norm import WhiteningNorm
from .measuring_hook import MeasuringHook
from .necks import unwrapped


@HOOKS.register_module()
class WhiteningErrorHook(MeasuringHook):
    """Log how far the output of whitening layers is from white, every so many iterations.

    For each layer of ``covpool_plugins.whitening`` in the model the log, ``scalars.json`` and TensorBoard get
    ``whitening/<name of the layer>/error``: the distance ‖Σ - I‖ / ‖I‖ of the covariance of its output, before the
    affine map, from the identity; the mean over its groups. It is not zero for what cannot be whitened (fewer samples
    than channels, variances below ``eps``), for an iterative method that has not converged, and for PCA layers.

    Of an iteration's input, on the first process of a distributed training. Training is the same to the last
    bit with and without this hook. The log repeats the latest values until there are new ones; give it the interval of
    the logger, or a multiple.

    Args:
        interval: iterations between two measurements.
        by_epoch: count epochs instead, and measure in the first iteration of one.

    Raises:
        OptionError: when built with an option out of its range; before training for a model without whitening
            layers, and for ``by_epoch`` with a loop that does not count epochs.
    """

    topic = "whitening"
    unseen = "layers not seen in the model"

    def __init__(self, interval: int = 100, by_epoch: bool = False) -> None:
        super().__init__(interval, by_epoch)

    def modules(self, model: nn.Module) -> dict[str, nn.Module]:
        named = unwrapped(model).named_modules()
        found: dict[str, nn.Module] = {name: module for name, module in named if isinstance(module, WhiteningNorm)}
        if not found:
            raise OptionError("WhiteningErrorHook: the model has no layer of covpool_plugins.whitening in it")
        return found

    def measure(self, module: nn.Module, features: Tensor) -> dict[str, Tensor]:
        assert isinstance(module, WhiteningNorm)
        return {"error": module.whitening_error(features).mean()}
