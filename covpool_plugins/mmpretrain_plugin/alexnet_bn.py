"""AlexNet with batch norm as an MMPretrain backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmpretrain.models.backbones.base_backbone import BaseBackbone
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ..architectures import AlexNet
from ..checks import check_flag, is_integer
from ..errors import OptionError


@MODELS.register_module()
class AlexNetBN(BaseBackbone):
    """The convolutions of :class:`covpool_plugins.architectures.AlexNet`; 256 channels at 13x13 positions for 224x224.

    Its keys are those of timm's ``alexnet`` of this package (``layer1.conv.weight``, ...), without the classifier.

    Args:
        in_channels: channels of the images.
        batch_norm: ``False`` leaves it out, as in fast-MPN-COV.
        out_indices: stages whose maps are returned, from 0 to 4 or negative from the end; the last by default.
        frozen_stages: stages up to this one keep their weights and their statistics; -1 for none.
        norm_eval: batch norms keep their statistics while training.
        init_cfg: MMEngine's initialisation config.

    Raises:
        OptionError: for a stage that does not exist.
    """

    def __init__(
        self,
        in_channels: int = 3,
        batch_norm: bool = True,
        out_indices: int | Sequence[int] = (-1,),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        network = AlexNet(num_classes=0, in_chans=in_channels, global_pool="", batch_norm=batch_norm)
        self.stages = [name for (name,) in network.stages]
        for name in self.stages:
            self.add_module(name, network.get_submodule(name))
        count = len(self.stages)
        indices = [out_indices] if isinstance(out_indices, int) else list(out_indices)
        for index in indices:
            if not (is_integer(index, -count) and index < count):
                raise OptionError(f"AlexNetBN: out_indices must be stages from {-count} to {count - 1}, got {index!r}")
        if not (is_integer(frozen_stages, -1) and frozen_stages < count):
            raise OptionError(f"AlexNetBN: frozen_stages must be a stage from -1 to {count - 1}, got {frozen_stages!r}")
        check_flag("AlexNetBN: norm_eval", norm_eval)
        self.out_indices = sorted({index % count for index in indices})
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self._freeze()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Maps (B, C, H, W) of the stages of ``out_indices`` for images (B, in_channels, H, W)."""
        maps = []
        for index, name in enumerate(self.stages):
            x = self.get_submodule(name)(x)
            if index in self.out_indices:
                maps.append(x)
        return tuple(maps)

    def train(self, mode: bool = True) -> AlexNetBN:
        super().train(mode)
        self._freeze()
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def _freeze(self) -> None:
        for name in self.stages[: self.frozen_stages + 1]:
            stage = self.get_submodule(name)
            stage.eval()
            for parameter in stage.parameters():
                parameter.requires_grad = False
