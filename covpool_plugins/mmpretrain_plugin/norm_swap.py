"""A backbone with other normalisation layers in some places."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine import registry as root
from mmpretrain.registry import MODELS
from torch import nn

from ..errors import OptionError
from ..whitening.swap import Rule, swap_norm


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
    return {**rule, "type": root.MODELS.get(rule["type"]) or rule["type"]}
