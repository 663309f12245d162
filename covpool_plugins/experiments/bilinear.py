"""The comparisons of the papers on bilinear pooling, on crops of real photographs, with small networks from scratch.

Aggregation (sum, democratic, spectral), the gradient of the matrix root (by a Lyapunov equation or by differences of
eigenvalues), the power of the covariance, and one network or two: all are trained on the same crops, seed by seed.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import random_seed
from torch import Tensor, nn
from tqdm import tqdm

from ..architectures.two_stream import Stream, TwoStreamNet
from ..benchmarks.measure import correlated_features, seeded_gradient, time_interleaved
from ..benchmarks.report import markdown_table, write_json
from ..checks import check_integer
from ..command_line import Parser, run_tool
from ..pooling import create_pool
from ..timm_plugin import SecondOrderHead
from .texture_crops import Photos, classes_of, crops, shipped_classes
from .textures import Split
from .training import evaluate, train_epoch

# Channels, kernel and stride of each convolution. D is deep with small kernels, M shallow with large ones; their maps
# of 64 pixels have 8x8 positions.
NETWORKS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "D": ((16, 3, 2), (24, 3, 2), (32, 3, 2), (32, 3, 1)),
    "M": ((24, 7, 4), (32, 5, 2)),
}
TEST_BATCH = 100
REPEATS = 40
Milliseconds = dict[str, float]  # by contender


@dataclass(frozen=True)
class Contender:
    """A pool behind network D, or the outer product of the maps of two networks.

    Args:
        head: name of the pool; empty for two networks.
        options: of the pool.
        networks: names in ``NETWORKS``.
    """

    head: str = ""
    options: tuple[tuple[str, Any], ...] = ()
    networks: tuple[str, ...] = ("D",)

    def __str__(self) -> str:
        given = ", ".join(f"{option}={value}" for option, value in self.options)
        return f"[{'+'.join(self.networks)}]" if not self.head else f"{self.head}({given})" if given else self.head


def _root(method: str) -> Contender:
    return Contender("ibcnn", (("method", method),))


def _democratic(gamma: float) -> Contender:
    return Contender("democratic", (("gamma", gamma),))


def _power(p: float) -> Contender:
    return Contender("powcov", (("p", p),))


SUM, SPECTRAL = Contender("bcnn"), _root("exact")
# What is in two comparisons is trained once. In each, the first row is what the others are compared with.
SECTIONS: dict[str, dict[str, Contender]] = {
    "aggregation": {
        "sum": SUM,
        "democratic, γ = 0.5": _democratic(0.5),
        "democratic, γ = 0": _democratic(0.0),
        "spectral, p = 1/2": SPECTRAL,
    },
    "gradient": {
        "Lyapunov, in the eigenbasis": SPECTRAL,
        "Lyapunov, Newton-Schulz": _root("newton_schulz_lyapunov"),
        "Lyapunov, Denman-Beavers": _root("denman_beavers"),
        "SVD, 1 / (λi - λj)": _root("svdoriginal"),
        "SVD, 1 / (λi - λj) cut off": _root("svdtrunc"),
    },
    "power": {f"A^{p:g}": _power(p) for p in (1.0, 0.75, 0.5, 0.25)} | {"log(I + A / ε)": Contender("logcov")},
    "networks": {
        "B-CNN": SUM,
        "Improved B-CNN": SPECTRAL,
        "[D+D]": Contender(networks=("D", "D")),
        "[D+M]": Contender(networks=("D", "M")),
        "average pooling": Contender("gap"),
    },
}


@dataclass(frozen=True)
class BilinearRecipe:
    """What all trainings have in common; ``images`` is a folder of classes instead of scikit-image's photographs."""

    images: Path | None = None
    size: int = 64
    per_class: int = 24
    test_per_class: int = 50
    noise: float = 0.25
    batch_size: int = 16
    epochs: int = 20
    learning_rate: float = 1e-2
    classifier_rate: float = 5e-2
    weight_decay: float = 0.05
    clip_grad: float = 5.0


@dataclass(frozen=True)
class BilinearRun:
    """One training: test accuracy in percent, and the last training loss."""

    contender: str
    seed: int
    accuracy: float
    loss: float
    parameters: int


def build(contender: Contender, num_classes: int, seed: int) -> nn.Module:
    """The network of a contender for pictures (B, 1, H, W); network D starts from the same weights in all of them."""
    random_seed(seed)
    streams = [Stream(_network(name), NETWORKS[name][-1][0]) for name in contender.networks]
    if not contender.head:
        return TwoStreamNet(*streams, num_classes=num_classes)
    (stream,) = streams
    head = SecondOrderHead(stream.channels, num_classes, contender.head, pool_options=dict(contender.options))
    return nn.Sequential(stream.network, head)


