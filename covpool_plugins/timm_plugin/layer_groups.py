"""Two groups of layers for timm's layer decay: some parameters, and all the rest.

timm multiplies the learning rate of a parameter by ``layer_decay ** (last group - its group)``. With two groups that is
1 for those parameters and ``layer_decay`` for the rest: the fine-tuning recipes of the papers, which give the
classifier k times the rate of the rest, are ``lr = k * rate`` and ``layer_decay = 1 / k``; and
``layer_decay_no_opt_scale`` above ``layer_decay`` freezes the rest.
"""

from __future__ import annotations

# The classifier; or all that a pretrained backbone does not bring.
LAYER_GROUPS = (None, "head", "new")


def apart_from_rest(pattern: str) -> dict[str, str]:
    """What ``model.group_matcher()`` has to return for these two groups.

    timm numbers the patterns in order, matches them from the start of a parameter's name and puts names without a match
    last. So one pattern is enough: every name that does not begin like this.

    Args:
        pattern: how the names of the parameters begin that learn fastest, ``head\\.fc\\.``.

    Returns:
        The patterns. A model without such parameters (``num_classes=0``) gets one group, and timm warns that layer
        decay has no effect.
    """
    return {"rest": f"^(?!{pattern})"}
