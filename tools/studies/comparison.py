"""What the comparisons share: small networks from scratch, pool after pool on the same pictures, seed by seed."""

from __future__ import annotations

import argparse
import copy
import multiprocessing
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

from covpool_plugins.architectures.two_stream import Stream, TwoStreamNet
from covpool_plugins.checks import check_integer
from covpool_plugins.errors import OptionError
from covpool_plugins.files import write_json
from covpool_plugins.linalg import resolve_method
from covpool_plugins.linalg.packing import unpack_symmetric
from covpool_plugins.pooling import CovariancePool, create_pool
from covpool_plugins.timm_plugin import SecondOrderHead

from .baselines import BASELINES
from .measure import bytes_saved, correlated_features, seeded_gradient, time_interleaved
from .modes import check_outputs
from .sources import source
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
        switch: name of the square-root method of the second half of the epochs; empty to keep the first.
        baseline: name in ``BASELINES`` of a plain form of the root that takes the place of the pool's.
    """

    head: str = ""
    options: tuple[tuple[str, Any], ...] = ()
    networks: tuple[str, ...] = ("D",)
    switch: str = ""
    baseline: str = ""

    def __str__(self) -> str:
        if self.baseline:
            return self.baseline
        given = ", ".join(f"{option}={value}" for option, value in self.options)
        named = f"[{'+'.join(self.networks)}]" if not self.head else f"{self.head}({given})" if given else self.head
        return f"{named}, then {self.switch}" if self.switch else named


@dataclass(frozen=True)
class ComparisonRecipe:
    """What all trainings have in common; ``pictures`` is a name in ``SOURCES`` or a folder of classes."""

    pictures: str = "photographs"
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


SETTINGS = ("epochs", "per_class", "test_per_class", "size")


@dataclass(frozen=True)
class ComparisonRun:
    """One training.

    Args:
        contender: what was trained.
        pictures: on what.
        seed: of everything that is random.
        accuracy: on the test pictures, in percent; none for a training that failed.
        loss: of the last epoch.
        parameters: how many.
        condition: condition number of the test features' covariance, median; none for a pool that has no spectrum.
        condition_after: that of the matrix which the pool makes of it; none for a pool that makes no matrix.
    """

    contender: str
    pictures: str
    seed: int
    accuracy: float | None
    loss: float
    parameters: int
    condition: float | None = None
    condition_after: float | None = None

    @property
    def failed(self) -> bool:
        """Whether something was not finite any more."""
        return self.accuracy is None


def build(contender: Contender, num_classes: int, seed: int) -> nn.Module:
    """The network of a contender for pictures (B, 1, H, W); network D starts from the same weights in all of them."""
    random_seed(seed)
    streams = [Stream(_network(name), NETWORKS[name][-1][0]) for name in contender.networks]
    if not contender.head:
        return TwoStreamNet(*streams, num_classes=num_classes)
    (stream,) = streams
    head: Any = SecondOrderHead(stream.channels, num_classes, contender.head, pool_options=dict(contender.options))
    if contender.baseline:
        head.global_pool.normalization = BaselineRoot(contender.baseline)
    return nn.Sequential(stream.network, head)


class BaselineRoot(nn.Module):
    """A plain form of the root in the place of a pool's normalisation."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.baseline = BASELINES[name]

    def forward(self, X: Tensor, *unused: Any) -> Tensor:
        return self.baseline(X)


