"""A folder of three textures, and the tools run in this process."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_scope_left_behind():
    """A runner sets MMEngine's default scope and does not reset it."""
    yield
    if "mmengine" in sys.modules:
        from mmengine.registry import DefaultScope

        DefaultScope._instance_dict.clear()


@pytest.fixture(scope="session")
def textures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Columns, rows and checks, with noise: ``train`` has 6 images of each, ``val`` 4."""
    root = tmp_path_factory.mktemp("textures")
    generator = np.random.default_rng(0)
    row, column = np.mgrid[:64, :64] // 4 % 2
    patterns = {"brick": column, "grass": row, "gravel": row ^ column}
    for split, count in (("train", 6), ("val", 4)):
        for name, pattern in patterns.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = 60 + 120 * pattern[..., None] + generator.integers(0, 60, (64, 64, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    return root


@pytest.fixture
def run_tool(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run tools/NAME.py with arguments in this process; the exit status and stderr."""

    def run(name: str, *arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", [f"tools/{name}.py", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            runpy.run_path(str(ROOT / "tools" / f"{name}.py"), run_name="__main__")
        return exit_info.value.code, capsys.readouterr().err

    return run


@pytest.fixture
def refused(run_tool: Callable[..., tuple[int, str]]) -> Callable[..., str]:
    """The one line with which tools/NAME.py refuses its arguments."""

    def run(name: str, *arguments: object) -> str:
        status, message = run_tool(name, *arguments)
        assert status == 2 and message.count("\n") == 1, message
        return message

    return run
