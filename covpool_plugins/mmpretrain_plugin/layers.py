"""The matrix square root and the whitening layers as layers of configs, and backbones with them in some places.

Whitening layers are in MMEngine's root registry: ``norm_cfg=dict(type='ZCANorm2d', groups=8)`` works with all backbones
that take a ``norm_cfg``; the name ``covpool_plugins.ZCANorm2d`` works without an import. MMEngine sets ``eps`` to 1e-5
where the config does not.

To MMEngine they are norm layers (``norm_decay_mult``) and no batch norms: ``sync_bn``, ``fuse_conv_bn`` and
``efficient_conv_bn_eval`` skip them (they synchronise their statistics themselves), and ``norm_eval`` and
``PreciseBNHook`` do not apply to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.registry import MODELS as ROOT_MODELS
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ..errors import OptionError
from ..linalg import Method, resolve_method, sqrtm
from ..whitening import PCANorm1d, PCANorm2d, PCANorm3d, ZCANorm1d, ZCANorm2d, ZCANorm3d
from ..whitening.swap import Rule, swap_norm

for layer in (PCANorm1d, PCANorm2d, PCANorm3d, ZCANorm1d, ZCANorm2d, ZCANorm3d):
    ROOT_MODELS.register_module(module=layer)


@ROOT_MODELS.register_module()
class MatrixSqrt(nn.Module):
    """Square root of symmetric positive semi-definite matrices (..., C, C), see :func:`covpool_plugins.linalg.sqrtm`.

    Args:
        method: name or object of the method, one of ``covpool_plugins.linalg.list_methods('sqrtm')``.
        options: of the method, for example ``iterations=7``.

    Raises:
        UnknownNameError, OptionError: when built with a method or an option that does not exist.
        ShapeError, DtypeError: in ``forward``, for anything but square floating point matrices.
    """

    def __init__(self, method: str | Method = "svdpade", **options: Any) -> None:
        super().__init__()
        self.method = resolve_method(method, **options)

    def forward(self, A: Tensor) -> Tensor:
        """The roots (..., C, C) of matrices (..., C, C), of which only the symmetric part counts."""
        return sqrtm(A, self.method)

    def extra_repr(self) -> str:
        return str(self.method)


@MODELS.register_module()
def NormSwap(backbone: dict[str, Any], rules: Mapping[str, Rule]) -> nn.Module:
    """Build a backbone and replace some of its batch norms, see :func:`covpool_plugins.whitening.swap_norm`.

    The papers whiten after the first convolution of the first residual block only, which ``norm_cfg`` cannot express:

        backbone=dict(
            type='covpool_plugins.NormSwap',
            backbone=dict(type='ResNet_CIFAR', depth=18),
            rules={'layer1.0.bn1': dict(type='ZCANorm2d', groups=16)},
        )

    The result is the backbone itself, not a wrapper: keys of checkpoints and ``init_cfg`` stay the same. It works for
    backbones without ``norm_cfg`` too (``TIMMBackbone``).

    Args:
        backbone: config of the backbone.
        rules: from a regular expression for the whole name of a layer to the config of its replacement, whose
            ``type`` is the name of a normalisation layer known to MMEngine. Avoid backslashes (``[0-9]`` instead of
            ``\\d``): MMEngine does not escape them in its copy of the config.

    Returns:
        The backbone.

    Raises:
        OptionError: for rules that do not fit the backbone.
    """
    if not isinstance(rules, Mapping):
        raise OptionError(f"rules must be dict({{pattern: dict(type=…)}}), got {rules!r}")
    return swap_norm(MODELS.build(backbone), {pattern: _with_class(rule) for pattern, rule in rules.items()})


def _with_class(rule: Rule) -> Rule:
    """The rule with the class that MMEngine has registered under its name, if there is one."""
    if not isinstance(rule, Mapping) or not isinstance(rule.get("type"), str):
        return rule
    return {**rule, "type": ROOT_MODELS.get(rule["type"]) or rule["type"]}
