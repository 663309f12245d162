"""The demo: a pretrained network with three heads, fine-tuned on photographs and explained, on one page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from tqdm import tqdm

from covpool_plugins.command_line import markdown_table
from covpool_plugins.explain import Explanation, ModelView, explain
from covpool_plugins.files import write_json
from covpool_plugins.pictures import Picture

from .demo_page import PAGE, draw_maps
from .figures import write_page
from .finetune_training import FinetuneRecipe, FinetuneRun, train, weights_of
from .finetuning import draw, table
from .front import FRONT, whole_network
from .photographs import photograph, write_crops
from .regions import BLOCKS, PATTERN, REGIONS, write_regions
from .training import train_all

HEADS = ("gap", "svdpade", "svdpade(centered=False)", f"gap(backbone={whole_network(FRONT)!r})")
EXPLAINED = HEADS[:3]
RATE = 3e-4  # of network and classifier; tried on the first fold, which is not reported
# The photograph that is explained, how many times as large it is shown, and the classes that are in it.
PHOTOGRAPH, SCALE, SHOWN = "china", 1.6, ("building", "trees", "sky")
REPOSITORY = Path(__file__).parents[2]
CONFIG = Path("configs/demo/resnet18_svdpade_textures.py")


def recipe_of(images: Path, epochs: int) -> FinetuneRecipe:
    """What all heads have in common."""
    return FinetuneRecipe(
        images,
        FRONT,
        groups=PATTERN,
        folds=BLOCKS[0] * BLOCKS[1],
        size=96,
        epochs=epochs,
        batch_size=24,
        start="probe",
    )


def run_demo(out: Path, epochs: int = 2, crops: int = 5, textures: int = 160, mmpretrain_epochs: int = 6) -> None:
    """Fine-tune, test and explain; everything is left in ``out``, with ``out/index.html`` to look at."""
    start = time.perf_counter()
    weights_of(FRONT, None)  # a missing package is said before anything is done
    recipe = recipe_of(write_regions(out / "regions", crops), epochs)
    print(
        f"Fine-tunes {FRONT} with {len(EXPLAINED)} heads on {len(REGIONS)} kinds of surfaces in photographs, "
        f"{recipe.folds - 1} times each,\ntrains a network through MMPretrain, explains: "
        "about four minutes on two cores",
        flush=True,
    )
    runs = fine_tune(recipe, out)
    accuracies = table(runs)
    print(markdown_table(*accuracies), flush=True)
    data = write_crops(out / "textures", {"train": textures, "val": textures // 2}, size=96)
    mmpretrain_accuracy = train_with_mmpretrain(data, out / "mmpretrain", mmpretrain_epochs)
    print(f"\nMMPretrain, {CONFIG}, on three grey textures: {mmpretrain_accuracy:.1f} % validation accuracy\n")
    picture, maps = explain_photograph(out)
    draw(runs, out / "accuracy.png")
    draw_maps(picture, maps, SHOWN, out / "explanations.jpg")
    draw_maps(picture, {EXPLAINED[-1]: maps[EXPLAINED[-1]]}, SHOWN, out / "photograph.jpg")
    seconds = time.perf_counter() - start
    facts: dict[str, Any] = dict(
        seconds=seconds, torch=torch.__version__, cores=os.cpu_count(), mmpretrain_accuracy=mmpretrain_accuracy
    )
    write_json(out / "numbers.json", {**facts, "runs": list(map(asdict, runs))})
    facts |= {"front": FRONT, "classes": len(REGIONS), "parts": recipe.folds, "chosen": f"{RATE:g}"}
    write_page(out / "index.html", "demo", PAGE, accuracies=accuracies, facts=facts)
    print(f"{seconds:.0f} s in all; look at {out / 'index.html'}")


def fine_tune(recipe: FinetuneRecipe, out: Path) -> list[FinetuneRun]:
    """Every head on every fold but the first; the networks of the second fold are kept for explanations."""
    jobs = [
        (recipe, row, fold, 0, RATE, RATE, folder_of(out, row) if fold == 1 and row in EXPLAINED else None)
        for fold in range(1, recipe.folds)
        for row in HEADS
    ]
    return train_all(train, jobs, out / "numbers.json", workers=min(os.cpu_count() or 1, 4))


def folder_of(out: Path, row: str) -> Path:
    """Where a network is saved."""
    return out / "networks" / str(HEADS.index(row))


def train_with_mmpretrain(data: Path, work_dir: Path, epochs: int) -> float:
    """Textures through ``tools/train.py`` and ``tools/test.py``; returns the test accuracy in percent."""
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


def explain_photograph(out: Path) -> tuple[Picture, dict[str, Sequence[Explanation]]]:
    """The photograph, and of every head the contribution map of each class that is in it."""
    picture = photograph(PHOTOGRAPH)
    width, height = (32 * round(side * SCALE / 32) for side in picture.size)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    targets = [sorted(REGIONS).index(name) for name in SHOWN]
    maps: dict[str, Sequence[Explanation]] = {}
    for row in EXPLAINED:
        model: Any = timm.create_model(f"local-dir:{folder_of(out, row)}", pretrained=True)
        model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, height, width), "crop_pct": 1.0}
        view = ModelView.of(model.eval())
        maps[row] = [explain(view, picture, "contribution", target) for target in targets]
    return picture, maps
