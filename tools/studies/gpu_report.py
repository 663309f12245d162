"""What the sections of the ``gpu`` mode share: the device and sizes, a report with rows, and limits of time."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from covpool_plugins.command_line import markdown_table
from covpool_plugins.errors import one_line

Function = Callable[[Tensor], Tensor]
Cells = dict[str, Any]
LONGEST_MESSAGE = 160
GRACE = 10.0  # seconds that a measurement may take beyond the time of its section


@dataclass(frozen=True)
class Setting:
    """The device, and whether to take tiny sizes, which only show that everything runs."""

    device: torch.device
    quick: bool = False

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def synchronize(self) -> None:
        if self.cuda:
            torch.cuda.synchronize(self.device)


class Clock:
    """Counts down the seconds of a section."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    def left(self) -> float:
        return self.end - time.monotonic()


@dataclass
class Report:
    """A section's table and notes; ``figures`` holds details for the JSON file alone."""

    title: str
    rows: list[Cells] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    figures: list[Cells] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def markdown(self) -> str:
        """Heading, table, notes."""
        lines = [f"## {self.title} ({self.seconds:.0f} s)", ""]
        header = list(dict.fromkeys(key for row in self.rows for key in row if key != "failed"))
        if any("failed" in row for row in self.rows):
            header.append("failed")
        if self.rows:
            texts = [key for key in header if any(isinstance(row.get(key), str) for row in self.rows)]
            leading = next((i for i, key in enumerate(header) if key not in texts), len(header))
            table = [[_cell(row.get(key)) for key in header] for row in self.rows]
            lines += [markdown_table(header, table, max(leading, 1)), ""]
        lines += [f"* {note}" for note in self.notes]
        if self.left_out:
            lines.append(f"* out of time, left out: {'; '.join(self.left_out)}")
        return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 or not math.isfinite(value) else f"{value:.0f}"
    return str(value).replace("|", "/")


def attempt(report: Report, clock: Clock, item: Cells, measure: Callable[[], Cells], longest: float = math.inf) -> None:
    """Add a row: ``item`` and what ``measure`` returns, or the message of its error; nothing if the time is over.

    It is stopped after ``longest`` seconds, or a little after the time of the section.
    """
    if clock.left() <= 0:
        report.left_out.append(" ".join(str(value) for value in item.values()))
        return
    try:
        with time_limit(min(longest, clock.left() + GRACE)):
            row = {**item, **measure()}
    except Exception as error:
        row = {**item, "failed": message(error)}
        _free_memory()
    report.rows.append(row)


def message(error: BaseException) -> str:
    """The class of an error and the beginning of its message."""
    return f"{type(error).__name__}: {one_line(error)[:LONGEST_MESSAGE]}"


def _free_memory() -> None:
    try:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    except RuntimeError:  # an earlier error has broken the context: every later row will say so
        pass


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise ``TimeoutError`` inside the block after so many seconds; without effect outside the main thread."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise TimeoutError(f"stopped after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.1))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Stopwatch:
    """Times between marks: CUDA events on a GPU, which count what the device does, else the clock."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.marks: list[Any] = []

    def mark(self) -> None:
        if self.setting.cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Seconds from each mark to the next."""
        self.setting.synchronize()
        pairs = zip(self.marks, self.marks[1:], strict=False)
        if self.setting.cuda:
            return [first.elapsed_time(second) / 1e3 for first, second in pairs]
        return [second - first for first, second in pairs]
