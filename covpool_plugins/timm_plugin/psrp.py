"""MP+ of moment probing: a small trained module in every block of a frozen backbone.

Source: Gao, Wang, Lin, Zhu, Hu & Zhou, "Tuning Pre-trained Model via Moment Probing", ICCV 2023, section 3.3; where the
module stands in a block is that of the authors' code.
"""

from __future__ import annotations

from typing import Any

from timm.models import convnext, swin_transformer, vision_transformer
from torch import Tensor, nn

from ..errors import OptionError

HIDDEN = 16
PART_OF_KEYS = ".psrp."


class PSRP(nn.Module):
    """Partially shared module of two recalibrating parameters: y becomes b(x) + (1 + w(x)) y.

    With s = ReLU(A x), A from ``dim`` to ``hidden`` channels, w = U_w s and b = U_b s; the three have no bias. U_w and
    U_b begin as zeros, so that a block begins as it is without the module. The channels are last.

    Attributes:
        down: A, ``down.weight`` (hidden, dim).
        up_weight, up_bias: U_w and U_b, (dim, hidden).
    """

    def __init__(self, dim: int, hidden: int = HIDDEN, **factory: Any) -> None:
        super().__init__()
        self.down = nn.Linear(dim, hidden, bias=False, **factory)
        self.up_weight = nn.Linear(hidden, dim, bias=False, **factory)
        self.up_bias = nn.Linear(hidden, dim, bias=False, **factory)
        nn.init.zeros_(self.up_weight.weight)
        nn.init.zeros_(self.up_bias.weight)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        shared = self.down(x).relu()
        return self.up_bias(shared) + (1 + self.up_weight(shared)) * y


class ViTBlock(vision_transformer.Block):
    """timm's block of ViT, with ``psrp`` of what enters the second norm."""

    psrp: PSRP

    def forward(self, x: Tensor, *mask: Any, **masked: Any) -> Tensor:
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), *mask, **masked)))
        return x + self.drop_path2(self.ls2(self.psrp(x, self.mlp(self.norm2(x)))))


class SwinBlock(swin_transformer.SwinTransformerBlock):
    """timm's block of Swin, with ``psrp`` of what enters the second norm."""

    psrp: PSRP

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self._attn(self.norm1(x)))
        return x + self.drop_path2(self.psrp(x, self.mlp(self.norm2(x))))


class ConvNeXtBlock(convnext.ConvNeXtBlock):
    """timm's block of ConvNeXt, with ``psrp`` of the perceptron's output, in front of the layer scale."""

    psrp: PSRP

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv_dw(x)
        if self.use_conv_mlp:
            y = self.mlp(self.norm(y)).permute(0, 2, 3, 1)
        else:
            y = self.mlp(self.norm(y.permute(0, 2, 3, 1)))
        y = self.psrp(y, y).permute(0, 3, 1, 2)
        if self.gamma is not None:
            y = y * self.gamma.reshape(1, -1, 1, 1)
        return self.drop_path(y) + self.shortcut(x)


# Subclasses at the top level of a module: pickle and deepcopy find them.
BLOCKS = {block.__base__: block for block in (ViTBlock, SwinBlock, ConvNeXtBlock)}


def add_psrp(model: nn.Module, name: str, hidden: int = HIDDEN) -> None:
    """Put a ``psrp`` into every block of a timm model, in place.

    Raises:
        OptionError: for a model without blocks of ViT, Swin or ConvNeXt, by its ``name``.
    """
    blocks: list[Any] = [module for module in model.modules() if type(module) in BLOCKS]
    if not blocks:
        raise OptionError(f"psrp=True needs blocks of timm's ViT, Swin or ConvNeXt, which {name!r} has not")
    for block in blocks:
        weight = block.mlp.fc2.weight
        block.psrp = PSRP(len(weight), hidden, device=weight.device, dtype=weight.dtype)
        block.__class__ = BLOCKS[type(block)]
