"""The base of the convolutional networks: head, intermediate features and the methods timm expects of a model."""

# No postponed annotations: what torch.fx traces is scripted with the annotations as they are.

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..checks import check_choice, check_classes, check_integer, check_number
from ..errors import OptionError

GLOBAL_POOLS = ("avg", "")


class GlobalPool(nn.Module):
    """Maps (B, C, H, W) to their means (B, C), or with ``pool_type=''`` to themselves."""

    def __init__(self, pool_type: str) -> None:
        super().__init__()
        self.pool_type = pool_type
        self.unpooled = not pool_type  # TorchScript knows no truth value of a string

    def forward(self, x: Tensor) -> Tensor:
        return x if self.unpooled else x.mean(dim=(2, 3))

    def extra_repr(self) -> str:
        return f"pool_type={self.pool_type!r}"


class Backbone(nn.Module):
    """A network of stages, global pooling and a linear classifier ``fc``; it behaves like a timm model.

    A subclass builds its modules, then calls :meth:`init_weights` and :meth:`reset_classifier`, and writes
    ``forward_features`` and ``group_matcher``.

    Args:
        in_chans: channels of the images.
        drop_rate: dropout before the classifier.
        feature_info: for every stage its channels, its stride and the module that gives its features.

    Attributes:
        stages: names of the modules of every stage, in order; the first stage is the stem.
        num_features: channels of the last map.
        head_hidden_size: width of what enters the classifier.
        grad_checkpointing: recompute the blocks behind the stem in the backward instead of keeping their inner
            features; batch norm then sees a batch twice, as in timm.

    Raises:
        OptionError: for an argument out of its range.
    """

    stages: tuple[tuple[str, ...], ...] = ()

    def __init__(self, in_chans: int, drop_rate: float, feature_info: list[dict[str, Any]]) -> None:
        super().__init__()
        check_integer("in_chans", in_chans)
        check_number("drop_rate", drop_rate, "[0, 1]")
        self.in_chans = in_chans
        self.drop_rate = float(drop_rate)
        self.feature_info = feature_info
        self.num_features = self.head_hidden_size = int(feature_info[-1]["num_chs"])
        self.grad_checkpointing = False

    @torch.jit.ignore
    def init_weights(self) -> None:
        """He initialisation of the convolutions; biases start at zero."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of the parameters of the stem and of every block, for layer-wise learning rates."""
        raise NotImplementedError

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay should leave alone, beyond biases and norms: none."""
        return set()

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Switch gradient checkpointing on or off."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self, name_only: bool = False) -> nn.Module | str:
        """The classifier, or its name."""
        return "fc" if name_only else self.fc

    @torch.jit.ignore
    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """New classifier on the device and in the dtype of the weights.

        Args:
            num_classes: outputs; 0 returns the pooled vector.
            global_pool: ``avg``, or the empty string for the unpooled map, which needs ``num_classes=0``; ``None``
                keeps what is there.

        Raises:
            OptionError: for anything else.
        """
        pool_type = self.global_pool.pool_type if global_pool is None else global_pool
        if pool_type not in GLOBAL_POOLS:
            raise OptionError(f"global_pool must be 'avg' or '', got {pool_type!r}")
        check_classes(num_classes, pool_type)
        weight = next(self.parameters())
        self.num_classes = num_classes
        self.global_pool: GlobalPool = GlobalPool(pool_type)
        self.fc: nn.Module = nn.Identity()
        if num_classes:
            self.fc = nn.Linear(self.num_features, num_classes, device=weight.device, dtype=weight.dtype)
        self.global_pool.train(self.training)
        self.fc.train(self.training)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The features of some stages.

        Args:
            x: images (B, in_chans, H, W).
            indices: stages, negative ones from the end; an integer for that many last ones; all by default.
            norm: without effect: no norm follows the stages.
            stop_early: do not compute the stages behind the last one chosen.
            output_fmt: ``NCHW`` only.
            intermediates_only: return just the list.

        Returns:
            The last features computed and the list of the chosen ones, in the order of the stages.

        Raises:
            OptionError: for a stage that does not exist, or another ``output_fmt``.
        """
        check_choice("output_fmt", output_fmt, ("NCHW",))
        chosen = self._stage_indices(indices)
        intermediates = []
        for index in range(max(chosen) + 1 if stop_early else len(self.stages)):
            x = self._run_stage(index, x)
            if index in chosen:
                intermediates.append(x)
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the stages behind the last one chosen, and the classifier; return the chosen ones counted from 0."""
        chosen = self._stage_indices(indices)
        last = max(chosen)
        for names in self.stages[last + 1 :]:
            for name in names:
                setattr(self, name, nn.Identity())
        self.num_features = self.head_hidden_size = int(self.feature_info[last]["num_chs"])
        if prune_head or last + 1 < len(self.stages):
            self.reset_classifier(0, "")
        return chosen

    def _stage_indices(self, indices: int | Sequence[int] | None) -> list[int]:
        count = len(self.stages)
        if indices is None:
            return list(range(count))
        if isinstance(indices, int):
            if not 0 < indices <= count:
                raise OptionError(f"indices must be 1 to {count} last stages or a list of stages, got {indices}")
            return list(range(count - indices, count))
        wrong = [index for index in indices if not -count <= index < count]
        if wrong or not indices:
            raise OptionError(f"indices must be stages from {-count} to {count - 1}, got {list(indices)}")
        return [index % count for index in indices]

    def _run_stage(self, index: int, x: Tensor) -> Tensor:
        for name in self.stages[index]:
            module = getattr(self, name)
            if not self.grad_checkpointing or index == 0:
                x = module(x)
                continue
            for block in module if isinstance(module, nn.Sequential) else (module,):
                x = checkpoint(block, x, use_reentrant=False)  # type: ignore[assignment]
        return x

    def _run_stages(self, x: Tensor) -> Tensor:
        for index in range(len(self.stages)):
            x = self._run_stage(index, x)
        return x

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) to the last map (B, num_features, H', W')."""
        raise NotImplementedError

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last map to the logits (B, num_classes), or to what enters the classifier."""
        x = self.global_pool(x)
        if self.drop_rate > 0.0:
            x = F.dropout(x, p=self.drop_rate, training=self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))
