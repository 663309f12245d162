"""Ctrl-C while a command imports what it needs: one line and the shell's status, whatever the command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import covpool_plugins
from covpool_plugins.command_line import run_tool
from covpool_plugins.interruption import end_at_once, is_our_command

ROOT = Path(covpool_plugins.__file__).parents[1]
MODULES = [f"covpool_plugins.{path.parent.name}" for path in ROOT.glob("covpool_plugins/*/__main__.py")]
COMMANDS = [*(("-m", name) for name in MODULES), *((str(path),) for path in sorted(ROOT.glob("tools/*.py")))]
# In place of PyTorch, and in the middle of an import that would hide an exception.
SLOW_IMPORT = """
import time
try:
    print("importing", flush=True)
    time.sleep(60)
except BaseException:
    raise ImportError("not importable")
"""


def environment(folder: Path) -> dict[str, str]:
    """In which the modules of a folder go before all others."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}


def interrupt(arguments: tuple[str, ...], folder: Path) -> tuple[int, str, str]:
    """Status, output and errors of a program that gets SIGINT while it imports PyTorch."""
    (folder / "torch.py").write_text(SLOW_IMPORT)
    (folder / "own.py").write_text("import covpool_plugins")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": folder}
    started = subprocess.Popen([sys.executable, *arguments], env=environment(folder), **pipes)
    assert started.stdout and started.stdout.readline() == "importing\n"
    started.send_signal(signal.SIGINT)
    output, errors = started.communicate(timeout=60)
    return started.returncode, output, errors


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: Path(command[-1]).stem)
def test_interrupted_imports_end_in_one_line(command: tuple[str, ...], tmp_path: Path) -> None:
    script = ("own.py",) if command[-1].endswith("run_timm.py") else ()
    status, output, errors = interrupt((*command, *script), tmp_path)
    assert (status, output, errors.count("\n")) == (130, "", 1)
    assert errors.endswith(": interrupted\n")


@pytest.mark.parametrize("arguments", [("own.py",), ("-c", "import covpool_plugins"), ("-m", "own")])
def test_programs_of_others_are_interrupted_as_python_does_it(
    arguments: tuple[str, ...], tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, errors = interrupt(arguments, tmp_path)
    assert status != 130 and "Traceback" in errors


@pytest.mark.parametrize(
    ("program", "words", "ours"),
    [
        ("tools/train.py", "python tools/train.py config.py", True),
        ("covpool_plugins/.mim/tools/train.py", "python train.py config.py", True),  # as mim runs it
        ("elsewhere/tools/train.py", "python train.py", False),
        (None, "python -X dev -m covpool_plugins.explain --model x", True),
        (None, "python -mcovpool_plugins.explain", True),
        (None, "python -m own.training covpool_plugins.explain", False),
        (None, "python", False),
    ],
)
def test_our_commands(program: str | None, words: str, ours: bool, monkeypatch) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "__file__", program and str(ROOT / program), raising=False)
    monkeypatch.setattr(sys, "orig_argv", words.split())
    module = next((i for i, word in enumerate(words.split()) if word.startswith("-m")), 0)
    arguments = words.split()[module + 1 + (words.split()[module] == "-m") :]
    monkeypatch.setattr(sys, "argv", ["-m" if module else "", *arguments])
    assert is_our_command() == ours


def test_a_command_that_runs_is_interrupted_by_an_exception() -> None:
    """So that it can keep what is done; tests are no command of ours."""
    handlers = [signal.getsignal(signal.SIGINT), signal.signal(signal.SIGINT, end_at_once)]
    try:
        with pytest.raises(SystemExit, match="0"):
            run_tool(lambda: handlers.append(signal.getsignal(signal.SIGINT)))
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    assert handlers == [signal.default_int_handler] * 3


def test_an_ignored_signal_stays_ignored(tmp_path: Path) -> None:
    """A shell starts what runs in its background so."""
    (tmp_path / "torch.py").write_text("import signal; raise SystemExit(signal.getsignal(2).name)")
    command = f"trap '' INT; exec {sys.executable} {COMMANDS[-1][-1]}"
    ran = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment(tmp_path))
    assert ran.stderr == "SIG_IGN\n"
