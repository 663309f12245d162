"""Where timm itself would say too little: names that are not registered, pooling at test time.

Both are functions that timm looks up by name and that nothing else lets a plugin reach; they are replaced by ones that
raise a readable error first.
"""

from __future__ import annotations

import difflib

from timm.layers import test_time_pool
from timm.models import _factory, is_model, split_model_name_tag
from torch import nn

from ..errors import OptionError
from .head import list_heads
from .subclass import SECOND_ORDER_NAMES


class UnknownModelError(OptionError, RuntimeError):
    """A name like ``resnet10t_isqrt`` that is not registered; timm raises ``RuntimeError`` for those."""


def suggest_spelling(name: str) -> None:
    """Raise if a name that is no backbone reads ``<backbone>_<head>``, or nearly so, and say how to get that model.

    Raises:
        UnknownModelError: with the spelling for Python and that for scripts.
    """
    for head in sorted(list_heads(), key=len, reverse=True):
        backbone = name.removesuffix(f"_{head}")
        if backbone != name and is_model(backbone) and backbone not in SECOND_ORDER_NAMES:
            what = "a backbone with a head already" if name in SECOND_ORDER_NAMES else "not registered"
            raise UnknownModelError(
                f"{name!r} is {what}: covpool_plugins.create_model({backbone!r}, head={head!r}), or in scripts "
                f"--model second_order --model-kwargs backbone={backbone} head={head}"
            )
    close = difflib.get_close_matches(name, SECOND_ORDER_NAMES, n=1, cutoff=0.9)
    if close and name not in SECOND_ORDER_NAMES:
        raise UnknownModelError(f"unknown model {name!r}; did you mean {close[0]!r}?")


def _is_model(name: str) -> bool:
    if not is_model(name):
        suggest_spelling(split_model_name_tag(name)[0])
    return is_model(name)


class _TestTimePoolHead(test_time_pool.TestTimePoolHead):
    def __init__(self, base: nn.Module, original_pool: int = 7) -> None:
        width = getattr(base.get_classifier(), "in_features", base.num_features)  # type: ignore[operator]
        if width != base.num_features:
            raise OptionError(
                f"--test-pool classifies single positions of {base.num_features} channels, and this model classifies "
                f"vectors of {width}: leave it out, for the model takes pictures of any size as it is"
            )
        super().__init__(base, original_pool)


_factory.is_model = _is_model  # type: ignore[assignment]  # asked before "Unknown model"
test_time_pool.TestTimePoolHead = _TestTimePoolHead  # type: ignore[misc]  # built by apply_test_time_pool
