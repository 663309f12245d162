"""What a test over all explanation methods needs to know of them."""

from __future__ import annotations

from typing import Any

# Options with which a method that takes many passes is fast.
CHEAP: dict[str, dict[str, Any]] = {
    "rise": {"masks": 20},
    "extremal_perturbation": {"iterations": 5},
    "maximal_image": {"iterations": 3},
    "inverse_image": {"iterations": 3},
}
# The pool that a method has a meaning for, where that is not every square root of a covariance.
POOL_OF = {"democratic_weights": "democratic"}
# Methods that average pooling has no answer to.
SECOND_ORDER = {"democratic_weights", "eigen", "energy", "channel_pairs"}
