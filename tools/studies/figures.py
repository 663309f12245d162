"""Numbers and plots of the studies."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from covpool_plugins.errors import require_extra
from covpool_plugins.files import write_atomically


def number(value: float) -> str:
    """Two digits from 0.01 to 100, one digit and an exponent elsewhere."""
    if not math.isfinite(value):
        return str(value)
    if value == 0 or 0.01 <= abs(value) < 99.5:
        return f"{value:#.2g}".rstrip(".")
    mantissa, exponent = f"{value:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def mean_and_spread(values: Sequence[float], sign: str = "") -> str:
    """Mean ± standard deviation, with one digit."""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.1f}{spread}" if values else "-"


def mean_and_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Mean, and half the width of its 95 % interval (t distribution); nothing for fewer than two values.

    Of differences over folds the interval is a guide: folds share training pictures.
    """
    if len(values) < 2:
        return None
    quantile = float(require_extra("scipy.stats", "probe").t.ppf(0.975, len(values) - 1))
    return statistics.mean(values), quantile * statistics.stdev(values) / len(values) ** 0.5


def shown_interval(pair: tuple[float, float] | None) -> str:
    """A mean and its interval, with a sign and one digit."""
    return "-" if pair is None else f"{pair[0]:+.1f} ± {pair[1]:.1f}"


def new_figure(width: float, height: float) -> Any:
    """A matplotlib figure.

    Raises:
        MissingExtraError: without matplotlib.
    """
    return require_extra("matplotlib.figure", "explain").Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Any, path: Path) -> None:
    """A matplotlib figure as what the suffix of the path says."""
    write_atomically(path, lambda file: figure.savefig(file, format=path.suffix[1:], dpi=130))
