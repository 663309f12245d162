"""Any timm model as an MMPretrain backbone, with frozen stages and layer-wise learning rates."""

from __future__ import annotations

from typing import Any

from mmpretrain.models.backbones import TIMMBackbone as Base
from timm.models import group_parameters
from torch.nn.modules.batchnorm import _BatchNorm

from ..checks import check_flag, is_integer
from ..errors import OptionError


class TIMMBackbone(Base):
    """MMPretrain's ``TIMMBackbone`` with what its own backbones can do besides; its keys are the same.

    ``type='covpool_plugins.TIMMBackbone'`` needs no import for the networks that timm lacks, such as ``alexnet``,
    ``so_vit_7`` and ``sot_small``. Layers are those of timm's own layer decay;
    ``LearningRateDecayOptimWrapperConstructor`` asks for their depth.

    Args:
        model_name: name of the timm model.
        frozen_stages: the stem and so many stages or blocks after it keep their weights and their statistics; 0 for
            the stem, -1 for nothing.
        norm_eval: batch norms keep their statistics while training.
        with_cp: recompute blocks in the backward pass instead of keeping their inner features.
        options: of MMPretrain's ``TIMMBackbone`` and of the timm model, for example ``pretrained=True``.

    Raises:
        OptionError: for an option out of its range.
    """

    def __init__(
        self, model_name: str, frozen_stages: int = -1, norm_eval: bool = False, with_cp: bool = False, **options: Any
    ) -> None:
        check_flag("TIMMBackbone: norm_eval", norm_eval)
        check_flag("TIMMBackbone: with_cp", with_cp)
        super().__init__(model_name, **options)
        self.frozen_stages, self.norm_eval = frozen_stages, norm_eval
        if with_cp:
            self.timm_model.set_grad_checkpointing(True)
        stages = self._layers(coarse=True) if frozen_stages != -1 else {}
        last = max(stages.values(), default=0)
        if not is_integer(frozen_stages, -1) or frozen_stages > last:
            raise OptionError(
                f"TIMMBackbone: frozen_stages of {model_name} is from -1 to {last}, got {frozen_stages!r}"
            )
        for name, parameter in self.timm_model.named_parameters():
            if stages and stages[name] <= frozen_stages:
                parameter.requires_grad = False
        self.train()

    def train(self, mode: bool = True) -> TIMMBackbone:
        super().train(mode)
        for module in self.timm_model.modules():
            trained = [weight.requires_grad for weight in module.parameters()]
            if (trained and not any(trained)) or (self.norm_eval and isinstance(module, _BatchNorm)):
                module.eval()
        return self

    def get_layer_depth(self, param_name: str, prefix: str = "") -> tuple[int, int]:
        """The layer of a parameter and the number of layers; what is not in this backbone is in the last one."""
        layers = self._layers(coarse=False)
        after = max(layers.values()) + 1
        return layers.get(param_name.removeprefix(f"{prefix}timm_model."), after), after + 1

    def _layers(self, coarse: bool) -> dict[str, int]:
        matcher = getattr(self.timm_model, "group_matcher", None)
        if matcher is None:
            raise OptionError(f"{type(self.timm_model).__name__} has no layers to count: use features_only=False")
        layers: dict[str, int] = group_parameters(self.timm_model, matcher(coarse=coarse), reverse=True)
        return layers
