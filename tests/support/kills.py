"""Tools that are killed while they run, and checks that the files they leave are whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from covpool_plugins.mmpretrain_plugin.safe_checkpoints import weights_only_checkpoints

from .small_configs import Backbone

ROOT = Path(__file__).parents[2]
LIMIT = 120.0


class HeavyBackbone(Backbone):
    """Its checkpoints take so long to write that they can be caught half-written."""

    def __init__(self):
        super().__init__()
        self.register_buffer("ballast", torch.zeros(16 << 20))


def command(tool: str, arguments: tuple[object, ...]) -> dict[str, Any]:
    """Arguments of ``subprocess.run``, with this checkout's package, wherever another one is installed."""
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    return {
        "args": [sys.executable, str(ROOT / "tools" / f"{tool}.py"), *map(str, arguments)],
        "env": {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        "cwd": ROOT,
    }


def run(tool: str, *arguments: object) -> None:
    """To the end, which has to be a success."""
    result = subprocess.run(**command(tool, arguments), capture_output=True, text=True, timeout=LIMIT)
    assert result.returncode == 0, result.stderr


def run_and_kill(tool: str, *arguments: object, when: Callable[[], bool], delay: float = 0.0) -> bool:
    """Kill the tool as soon as a condition holds, or some seconds after; whether it was still running."""
    process = subprocess.Popen(**command(tool, arguments), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    end = time.monotonic() + LIMIT
    try:
        while process.poll() is None and not when():
            assert time.monotonic() < end, "the moment never came"
            time.sleep(0.0005)
        time.sleep(delay)
    finally:
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), errors.decode()
    return process.returncode == -signal.SIGKILL


def content(path: Path) -> object:
    """What a file holds; raises if it is not whole."""
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {name: arrays[name] for name in arrays.files}
    if path.suffix == ".png":
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGBA"))
    if path.suffix in (".pth", ".tar"):
        with weights_only_checkpoints():
            return torch.load(path)
    if path.suffix == ".safetensors":
        return load_file(path)
    text = path.read_text()
    if path.suffix == ".json" and path.parent.name == "vis_data":  # logs: a document on each line
        return [json.loads(line) for line in text.splitlines()]
    if path.suffix == ".json":
        return json.loads(text)
    if path.suffix == ".html":
        assert text.rstrip().endswith("</html>")
    if path.suffix == ".py":
        compile(text, path.name, "exec")
    return text


def contents(folder: Path) -> dict[str, object]:
    """All files of a folder under their final names; those with a point in front are temporary."""
    files = (path for path in folder.rglob("*") if path.is_file())
    names = {path: path.relative_to(folder) for path in files}
    return {
        str(name): content(path) for path, name in names.items() if not any(part.startswith(".") for part in name.parts)
    }
