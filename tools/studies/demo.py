"""The demo: the whole way on real photographs, from pictures to trained heads, explanations and one page."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from covpool_plugins.explain import ModelView, explain
from covpool_plugins.files import write_atomically

from .demo_page import accuracy_curves, explanation_grid, write_page
from .textures import CLASSES, Split, mosaic, write_crops
from .training import Recipe, Run, build, train

HEADS: dict[str, dict[str, Any]] = {"gap": {}, "svdpade": {"reduce_channels": 32}, "isqrt": {"reduce_channels": 32}}
METHODS = ("contribution", "grad_cam", "gradient")
REPOSITORY = Path(__file__).parents[2]
CONFIG = Path("configs/demo/resnet18_svdpade_textures.py")
MOSAIC_SIZE = 160


@dataclass(frozen=True)
class Localisation:
    """Shares of the maps' positive energy in the half that shows the target, over all mosaics and targets."""

    head: str
    method: str
    shares: list[float]

    @property
    def mean(self) -> float:
        return float(np.mean(self.shares))


def run_demo(out: Path, epochs: int = 6, per_class: int = 160, mosaics: int = 6, mmpretrain_epochs: int = 6) -> None:
    """Train, test and explain; everything is left in ``out``, with ``out/index.html`` to look at."""
    start = time.perf_counter()
    counts: dict[Split, int] = {"train": per_class, "val": per_class // 2}
    data = write_crops(out / "data", counts, size=96)
    recipe = Recipe(data, num_classes=len(CLASSES), epochs=epochs)
    runs = [_in_own_process(recipe, head, options, out / f"{head}.pth") for head, options in HEADS.items()]
    print(table(runs))
    accuracy = train_with_mmpretrain(data, out / "mmpretrain", mmpretrain_epochs)
    print(f"\nMMPretrain, {CONFIG}: {accuracy:.1f} % validation accuracy\n")
    localisations, pictures = explain_mosaics(recipe, runs, mosaics)
    print(localisation_table(localisations))

    accuracy_curves(runs, out / "accuracy.png")
    explanation_grid(pictures, out / "explanations.png")
    seconds = time.perf_counter() - start
    facts = dict(seconds=seconds, torch=torch.__version__, cores=os.cpu_count(), mmpretrain_accuracy=accuracy)
    _save_numbers(out / "numbers.json", runs, localisations, facts)
    write_page(out / "index.html", runs, localisations, facts)
    print(f"\n{seconds:.0f} s in all; look at {out / 'index.html'}")


def _in_own_process(recipe: Recipe, head: str, options: dict[str, Any], checkpoint: Path) -> Run:
    """One training in a fresh process, so that its peak memory is its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        return executor.submit(train, recipe, head, options, checkpoint).result()


def train_with_mmpretrain(data: Path, work_dir: Path, epochs: int) -> float:
    """The same pictures through ``tools/train.py`` and ``tools/test.py``; returns the test accuracy in percent."""
    options = ["--work-dir", str(work_dir), "--cfg-options", f"data_root={data}"]
    _run_tool("train.py", str(CONFIG), *options, f"train_cfg.max_epochs={epochs}", log=work_dir / "train.txt")
    checkpoint, metrics = work_dir / f"epoch_{epochs}.pth", work_dir / "metrics.json"
    _run_tool("test.py", str(CONFIG), str(checkpoint), "--out", str(metrics), *options, log=work_dir / "test.txt")
    return float(json.loads(metrics.read_text())["accuracy/top1"])


def _run_tool(tool: str, *arguments: str, log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(REPOSITORY / "tools" / tool), str(REPOSITORY / arguments[0]), *arguments[1:]]
    with (
        tqdm(total=1, desc=f"MMPretrain {tool}", bar_format="{desc} {elapsed}", disable=None) as bar,
        open(log, "w") as file,
    ):
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        while process.poll() is None:
            time.sleep(0.2)
            bar.refresh()
    if process.returncode:
        raise OSError(f"tools/{tool} ended with status {process.returncode}; see {log}")


def explain_mosaics(recipe: Recipe, runs: list[Run], count: int) -> tuple[list[Localisation], list[list[Any]]]:
    """Explain both classes of pictures made of two textures.

    Returns:
        The localisation of every head and method, and for the first mosaic a row (head, picture, explanations of
        the left and of the right class) per head.
    """
    generator = np.random.default_rng(0)
    pairs = [(a, b) for a in CLASSES for b in CLASSES if a != b]
    chosen = [pairs[i % len(pairs)] for i in range(count)]
    scenes = [(left, right, mosaic(left, right, MOSAIC_SIZE, generator)) for left, right in chosen]
    localisations, pictures = [], []
    with tqdm(total=len(runs) * len(METHODS) * count, desc="  explain", unit="mosaic", disable=None) as bar:
        for run in runs:
            view = _trained_view(recipe, run)
            for method in METHODS:
                shares = []
                for left, right, picture in scenes:
                    shares += [_share(view, picture, method, name, name == right) for name in (left, right)]
                    bar.update()
                localisations.append(Localisation(run.head, method, shares))
            left, right, picture = scenes[0]
            maps = [explain(view, picture, "contribution", CLASSES.index(name)) for name in (left, right)]
            pictures.append([run.head, picture, *maps])
    return localisations, pictures


def _trained_view(recipe: Recipe, run: Run) -> ModelView:
    model: Any = build(recipe, run.head, HEADS[run.head])
    model.load_state_dict(torch.load(run.checkpoint, weights_only=True))
    # The mosaics are shown whole: larger than the training crops, and not cropped.
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, MOSAIC_SIZE, MOSAIC_SIZE), "crop_pct": 1.0}
    return ModelView.of(model.eval())


def _share(view: ModelView, picture: Image.Image, method: str, name: str, on_the_right: bool) -> float:
    """How much of the map's positive energy lies in the half that shows the class."""
    energy = explain(view, picture, method, CLASSES.index(name)).map.clip(min=0)
    halves = [half.sum() for half in np.array_split(energy, 2, axis=1)]
    return float(halves[on_the_right] / sum(halves)) if sum(halves) > 0 else 0.5


def table(runs: list[Run]) -> str:
    """The trainings as a Markdown table."""
    lines = [
        "| head | validation accuracy | after 2 epochs | ms per training step | peak memory |",
        "|---|---|---|---|---|",
    ]
    for run in runs:
        early = run.accuracies[min(1, len(run.accuracies) - 1)]
        lines.append(
            f"| {run.head} | {run.accuracy:.1f} % | {early:.1f} % | {run.step_ms:.0f} | {run.memory_mb:.0f} MB |"
        )
    return "\n".join(lines)


def localisation_table(localisations: list[Localisation]) -> str:
    """Shares of the maps' energy in the right half of the mosaics, as a Markdown table; by chance 50 %."""
    heads = list(dict.fromkeys(entry.head for entry in localisations))
    shares = {(entry.head, entry.method): entry.mean for entry in localisations}
    lines = [f"| energy in the right half | {' | '.join(METHODS)} |", "|---|" + "---|" * len(METHODS)]
    for head in heads:
        lines.append(f"| {head} | " + " | ".join(f"{100 * shares[head, m]:.0f} %" for m in METHODS) + " |")
    return "\n".join(lines)


def _save_numbers(path: Path, runs: list[Run], localisations: list[Localisation], facts: dict[str, Any]) -> None:
    numbers = dict(
        facts,
        runs=[{**vars(run), "checkpoint": run.checkpoint.name} for run in runs],
        localisation=[dict(vars(entry), mean=entry.mean) for entry in localisations],
    )
    write_atomically(path, lambda file: file.write(json.dumps(numbers, indent=1).encode()))
