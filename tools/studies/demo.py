"""The demo: from photographs to trained heads, explanations and one page."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from covpool_plugins.command_line import markdown_table
from covpool_plugins.explain import Explanation, ModelView, explain
from covpool_plugins.explain.pointing import energy_inside
from covpool_plugins.files import write_json
from covpool_plugins.pictures import Picture

from .demo_page import accuracy_curves, explanation_grid, write_page
from .demo_training import DemoRecipe, DemoRun, build, train
from .photographs import TEXTURES, mosaic, write_crops

HEADS: dict[str, dict[str, Any]] = {"gap": {}, "svdpade": {"reduce_channels": 32}, "isqrt": {"reduce_channels": 32}}
EXPLAINED_BY = ("contribution", "grad_cam", "gradient")
REPOSITORY = Path(__file__).parents[2]
CONFIG = Path("configs/demo/resnet18_svdpade_textures.py")
MOSAIC_SIZE = 160


@dataclass(frozen=True)
class Localisation:
    """Shares of the maps' positive energy in the half that shows the target, over all mosaics and targets."""

    head: str
    method: str
    shares: list[float]
    mean: float


def run_demo(out: Path, epochs: int = 6, per_class: int = 160, mosaics: int = 6, mmpretrain_epochs: int = 6) -> None:
    """Train, test and explain; everything is left in ``out``, with ``out/index.html`` to look at."""
    start = time.perf_counter()
    print(
        f"Trains {len(HEADS)} heads on {len(TEXTURES)} x {per_class} crops of photographs, one of them through "
        "MMPretrain too, and explains them: about 3 minutes on two cores",
        flush=True,
    )
    data = write_crops(out / "data", {"train": per_class, "val": per_class // 2}, size=96)
    recipe = DemoRecipe(data, epochs=epochs)
    runs = [_train_in_own_process(recipe, head, options, out / f"{head}.pth") for head, options in HEADS.items()]
    accuracies = accuracy_table(runs)
    print(markdown_table(*accuracies))
    mmpretrain_accuracy = train_with_mmpretrain(data, out / "mmpretrain", mmpretrain_epochs)
    print(f"\nMMPretrain, {CONFIG}: {mmpretrain_accuracy:.1f} % validation accuracy\n")
    localisations, pictures = explain_mosaics(recipe, runs, mosaics)
    shares = localisation_table(localisations)
    print(markdown_table(*shares))

    accuracy_curves(runs, out / "accuracy.png")
    explanation_grid(pictures, out / "explanations.png")
    seconds = time.perf_counter() - start
    facts = dict(
        seconds=seconds, torch=torch.__version__, cores=os.cpu_count(), mmpretrain_accuracy=mmpretrain_accuracy
    )
    named_runs = [{**asdict(run), "checkpoint": run.checkpoint.name} for run in runs]
    write_json(out / "numbers.json", {**facts, "runs": named_runs, "localisation": list(map(asdict, localisations))})
    write_page(out / "index.html", accuracies, shares, facts)
    print(f"\n{seconds:.0f} s in all; look at {out / 'index.html'}")


def _train_in_own_process(recipe: DemoRecipe, head: str, options: dict[str, Any], checkpoint: Path) -> DemoRun:
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


def explain_mosaics(
    recipe: DemoRecipe, runs: list[DemoRun], count: int
) -> tuple[list[Localisation], list[tuple[str, Picture, list[Explanation]]]]:
    """Explain both classes of pictures made of two textures.

    Returns:
        The localisation of every head and method, and of every head the explanations of both classes of one mosaic.
    """
    generator = np.random.default_rng(0)
    pairs = [(a, b) for a in range(len(TEXTURES)) for b in range(len(TEXTURES)) if a != b]
    chosen = [pairs[i % len(pairs)] for i in range(count)]
    scenes = [((a, b), mosaic(TEXTURES[a], TEXTURES[b], MOSAIC_SIZE, generator)) for a, b in chosen]
    regions = np.indices((MOSAIC_SIZE, MOSAIC_SIZE))[1] // (MOSAIC_SIZE // 2) == np.arange(2)[:, None, None]
    localisations, pictures = [], []
    with tqdm(total=len(runs) * len(EXPLAINED_BY) * count, desc="  explain", unit="mosaic", disable=None) as bar:
        for run in runs:
            view = _trained_view(recipe, run)
            for method in EXPLAINED_BY:
                shares = []
                for pair, picture in scenes:
                    for target, region in zip(pair, regions, strict=True):
                        share = energy_inside(explain(view, picture, method, target).map, region)
                        shares.append(0.5 if share is None else share)
                    bar.update()
                localisations.append(Localisation(run.head, method, shares, float(np.mean(shares))))
            pair, picture = scenes[0]
            pictures.append((run.head, picture, [explain(view, picture, "contribution", target) for target in pair]))
    return localisations, pictures


def _trained_view(recipe: DemoRecipe, run: DemoRun) -> ModelView:
    model: Any = build(recipe, run.head, HEADS[run.head])
    model.load_state_dict(torch.load(run.checkpoint, weights_only=True))
    # The mosaics are shown whole: larger than the training crops, and not cropped.
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, MOSAIC_SIZE, MOSAIC_SIZE), "crop_pct": 1.0}
    return ModelView.of(model.eval())


def accuracy_table(runs: list[DemoRun]) -> tuple[list[str], list[list[str]]]:
    """Header and rows."""
    header = ["head", "validation accuracy", "after 2 epochs", "ms per training step", "peak memory"]
    rows = []
    for run in runs:
        accuracies = (f"{percent:.1f} %" for percent in (run.accuracies[-1], run.accuracies[:2][-1]))
        rows.append([run.head, *accuracies, f"{run.step_ms:.0f}", f"{run.memory_mb:.0f} MB"])
    return header, rows


def localisation_table(localisations: list[Localisation]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: mean shares of the maps' energy in the half that shows the class; by chance 50 %."""
    means = {(entry.head, entry.method): f"{100 * entry.mean:.0f} %" for entry in localisations}
    heads = dict.fromkeys(entry.head for entry in localisations)
    table = [[head, *(means[head, method] for method in EXPLAINED_BY)] for head in heads]
    return ["energy in the right half", *EXPLAINED_BY], table
