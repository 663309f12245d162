"""Second-order probes of frozen features, and pretrained weights out of installed packages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .features import Features, cached_features
from .packaged_weights import packaged_weights
from .saving import model_with_probe

if TYPE_CHECKING:
    from .estimator import SecondOrderProbe, list_probe_pools

__all__ = [
    "Features",
    "SecondOrderProbe",
    "cached_features",
    "list_probe_pools",
    "model_with_probe",
    "packaged_weights",
]


def __getattr__(name: str) -> Any:
    """What needs scikit-learn is imported on first use."""
    if name not in ("SecondOrderProbe", "list_probe_pools"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import estimator

    return getattr(estimator, name)
