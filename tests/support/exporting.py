"""What the tests of compiling and exporting share."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn


def parametrize_names(fast: Iterable[str], among: Iterable[str]) -> Any:
    """Parametrised over names, of which all but the fast ones are slow."""
    marks: dict[str, Any] = {name: () if name in fast else pytest.mark.slow for name in among}
    return pytest.mark.parametrize("name", [pytest.param(name, marks=mark) for name, mark in marks.items()])


def to_onnx(
    module: nn.Module, inputs: Sequence[Tensor], exporter: str, path: Path, dynamic: Sequence[int] = (0,)
) -> None:
    """Export with a dynamic batch, or other axes, by the ``dynamo`` or ``legacy`` exporter; the input is named x."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    axes = {"x": {axis: f"size_{axis}" for axis in dynamic}}
    options: dict[str, Any] = {"dynamo": False, "input_names": ["x"], "dynamic_axes": axes}
    if exporter == "dynamo":
        sizes = {axis: torch.export.Dim.DYNAMIC for axis in dynamic}
        options = {"dynamo": True, "dynamic_shapes": (sizes,), "verbose": False}
    torch.onnx.export(module.eval(), tuple(inputs), path, **options)


def run_onnx(path: Path, *batches: Tensor) -> list[Tensor]:
    """What onnxruntime gives for each of the batches."""
    session = pytest.importorskip("onnxruntime").InferenceSession(path, providers=["CPUExecutionProvider"])
    (x,) = session.get_inputs()
    return [torch.from_numpy(session.run(None, {x.name: batch.numpy()})[0]) for batch in batches]