def _network(name: str) -> nn.Sequential:
    layers, inner = nn.Sequential(), 1
    for outer, kernel, stride in NETWORKS[name]:
        layers.append(nn.Conv2d(inner, outer, kernel, stride, kernel // 2, bias=False))
        layers.append(nn.BatchNorm2d(outer))
        layers.append(nn.ReLU(inplace=True))
        inner = outer
    return layers


@cache
def _pictures(recipe: ComparisonRecipe, split: Split, seed: int) -> tuple[Tensor, Tensor]:
    per_class = recipe.per_class if split == "train" else recipe.test_per_class
    return source(recipe.pictures).draw(split, per_class, recipe.size, recipe.noise, seed)


def train(recipe: ComparisonRecipe, contender: Contender, seed: int) -> ComparisonRun:
    """Train and test one contender; the pictures, their order and the weights follow from the seed."""
    model = build(contender, len(source(recipe.pictures).classes), seed)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    facts: dict[str, Any] = dict(contender=str(contender), pictures=recipe.pictures, seed=seed, parameters=parameters)
    try:
        loss = _fit(recipe, contender, model, seed)
    except torch.linalg.LinAlgError:  # eigh of what is not finite
        return ComparisonRun(**facts, accuracy=None, loss=float("nan"))
    if not all(parameter.isfinite().all() for parameter in model.parameters()):
        return ComparisonRun(**facts, accuracy=None, loss=loss)
    x, labels = _pictures(recipe, "val", seed)
    accuracy = evaluate(model, zip(x.split(TEST_BATCH), labels.split(TEST_BATCH), strict=True))
    before, after = condition_numbers(model, x[:: max(len(x) // TEST_BATCH, 1)])
    return ComparisonRun(**facts, accuracy=accuracy, loss=loss, condition=before, condition_after=after)


def _fit(recipe: ComparisonRecipe, contender: Contender, model: nn.Module, seed: int) -> float:
    x, labels = _pictures(recipe, "train", seed)
    optimizer = create_optimizer_v2(
        _groups(model, recipe), opt="adamw", lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    scheduler, _ = create_scheduler_v2(optimizer, "cosine", num_epochs=recipe.epochs, warmup_epochs=recipe.epochs // 10)
    generator = torch.Generator().manual_seed(seed)
    loss, turns = 0.0, source(recipe.pictures).turns
    with tqdm(disable=True) as silent:
        for epoch in range(recipe.epochs):
            if contender.switch and epoch == recipe.epochs // 2:
                _pool(model).method = resolve_method(contender.switch)
            scheduler.step(epoch)
            batches = _shuffled(x, labels, recipe.batch_size, turns, generator)
            loss, _ = train_epoch(model, batches, optimizer, recipe.clip_grad, silent)
    return loss


def _pool(model: Any) -> Any:
    """The pool of one map; there is none of two networks."""
    return None if isinstance(model, TwoStreamNet) else model[-1].global_pool


def _groups(model: nn.Module, recipe: ComparisonRecipe) -> list[dict[str, Any]]:
    """Vectors of length one need large weights, so the classifier learns faster than the rest, as in the papers."""
    named = list(model.named_parameters())
    classifier = [parameter for name, parameter in named if "fc" in name.split(".")]
    rest = [parameter for name, parameter in named if "fc" not in name.split(".")]
    return [{"params": rest}, {"params": classifier, "lr": recipe.classifier_rate}]


def _shuffled(
    x: Tensor, labels: Tensor, batch: int, turns: bool, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of whole batches; where it ``turns``, each as it is, mirrored, or turned by a right angle."""
    order = torch.randperm(len(x), generator=generator)
    for chosen in order[: max(len(x) // batch, 1) * batch].split(batch):
        mirrored, turned = ((torch.rand(2, generator=generator) < 0.5) & turns).tolist()
        picture = x[chosen].flip(3) if mirrored else x[chosen]
        yield (picture.mT if turned else picture).contiguous(), labels[chosen]


@torch.no_grad()
def condition_numbers(model: nn.Module, x: Tensor) -> tuple[float | None, float | None]:
    """Medians over pictures of the condition numbers of the covariance and of the matrix that the pool makes of it.

    Both count as many eigenvalues as the covariance has that can be told from zero, in float64.
    """
    pool = _pool(model)
    if pool is None:
        return None, None
    taken: list[Tensor] = []
    with pool.register_forward_pre_hook(lambda module, args: taken.append(args[0])):
        model.eval()(x)
    pool, maps = copy.deepcopy(pool).double(), taken[0].double()
    spectrum = pool.spectrum(maps)
    condition = spectrum.condition_number.median().item()
    if not isinstance(pool, CovariancePool):
        return condition, None
    entries = pool.entries(pool.features(maps))
    size = (pool.channels, pool.channels)
    matrix = unpack_symmetric(entries, size[0]) if pool.vectorize == "triu" else entries.unflatten(1, size)
    values = torch.linalg.eigvalsh(matrix).abs().sort(dim=1, descending=True).values
    smallest = values.gather(1, (spectrum.rank - 1).clamp_min(0).unsqueeze(1))[:, 0]
    return condition, (values[:, 0] / smallest).median().item()


def train_all(jobs: Sequence[tuple[ComparisonRecipe, Contender, int]], workers: int = 1) -> Iterator[ComparisonRun]:
    """All trainings in their order; several at a time in processes of one thread each."""
    if workers == 1:
        yield from (train(*job) for job in jobs)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as executor:
        yield from executor.map(train, *zip(*jobs, strict=True))


def run_all(
    jobs: Sequence[tuple[ComparisonRecipe, Contender, int]], workers: int, json: Path | None, facts: Mapping[str, Any]
) -> list[ComparisonRun]:
    """As :func:`train_all`, with a progress bar; what is done is in ``json``, also when the rest is interrupted."""
    runs: list[ComparisonRun] = []
    with tqdm(total=len(jobs), desc="train", unit="training", disable=None) as bar:
        for run in train_all(jobs, workers):
            runs.append(run)
            save(json, facts, runs)
            bar.update()
            found = "failed" if run.accuracy is None else f"{run.accuracy:.1f} %"
            bar.set_postfix_str(f"{run.contender}, {run.pictures}, seed {run.seed}: {found}")
    return runs


def save(path: Path | None, facts: Mapping[str, Any], runs: Sequence[ComparisonRun]) -> None:
    """All numbers as JSON, where a file is given."""
    if path is not None:
        write_json(path, {**facts, "runs": [asdict(run) for run in runs]})


def step_times(recipe: ComparisonRecipe, contenders: Sequence[Contender]) -> tuple[Milliseconds, Milliseconds]:
    """ms, forward and backward, of the networks for a batch of pictures, and of the pools alone for one of D's maps.

    All take turns, so that what else the machine does hits them alike. There is no pool of one map of two networks.
    """
    x, networks = _batch(recipe, contenders)
    channels = NETWORKS["D"][-1][0]
    side = _network("D")(x[:2]).shape[-1]
    maps = correlated_features(recipe.batch_size, channels, side**2).unflatten(2, (side, side))
    pools = {str(c): create_pool(c.head, channels, **dict(c.options)) for c in contenders if c.head}
    return _milliseconds(networks, x, "networks"), _milliseconds(pools, maps, "pools")


def memory(recipe: ComparisonRecipe, contenders: Sequence[Contender]) -> dict[str, float]:
    """MB that the graph of a batch keeps for its backward, by contender."""
    x, networks = _batch(recipe, contenders)
    return {name: bytes_saved(network, x) / 1e6 for name, network in networks.items()}


def _batch(recipe: ComparisonRecipe, contenders: Sequence[Contender]) -> tuple[Tensor, dict[str, nn.Module]]:
    shape = (recipe.batch_size, 1, recipe.size, recipe.size)
    classes = len(source(recipe.pictures).classes)
    networks = {str(contender): build(contender, classes, 0) for contender in contenders}
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)), networks


def _milliseconds(modules: Mapping[str, nn.Module], x: Tensor, title: str) -> Milliseconds:
    gradients = {name: seeded_gradient(module(x).shape) for name, module in modules.items()}
    found = time_interleaved(modules, x, gradients, REPEATS, title)
    both = {name: [f + b for f, b in zip(t.forward, t.backward, strict=True)] for name, t in found.items()}
    return {name: 1e3 * _fastest(times) for name, times in both.items()}


def _fastest(times: Sequence[float]) -> float:
    """Mean of the fastest tenth: what else the machine does makes steps slower only."""
    return statistics.mean(sorted(times)[: max(len(times) // 10, 1)])


def mean_and_spread(values: Sequence[float], sign: str = "") -> str:
    """Mean ± standard deviation, with one digit."""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.1f}{spread}" if values else "-"


def add_arguments(parser: argparse.ArgumentParser, recipe: ComparisonRecipe) -> None:
    """The options of every comparison, with the defaults of ``recipe``."""
    parser.add_argument(
        "--images",
        metavar="DIR",
        help="one folder of pictures per class, instead of those that ship; every third is for testing",
    )
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each row (5)")
    parser.add_argument("--workers", type=int, default=2, help="trainings at a time, one thread each (2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers")
    for name in SETTINGS:
        value = getattr(recipe, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value, help=f"({value})")


def check_arguments(options: argparse.Namespace) -> dict[str, int]:
    """The recipe's settings among the arguments.

    Raises:
        OptionError: for a number that is not positive, pictures that are not there, or a file that cannot be written.
    """
    for name in ("seeds", "workers", *SETTINGS):
        check_integer(f"--{name.replace('_', '-')}", getattr(options, name))
    check_outputs(options.json)
    if options.images is not None and not Path(options.images).is_dir():
        raise OptionError(f"--images {options.images}: no such folder")
    return {name: getattr(options, name) for name in SETTINGS}
