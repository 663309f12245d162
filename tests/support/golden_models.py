"""Weights, inputs and outputs of the original networks, by the rule of their manifests."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).parents[1] / "golden/models"


def load_models(name: str) -> dict[str, Any]:
    """The manifests in tests/golden/models/NAME.json."""
    return json.loads((FOLDER / f"{name}.json").read_text())["models"]


def _normal(text: str, shape: Sequence[int]) -> np.ndarray:
    return np.random.Generator(np.random.Philox(zlib.crc32(text.encode()))).standard_normal(tuple(shape))


def _rounded(value: Any) -> Tensor:
    return torch.from_numpy(np.asarray(value, dtype=np.float32)).double()


def golden_weight(key: str, shape: Sequence[int]) -> Tensor:
    """The weight of that key of an original state dict, in float64."""
    key = ".".join(part for part in key.split(".") if part != "module")
    leaf, n = key.rpartition(".")[2], _normal(key, shape)
    if leaf == "num_batches_tracked":
        return torch.zeros((), dtype=torch.int64)
    if leaf == "running_var":
        return _rounded(1 + 0.1 * np.abs(n))
    if leaf.startswith("running_subspace"):
        return _rounded(np.eye(shape[-1]) + 0.1 * n / np.sqrt(shape[-1]))
    if leaf == "running_mean" or leaf.endswith("bias") or leaf in ("pos_embed", "cls_token"):
        return _rounded(0.1 * n)
    if leaf != "weight":
        return _rounded(n)
    if len(shape) <= 1 or (len(shape) in (2, 3) and shape[-1] == 1):  # of norms
        return _rounded(1 + 0.1 * n)
    return _rounded(n * np.sqrt((2 if len(shape) >= 4 else 1) / np.prod(shape[1:])))


def golden_input(entry: dict[str, Any]) -> Tensor:
    """The images of a manifest's ``input``, in float64."""
    return _rounded(_normal("input:" + entry["name"], entry["shape"]))


def assert_equal(result: Tensor, stored: dict[str, Any], tolerance: float) -> None:
    """Against the first 20 numbers, the sum and the norm of the original's."""
    result = result.detach().double().flatten()
    assert result.numel() == stored["numel"]
    first = torch.tensor(stored["first20"], dtype=torch.float64)
    assert (result[:20] - first).norm() < tolerance * max(first.norm(), stored["l2"] / stored["numel"] ** 0.5)
    assert abs(float(result.norm()) - stored["l2"]) < tolerance * stored["l2"]
    assert abs(float(result.sum()) - stored["sum"]) < tolerance * stored["l2"] * stored["numel"] ** 0.5


def original_centring(count: int) -> Tensor:
    """The matrix by which the originals centre ``count`` positions, made in float32.

    With fewer positions than channels it leaves an eigenvalue of -1.6e-6 in the direction of the mean, of which the
    originals take the root of the absolute value.
    """
    return (-1 / count / count * torch.ones(count, count) + 1 / count * torch.eye(count)).double()