def _network(name: str) -> nn.Sequential:
    layers, inner = nn.Sequential(), 1
    for outer, kernel, stride in NETWORKS[name]:
        layers.append(nn.Conv2d(inner, outer, kernel, stride, kernel // 2, bias=False))
        layers.append(nn.BatchNorm2d(outer))
        layers.append(nn.ReLU(inplace=True))
        inner = outer
    return layers


@cache
def classes(images: Path | None) -> dict[str, Photos]:
    """The photographs of every class."""
    return shipped_classes() if images is None else classes_of(images)


@cache
def _pictures(recipe: BilinearRecipe, split: Split, seed: int) -> tuple[Tensor, Tensor]:
    per_class = recipe.per_class if split == "train" else recipe.test_per_class
    return crops(classes(recipe.images), split, per_class, recipe.size, recipe.noise, seed)


def train(recipe: BilinearRecipe, contender: Contender, seed: int) -> BilinearRun:
    """Train and test one contender; the crops, their order and the weights follow from the seed."""
    x, labels = _pictures(recipe, "train", seed)
    model = build(contender, len(classes(recipe.images)), seed)
    optimizer = create_optimizer_v2(
        _groups(model, recipe), opt="adamw", lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    scheduler, _ = create_scheduler_v2(optimizer, "cosine", num_epochs=recipe.epochs, warmup_epochs=recipe.epochs // 10)
    generator = torch.Generator().manual_seed(seed)
    loss = 0.0
    with tqdm(disable=True) as silent:
        for epoch in range(recipe.epochs):
            scheduler.step(epoch)
            batches = _shuffled(x, labels, recipe.batch_size, generator)
            loss, _ = train_epoch(model, batches, optimizer, recipe.clip_grad, silent)
    accuracy = evaluate(model, zip(*(part.split(TEST_BATCH) for part in _pictures(recipe, "val", seed)), strict=True))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return BilinearRun(str(contender), seed, accuracy, loss, parameters)


def _groups(model: nn.Module, recipe: BilinearRecipe) -> list[dict[str, Any]]:
    """Vectors of length one need large weights, so the classifier learns faster than the rest, as in the papers."""
    named = list(model.named_parameters())
    classifier = [parameter for name, parameter in named if "fc" in name.split(".")]
    rest = [parameter for name, parameter in named if "fc" not in name.split(".")]
    return [{"params": rest}, {"params": classifier, "lr": recipe.classifier_rate}]


def _shuffled(x: Tensor, labels: Tensor, batch: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of whole batches, each as it is, mirrored, or turned by a right angle."""
    order = torch.randperm(len(x), generator=generator)
    for chosen in order[: max(len(x) // batch, 1) * batch].split(batch):
        mirrored, turned = (torch.rand(2, generator=generator) < 0.5).tolist()
        picture = x[chosen].flip(3) if mirrored else x[chosen]
        yield (picture.mT if turned else picture).contiguous(), labels[chosen]


def _fastest(times: Sequence[float]) -> float:
    """Mean of the fastest tenth: what else the machine does makes steps slower only."""
    return statistics.mean(sorted(times)[: max(len(times) // 10, 1)])


def train_all(
    recipe: BilinearRecipe, contenders: Sequence[Contender], seeds: int, workers: int = 1
) -> Iterator[BilinearRun]:
    """Every contender with the seeds 0, 1, ..., seed by seed; several at a time in processes of one thread each."""
    jobs = [(recipe, contender, seed) for seed in range(seeds) for contender in contenders]
    if workers == 1:
        yield from (train(*job) for job in jobs)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as executor:
        yield from executor.map(train, *zip(*jobs, strict=True))


def step_times(recipe: BilinearRecipe, contenders: Sequence[Contender]) -> tuple[Milliseconds, Milliseconds]:
    """ms, forward and backward, of the networks for a batch of pictures, and of the pools alone for one of D's maps.

    All take turns, so that what else the machine does hits them alike. There is no pool of one map of two networks.
    """
    x = torch.randn(recipe.batch_size, 1, recipe.size, recipe.size, generator=torch.Generator().manual_seed(0))
    networks = {str(contender): build(contender, len(classes(recipe.images)), 0) for contender in contenders}
    channels = NETWORKS["D"][-1][0]
    side = _network("D")(x[:2]).shape[-1]
    maps = correlated_features(recipe.batch_size, channels, side**2).unflatten(2, (side, side))
    pools = {str(c): create_pool(c.head, channels, **dict(c.options)) for c in contenders if c.head}
    return _milliseconds(networks, x, "networks"), _milliseconds(pools, maps, "pools")


def _milliseconds(modules: Mapping[str, nn.Module], x: Tensor, title: str) -> Milliseconds:
    gradients = {name: seeded_gradient(module(x).shape) for name, module in modules.items()}
    found = time_interleaved(modules, x, gradients, REPEATS, title)
    both = {name: [f + b for f, b in zip(t.forward, t.backward, strict=True)] for name, t in found.items()}
    return {name: 1e3 * _fastest(times) for name, times in both.items()}


def section_table(section: str, runs: Sequence[BilinearRun], networks: Milliseconds, pools: Milliseconds) -> str:
    """One comparison as a Markdown table: means over the seeds ± standard deviation.

    Differences are taken seed by seed.
    """
    header = [
        section,
        "accuracy, %",
        "lowest to highest",
        "less the first row",
        "ms per step",
        "pool alone, ms",
        "weights",
    ]
    of = {str(c): [run for run in runs if run.contender == str(c)] for c in SECTIONS[section].values()}
    first = [run.accuracy for run in next(iter(of.values()))]
    rows = []
    for label, contender in SECTIONS[section].items():
        own = of[str(contender)]
        found = [run.accuracy for run in own]
        less = [a - b for a, b in zip(found, first, strict=True)]
        pool = f"{pools[str(contender)]:.2f}" if str(contender) in pools else "-"
        rows.append(
            [
                label if label == str(contender) else f"{label} (`{contender}`)",
                _mean(found),
                f"{min(found):.1f} to {max(found):.1f}",
                "-" if contender == next(iter(SECTIONS[section].values())) else _mean(less, "+"),
                f"{networks[str(contender)]:.1f}",
                pool,
                f"{own[0].parameters:,}".replace(",", " "),
            ]
        )
    return markdown_table(header, rows)


def _mean(values: Sequence[float], sign: str = "") -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.1f}{spread}"


def compare(
    recipe: BilinearRecipe,
    sections: Sequence[str] = tuple(SECTIONS),
    seeds: int = 5,
    workers: int = 1,
    json: Path | None = None,
) -> list[BilinearRun]:
    """Train everything, print a table for each comparison, write the numbers to ``json``.

    Args:
        recipe: what the trainings have in common.
        sections: comparisons, of ``SECTIONS``.
        seeds: how many; they are 0, 1, ...
        workers: trainings at a time.
        json: file for all numbers.

    Raises:
        OptionError: for a folder of images that is no folder of classes.
    """
    contenders = list(dict.fromkeys(contender for name in sections for contender in SECTIONS[name].values()))
    names = list(classes(recipe.images))
    runs: list[BilinearRun] = []
    with tqdm(total=seeds * len(contenders), desc="train", unit="training", disable=None) as bar:
        for run in train_all(recipe, contenders, seeds, workers):
            runs.append(run)
            _save(json, recipe, names, runs)
            bar.update()
            bar.set_postfix_str(f"{run.contender}, seed {run.seed}: {run.accuracy:.1f} %")
    times = step_times(recipe, contenders)
    print(f"{len(names)} classes, by chance {100 / len(names):.1f} %; {seeds} seeds; {', '.join(names)}")
    for name in sections:
        print(f"\n{section_table(name, runs, *times)}")
    _save(json, recipe, names, runs, times)
    return runs


def _save(
    path: Path | None,
    recipe: BilinearRecipe,
    names: list[str],
    runs: list[BilinearRun],
    times: tuple[Milliseconds, Milliseconds] = ({}, {}),
) -> None:
    if path is None:
        return
    facts: dict[str, Any] = dict(torch=torch.__version__, cores=os.cpu_count(), classes=names)
    common = asdict(recipe) | {"images": recipe.images and str(recipe.images)}
    write_json(
        path, facts | dict(recipe=common, networks_ms=times[0], pools_ms=times[1], runs=[asdict(run) for run in runs])
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = Parser(
        __doc__ or "", "python -m covpool_plugins.experiments.bilinear --json out/bilinear.json", prog="bilinear"
    )
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="one folder per class, instead of the shipped photos"
    )
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="NAME")
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each row (5)")
    parser.add_argument("--workers", type=int, default=2, help="trainings at a time, one thread each (2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers")
    settings = ("epochs", "per_class", "test_per_class", "size")
    for name in settings:
        value = getattr(BilinearRecipe, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value, help=f"({value})")
    options = parser.parse_args(arguments)
    for name in ("seeds", "workers", *settings):
        check_integer(f"--{name.replace('_', '-')}", getattr(options, name))
    recipe = BilinearRecipe(options.images, **{name: getattr(options, name) for name in settings})
    torch.set_num_threads(1)  # small networks gain nothing by more
    compare(recipe, options.sections, options.seeds, options.workers, options.json)


if __name__ == "__main__":
    run_tool(main)
