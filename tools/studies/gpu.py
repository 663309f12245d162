"""The ``gpu`` mode: correctness, synchronisation, times and training steps on a CUDA device, in a few minutes."""

from __future__ import annotations

import argparse
import dataclasses
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch

from covpool_plugins.command_line import available_device, positive_integer
from covpool_plugins.files import check_file, write_atomically, write_json

from . import gpu_checks, gpu_routes, gpu_steps
from .gpu_report import Cells, Clock, Report, Setting, message
from .modes import MODES, Mode

BUDGET = 390  # seconds
SectionFunction = Callable[[Setting, Report, Clock], None]


def facts(setting: Setting, report: Report, clock: Clock) -> None:
    """What the figures depend on besides the code."""
    values: Cells = {
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "CUDA": torch.version.cuda or "none",
        "device": str(setting.device),
        "CPU threads": torch.get_num_threads(),
        "float32 matmul precision": torch.get_float32_matmul_precision(),
    }
    if setting.cuda:
        properties = torch.cuda.get_device_properties(setting.device)
        values |= {
            "card": properties.name,
            "memory, GB": properties.total_memory / 1e9,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
        }
        driver = getattr(torch._C, "_cuda_getDriverVersion", None)
        values["CUDA of the driver"] = str(driver()) if driver else "unknown"
    report.rows += [{"fact": name, "value": value} for name, value in values.items()]


# Title, function, the most seconds that it may take. What could leave the device in a bad state comes last.
SECTIONS: dict[str, tuple[str, SectionFunction, float]] = {
    "facts": ("Facts", facts, 10),
    "pools": ("Pools in float32", gpu_checks.float32_pools, 50),
    "layers": ("Whitening layers", gpu_checks.norm_layers, 20),
    "autocast": ("Pools under autocast", gpu_checks.half_precision_pools, 30),
    "waits": ("Waiting for the GPU", gpu_checks.synchronisation, 25),
    "errors": ("Errors of both routes", gpu_routes.route_errors, 30),
    "times": ("Times of both routes", gpu_routes.route_times, 110),
    "published": ("Published forms", gpu_routes.published_times, 20),
    "steps": ("Training step", gpu_steps.training_steps, 110),
    "graphs": ("CUDA graphs", gpu_checks.cuda_graphs, 20),
    "compile": ("Compilation", gpu_checks.compilation, 90),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the mode."""
    parser.add_argument("--device", type=available_device, default="cuda", help="cuda or cpu (cuda)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, only to see that it runs")
    parser.add_argument(
        "--budget", type=positive_integer, default=BUDGET, metavar="S", help=f"seconds for everything ({BUDGET})"
    )
    parser.add_argument(
        "--sections",
        nargs="+",
        default=list(SECTIONS),
        choices=list(SECTIONS),
        metavar="NAME",
        help=f"of: {', '.join(SECTIONS)} (all)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file after each section")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write what is printed to this file too")


def run(arguments: argparse.Namespace) -> None:
    """Run the sections; print each as it is done, and write the files anew."""
    for path in (arguments.json, arguments.markdown):
        if path is not None:
            check_file(path)
    setting = Setting(arguments.device, arguments.quick)
    total = Clock(arguments.budget)
    reports: list[Report] = []
    tf32 = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False  # or a reduction by convolution would be off by 1e-3
    try:
        for name in arguments.sections:
            title, section, seconds = SECTIONS[name]
            reports.append(Report(title))
            run_section(section, setting, reports[-1], min(seconds, total.left()))
            print(reports[-1].markdown(), flush=True)
            _write(arguments, reports)
    finally:
        torch.backends.cudnn.allow_tf32 = tf32


def run_section(section: SectionFunction, setting: Setting, report: Report, seconds: float) -> None:
    """Fill the report; an error becomes a note of it."""
    start = time.monotonic()
    try:
        if seconds > 0:
            section(setting, report, Clock(seconds))
        else:
            report.left_out.append("the whole section")
    except Exception as error:
        report.notes.append(f"FAILED: {message(error)}")
    report.seconds = time.monotonic() - start


def _write(arguments: argparse.Namespace, reports: list[Report]) -> None:
    if arguments.json is not None:
        document: dict[str, Any] = {"sections": [dataclasses.asdict(report) for report in reports]}
        write_json(arguments.json, document)
    if arguments.markdown is not None:
        text = "\n".join(report.markdown() for report in reports)
        write_atomically(arguments.markdown, lambda file: file.write(text.encode()))


MODES.add(
    "gpu",
    Mode(
        "A GPU: correctness of pools and layers, waiting, times of both routes to the root, training steps.",
        "python tools/benchmark.py gpu --json out/gpu.json --markdown out/gpu.md",
        add_arguments,
        run,
    ),
)
