"""Test-time augmentation that works together with hooks."""

from __future__ import annotations

from typing import Any

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.registry import MODELS

MIRROR_IMAGES = [dict(type="RandomFlip", prob=prob) for prob in (0.0, 1.0)]


class AugmentedTestHook(Hook):
    """Wrap the model for the time of a test, so that the predictions for all views of a picture are merged.

    MMPretrain's own tool wraps the model when it is built: hooks then do not find the parts of the model and the
    averaged weights, whose names have changed.

    Args:
        merge: config of the model that merges, one of MMEngine's ``BaseTTAModel``.
    """

    priority = "LOWEST"  # other hooks see the model itself

    def __init__(self, merge: dict[str, Any]) -> None:
        self.merge = merge

    def before_test_epoch(self, runner: Runner) -> None:
        self._model = runner.model
        runner.model = MODELS.build(dict(self.merge, module=runner.model)).eval()

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        runner.model = self._model


def augment_test(cfg: Config) -> AugmentedTestHook:
    """Write the pipeline into a config: its own ``tta_pipeline``, or one with mirror images.

    Returns:
        The hook that the run needs; it merges by the config's ``tta_model``, or by the mean of the scores.
    """
    data_set = cfg.test_dataloader.dataset
    if cfg.get("tta_pipeline") is None:
        *before, pack = data_set.pipeline
        cfg.tta_pipeline = [*before, dict(type="TestTimeAug", transforms=[MIRROR_IMAGES, [pack]])]
    data_set.pipeline = cfg.tta_pipeline
    return AugmentedTestHook(cfg.get("tta_model") or dict(type="AverageClsScoreTTA"))
