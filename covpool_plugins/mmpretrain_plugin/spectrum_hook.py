"""Log the spectra of the covariances that a model pools."""

from __future__ import annotations

from mmengine.registry import HOOKS
from torch import Tensor, nn

from ..pooling import Pool, Spectrum
from .measuring_hook import MeasuringHook
from .necks import find_neck, pools_of


@HOOKS.register_module()
class SpectrumHook(MeasuringHook):
    """Log how the covariances in the neck are conditioned: ``spectrum/neck<i>/…`` for stage i.

    * ``condition_number``: largest over smallest eigenvalue that can be told from zero, median over the batch;
    * ``effective_rank``: exp of the entropy of the eigenvalues, mean over the batch;
    * ``largest_eigenvalue`` and ``smallest_eigenvalue`` of those that can be told from zero, medians over the batch.

    Args:
        interval, by_epoch: of :class:`MeasuringHook`.
        neck: name of the part of the model that pools.

    Raises:
        OptionError: as :class:`MeasuringHook`.

    Source: Roy & Vetterli, "The Effective Rank: A Measure of Effective Dimensionality", EUSIPCO 2007.
    """

    topic = "spectrum"

    def __init__(self, interval: int = 100, by_epoch: bool = False, neck: str = "neck") -> None:
        super().__init__(interval, by_epoch)
        self.neck = neck

    def modules(self, model: nn.Module) -> dict[str, nn.Module]:
        return {f"neck{stage}": pool for stage, pool in enumerate(pools_of(find_neck(model, self.neck)))}

    def measure(self, module: nn.Module, features: Tensor) -> dict[str, Tensor]:
        assert isinstance(module, Pool)
        return summary(module.spectrum(features))


def summary(spectrum: Spectrum) -> dict[str, Tensor]:
    """Numbers for a batch, as 0-dimensional tensors; NaN if a covariance of the batch is not finite."""
    last = (spectrum.rank - 1).clamp_min(0).unsqueeze(-1)
    return {
        "condition_number": spectrum.condition_number.median(),
        "effective_rank": spectrum.effective_rank.mean(),
        "largest_eigenvalue": spectrum.eigenvalues[:, 0].median(),
        "smallest_eigenvalue": spectrum.eigenvalues.gather(-1, last).median(),
    }
