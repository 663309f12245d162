"""So-ViT for MMPretrain: the network up to its normalised tokens as a backbone, and its two classifiers as a head."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from mmpretrain.models.backbones.base_backbone import BaseBackbone
from mmpretrain.models.heads import ClsHead
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ..architectures import SO_VITS, SoViTSettings, TokenHead
from ..architectures import SoViT as Network
from ..checks import check_choice, check_flag, check_integer, check_known
from ..errors import ShapeError, UnknownNameError
from .active_method import adopt_method
from .covariance_pooling import check_method

OUT_TYPES = ("raw", "cls_token", "featmap", "avg_featmap")
SETTINGS = tuple(name for name in SoViTSettings._fields if name != "reduce_channels")  # that is the head's


@MODELS.register_module()
class SoViT(Network, BaseBackbone):
    """The network of :class:`covpool_plugins.architectures.SoViT` without its head, with the same keys.

    Args:
        arch: ``7``, ``10``, ``14``, ``19``, or a dictionary of ``embed_dim``, ``depth``, ``num_heads``, ``mlp_ratio``.
        img_size: height and width of the images, or one number for both.
        in_channels: channels of the images.
        out_type: ``raw``, the tokens (B, 1 + N, C), class token first; ``cls_token`` (B, C); ``featmap`` (B, C, H, W);
            ``avg_featmap`` (B, C).
        drop_rate: dropout of the tokens and of what the linear layers of the blocks give.
        drop_path_rate: stochastic depth of the last block; it grows from zero in equal steps.
        with_cp: recompute the blocks in the backward pass instead of keeping their inner features.
        init_cfg: MMEngine's initialisation config.

    Raises:
        UnknownNameError, OptionError: for an argument out of its range.
        ShapeError: in ``forward``, for images of another size.
    """

    def __init__(
        self,
        arch: str | dict[str, Any] = "7",
        img_size: int | Sequence[int] = 224,
        in_channels: int = 3,
        out_type: str = "raw",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        with_cp: bool = False,
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
    ) -> None:
        check_choice("SoViT: out_type", out_type, OUT_TYPES)
        check_flag("SoViT: with_cp", with_cp)
        super().__init__(
            num_classes=0,
            global_pool="",
            in_chans=in_channels,
            img_size=img_size,
            pos_drop_rate=drop_rate,
            proj_drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            **_settings(arch),
        )
        self.init_cfg = copy.deepcopy(init_cfg)
        self.out_type = out_type
        self.set_grad_checkpointing(with_cp)

    def init_weights(self) -> None:
        """Initialise by ``init_cfg``, if there is one, as MMEngine's modules do."""
        BaseBackbone.init_weights(self)

    def forward(self, x: Tensor) -> tuple[Tensor]:  # type: ignore[override]
        """A tuple of one tensor, see ``out_type``, for images (B, in_channels, H, W)."""
        tokens = self.forward_features(x)
        if self.out_type == "raw":
            return (tokens,)
        if self.out_type == "cls_token":
            return (tokens[:, 0],)
        if self.out_type == "avg_featmap":
            return (tokens[:, 1:].mean(dim=1),)
        return (self.to_maps(tokens[:, 1:]),)

    def train(self, mode: bool = True) -> SoViT:
        super().train(mode)
        return self


def _settings(arch: str | dict[str, Any]) -> dict[str, Any]:
    if isinstance(arch, dict):
        check_known("SoViT: arch", arch, SETTINGS)
        return dict(arch)
    arch = str(arch)
    if arch not in SO_VITS:
        raise UnknownNameError("So-ViT", arch, SO_VITS)
    settings = SO_VITS[arch]._asdict()
    return {name: settings[name] for name in SETTINGS}


@MODELS.register_module()
class SoViTHead(ClsHead):
    """Logits of the second-order pooled visual tokens plus those of the class token.

    Takes the raw tokens (B, 1 + N, in_channels), class token first, of :class:`SoViT` or another transformer. Keys are
    those of timm's ``so_vit_7`` of this package.

    Args:
        num_classes: number of classes.
        in_channels: channels of the tokens.
        pool: name of the pool, one of :func:`covpool_plugins.list_pools`.
        reduce_channels: of the pool, see :func:`covpool_plugins.architectures.create_token_pool`; ``None`` to keep all.
        drop_rate: dropout of the pooled vector.
        loss, topk, cal_acc, init_cfg: of ``ClsHead``.
        options: of the pool and of its matrix method, for example ``iterations=3``.

    Raises:
        UnknownNameError, OptionError: when built with a pool or an option that does not exist.
        ShapeError: in ``forward``, for anything but tokens of ``in_channels`` channels.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        pool: str = "mpa",
        reduce_channels: int | Sequence[int] | None = SO_VITS["7"].reduce_channels,
        drop_rate: float = 0.0,
        loss: dict[str, Any] | nn.Module | None = None,
        topk: int | tuple[int, ...] = (1,),
        cal_acc: bool = False,
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
        **options: Any,
    ) -> None:
        check_integer("SoViTHead: num_classes", num_classes)
        check_integer("SoViTHead: in_channels", in_channels)
        loss = dict(type="CrossEntropyLoss", loss_weight=1.0) if loss is None else loss
        super().__init__(loss=loss, topk=topk, cal_acc=cal_acc, init_cfg=init_cfg)
        self.num_classes = num_classes
        self.in_channels = in_channels
        check_method(pool, options)
        head = TokenHead(in_channels, num_classes, pool, reduce_channels, options, drop_rate)
        self.pool, self.dropout, self.fc, self.cls_fc = head.pool, head.dropout, head.fc, head.cls_fc
        self.register_load_state_dict_pre_hook(adopt_method)  # of a run with SwitchMethodHook

    def pre_logits(self, feats: Tensor | Sequence[Tensor]) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """The pooled vector and the class token, (B, D) each, that the two classifiers take."""
        tokens = feats if isinstance(feats, Tensor) else feats[-1]
        if tokens.ndim != 3 or tokens.shape[2] != self.in_channels:
            raise ShapeError(
                f"SoViTHead: expected tokens (B, N, {self.in_channels}), got {tuple(tokens.shape)}; "
                "a backbone gives them with out_type='raw'"
            )
        return self.dropout(self.pool(tokens)), tokens[:, 0]

    def forward(self, feats: Tensor | Sequence[Tensor]) -> Tensor:
        """Logits (B, num_classes) for the tokens of a backbone, or for the last of a tuple of them."""
        vector, token = self.pre_logits(feats)
        logits: Tensor = torch.add(self.fc(vector), self.cls_fc(token))
        return logits
