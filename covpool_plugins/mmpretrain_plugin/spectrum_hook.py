"""The spectra of the covariances that a model pools, in the log of its training."""

from __future__ import annotations

from mmengine.registry import HOOKS
from torch import Tensor, nn

from ..pooling import Pool, Spectrum
from .measuring_hook import MeasuringHook
from .necks import find_neck, pools_of


@HOOKS.register_module()
class SpectrumHook(MeasuringHook):
    """Log how the covariances in the neck are conditioned, every so many iterations.

    For stage i of the neck the log, ``scalars.json`` and TensorBoard get ``spectrum/neck<i>/…``

    * ``condition_number``: largest over smallest eigenvalue that can be told from zero, median over the batch;
    * ``effective_rank``: exp of the entropy of the eigenvalues, mean over the batch;
    * ``largest_eigenvalue`` and ``smallest_eigenvalue`` of those that can be told from zero, medians over the batch.

    They are of the features that the neck pools in that iteration, on the first process of a distributed training.
    Training is the same to the last bit with and without this hook. The log repeats the latest values until
    there are new ones; give it the interval of the logger, or a multiple.

    Args:
        interval: iterations between two measurements.
        by_epoch: count epochs instead, and measure in the first iteration of one.
        neck: which part of the model pools.

    Source: Roy & Vetterli, "The Effective Rank: A Measure of Effective Dimensionality", EUSIPCO 2007.

    Raises:
        OptionError: when built with an option out of its range; before training for a model without a neck that
            pools, and for ``by_epoch`` with a loop that does not count epochs.
    """

    topic = "spectrum"

    def __init__(self, interval: int = 100, by_epoch: bool = False, neck: str = "neck") -> None:
        super().__init__(interval, by_epoch)
        self.neck = neck
        self.unseen = f"stages not seen in the {neck}"

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
