"""Reading what the original code computes (tests/golden)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

LAYERS = Path(__file__).parents[1] / "golden" / "layers"


@dataclass(frozen=True)
class Golden:
    """One file: its arrays as float64 tensors, and its meta data."""

    name: str
    meta: dict[str, Any]
    arrays: dict[str, Tensor]

    def entries(self, prefix: str) -> dict[str, Tensor]:
        """The arrays whose names begin with the prefix, without it."""
        return {key.removeprefix(prefix): value for key, value in self.arrays.items() if key.startswith(prefix)}

    def step(self, layer: Callable[[Tensor], Tensor], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
        """The input with its gradient, and the output, of a layer for the gradient in the file."""
        x = self.arrays["input"].to(dtype).requires_grad_()
        out = layer(x)
        out.backward(self.arrays["grad_output"].to(dtype).reshape(out.shape))
        return x, out.detach()

    def sensitivity(self, entry: str) -> float:
        """How much the original's own result moves by rounding: no parity test can ask for less."""
        values = self.meta.get("rounding_sensitivity", {}).get(entry) or []
        return max([value for value in values if value is not None], default=0.0)


def load(name: str) -> Golden:
    with np.load(LAYERS / f"{name}.npz") as file:
        meta = json.loads(str(file["meta"]))
        arrays = {key: torch.from_numpy(file[key]).double() for key in file.files if key != "meta"}
    return Golden(name, meta, arrays)


def names(*prefixes: str) -> list[str]:
    """Files whose names begin with one of the prefixes."""
    stems = [path.stem for path in sorted(LAYERS.glob("*.npz")) if path.stem.startswith(prefixes)]
    assert stems, f"no golden file begins with {prefixes}"
    return stems


def sample_errors(result: Tensor, expected: Tensor) -> list[float]:
    """Relative error of each sample in the 2-norm; absolute where nothing is expected."""
    errors = []
    for mine, theirs in zip(result.double(), expected.double(), strict=True):
        norm = theirs.norm()
        errors.append(float((mine - theirs).norm() / (norm if norm > 0 else 1.0)))
    return errors
