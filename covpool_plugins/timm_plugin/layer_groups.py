"""Two groups of layers for timm's layer decay: the classifier, and all the rest.

timm multiplies the learning rate of a parameter by ``layer_decay ** (last group - its group)``. With two groups that is
1 for the classifier and ``layer_decay`` for the rest: the fine-tuning recipes of the papers, which give the classifier
k times the rate of the rest, are ``lr = k * rate`` and ``layer_decay = 1 / k``; and ``layer_decay_no_opt_scale`` above
``layer_decay`` freezes the rest.
"""

from __future__ import annotations

import re


def head_and_rest(classifier: str) -> dict[str, str]:
    """What ``model.group_matcher()`` has to return for these two groups.

    timm numbers the patterns in order, matches them from the start of a parameter's name and puts names without a match
    last. So one pattern is enough: every name that is not the classifier's.

    Args:
        classifier: name of the classifier's module, ``head.fc``.

    Returns:
        The patterns. A model without a classifier (``num_classes=0``) gets one group, and timm warns that layer decay
        has no effect.
    """
    return {"rest": rf"^(?!{re.escape(classifier)}\.)"}
