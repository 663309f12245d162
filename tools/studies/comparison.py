"""Small networks trained from scratch, pool after pool on the same pictures, seed by seed, and what a step costs."""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.utils import random_seed
from torch import Tensor, nn

from covpool_plugins.linalg import resolve_method
from covpool_plugins.pooling import CovariancePool
from covpool_plugins.timm_plugin import SecondOrderHead
from covpool_plugins.timm_plugin.two_stream import Stream, TwoStreamNet

from .baselines import BASELINES
from .measure import bytes_saved, correlated_features, seeded_gradient, time_interleaved
from .modes import add_numbers, add_training_arguments, environment, existing_folder
from .photographs import Split, source
from .training import DivergedError, accuracy, cosine, fit, train_all, write_runs

# Channels, kernel and stride of each convolution. D is deep with small kernels, M shallow with large ones; their maps
# of 64 pixels have 8x8 positions.
STREAMS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "D": ((16, 3, 2), (24, 3, 2), (32, 3, 2), (32, 3, 1)),
    "M": ((24, 7, 4), (32, 5, 2)),
}
TEST_BATCH = 100
REPEATS = 40


@dataclass(frozen=True)
class SmallNetwork:
    """A pool behind the convolutions D, or the outer product of the maps of two streams.

    Args:
        pool: its name; empty for two streams.
        options: of the pool.
        streams: names in ``STREAMS``.
        switch: name of the square-root method of the second half of the epochs; empty to keep the first.
        baseline: name in ``BASELINES`` of a plain form of the root that takes the place of the pool's.
    """

    pool: str = ""
    options: tuple[tuple[str, Any], ...] = ()
    streams: tuple[str, ...] = ("D",)
    switch: str = ""
    baseline: str = ""

    def __str__(self) -> str:
        if self.baseline:
            return self.baseline
        if not self.pool:
            return f"[{'+'.join(self.streams)}]"
        options = ", ".join(f"{option}={value}" for option, value in self.options)
        name = f"{self.pool}({options})" if options else self.pool
        return f"{name}, then {self.switch}" if self.switch else name


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
        network: what was trained.
        pictures: on what.
        seed: of everything that is random.
        parameters: how many.
        accuracy: on the test pictures, in percent; none for a training that diverged.
        loss: of the last epoch.
        condition: condition number of the test features' covariance, median; none for a pool that has no spectrum.
        condition_after: that of the matrix which the pool makes of it; none for a pool that makes no matrix.
    """

    network: str
    pictures: str
    seed: int
    parameters: int
    accuracy: float | None = None
    loss: float | None = None
    condition: float | None = None
    condition_after: float | None = None


def build(network: SmallNetwork, num_classes: int, seed: int) -> nn.Module:
    """The network for pictures (B, 1, H, W); the convolutions D start from the same weights in all of them."""
    random_seed(seed)
    streams = [Stream(_convolutions(name), STREAMS[name][-1][0]) for name in network.streams]
    if not network.pool:
        return TwoStreamNet(*streams, num_classes=num_classes)
    (stream,) = streams
    head: Any = SecondOrderHead(stream.channels, num_classes, network.pool, pool_options=dict(network.options))
    if network.baseline:
        head.global_pool.normalization = BaselineRoot(network.baseline)
    return nn.Sequential(stream.network, head)


class BaselineRoot(nn.Module):
    """A plain form of the root in the place of a pool's normalisation."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.baseline = BASELINES[name]

    def forward(self, X: Tensor, *unused: Any) -> Tensor:
        return self.baseline(X)


def _convolutions(name: str) -> nn.Sequential:
    layers, inner = nn.Sequential(), 1
    for outer, kernel, stride in STREAMS[name]:
        layers.append(nn.Conv2d(inner, outer, kernel, stride, kernel // 2, bias=False))
        layers.append(nn.BatchNorm2d(outer))
        layers.append(nn.ReLU(inplace=True))
        inner = outer
    return layers


def pool_of(model: Any) -> Any:
    """The pool of one map; there is none of two streams."""
    return None if isinstance(model, TwoStreamNet) else model[-1].global_pool


@cache
def _pictures(recipe: ComparisonRecipe, split: Split, seed: int) -> tuple[Tensor, Tensor]:
    per_class = recipe.per_class if split == "train" else recipe.test_per_class
    return source(recipe.pictures).draw(split, per_class, recipe.size, recipe.noise, seed)


def train(recipe: ComparisonRecipe, network: SmallNetwork, seed: int) -> ComparisonRun:
    """Train and test one network; the pictures, their order and the weights follow from the seed."""
    model = build(network, len(source(recipe.pictures).classes), seed)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    run = ComparisonRun(str(network), recipe.pictures, seed, parameters)
    optimizer = create_optimizer_v2(
        _parameter_groups(model, recipe), opt="adamw", lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    generator = torch.Generator().manual_seed(seed)
    epochs = fit(
        model,
        optimizer,
        recipe.epochs,
        lambda: _shuffled(recipe, seed, generator),
        scheduler=cosine(optimizer, recipe.epochs, recipe.epochs // 10),
        clip_grad=recipe.clip_grad,
    )
    losses = []
    try:
        for epoch, (loss, _) in enumerate(epochs, 1):
            losses.append(loss)
            if network.switch and epoch == recipe.epochs // 2:
                pool_of(model).method = resolve_method(network.switch)
    except DivergedError:
        return run
    x, labels = _pictures(recipe, "val", seed)
    percent = accuracy(model, zip(x.split(TEST_BATCH), labels.split(TEST_BATCH), strict=True))
    before, after = condition_numbers(model, x[:: max(len(x) // TEST_BATCH, 1)])
    return replace(run, accuracy=percent, loss=losses[-1], condition=before, condition_after=after)


def _parameter_groups(model: nn.Module, recipe: ComparisonRecipe) -> list[dict[str, Any]]:
    """Vectors of length one need large weights, so the classifier learns faster than the rest, as in the papers."""
    named = list(model.named_parameters())
    classifier = [parameter for name, parameter in named if "fc" in name.split(".")]
    rest = [parameter for name, parameter in named if "fc" not in name.split(".")]
    return [{"params": rest}, {"params": classifier, "lr": recipe.classifier_rate}]


def _shuffled(recipe: ComparisonRecipe, seed: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of whole batches; if the classes allow it, each as it is, mirrored, or turned by a right angle."""
    (x, labels), turns = _pictures(recipe, "train", seed), source(recipe.pictures).turns
    order = torch.randperm(len(x), generator=generator)
    for chosen in order[: max(len(x) // recipe.batch_size, 1) * recipe.batch_size].split(recipe.batch_size):
        mirrored, turned = ((torch.rand(2, generator=generator) < 0.5) & turns).tolist()
        picture = x[chosen].flip(3) if mirrored else x[chosen]
        yield (picture.mT if turned else picture).contiguous(), labels[chosen]


@torch.no_grad()
def condition_numbers(model: nn.Module, x: Tensor) -> tuple[float | None, float | None]:
    """Medians over pictures of the condition numbers of the covariance and of the matrix that the pool makes of it.

    Both count as many eigenvalues as the covariance has that can be told from zero, in float64.
    """
    pool = pool_of(model)
    if pool is None:
        return None, None
    inputs: list[Tensor] = []
    with pool.register_forward_pre_hook(lambda module, args: inputs.append(args[0])):
        model.eval()(x)
    pool, maps = copy.deepcopy(pool).double(), inputs[0].double()
    spectrum = pool.spectrum(maps)
    condition = spectrum.condition_number.median().item()
    if not isinstance(pool, CovariancePool):
        return condition, None
    matrix = pool.matrix(pool.entries(pool.features(maps)))
    values = torch.linalg.eigvalsh(matrix).abs().sort(dim=1, descending=True).values
    smallest = values.gather(1, (spectrum.rank - 1).clamp_min(0).unsqueeze(1))[:, 0]
    return condition, (values[:, 0] / smallest).median().item()


@dataclass(frozen=True)
class Costs:
    """Of a training step, by network: ms, ms of the pool alone, MB that the graph keeps for its backward.

    There is no pool of one map of two streams.
    """

    step_ms: dict[str, float]
    pool_ms: dict[str, float]
    kept_mb: dict[str, float]


def measure_costs(recipe: ComparisonRecipe, networks: Sequence[SmallNetwork]) -> Costs:
    """The costs for one batch; all networks take turns, so that what else the machine does hits them alike."""
    shape = (recipe.batch_size, 1, recipe.size, recipe.size)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    models: dict[str, Any] = {str(net): build(net, len(source(recipe.pictures).classes), 0) for net in networks}
    channels, side = STREAMS["D"][-1][0], _convolutions("D")(x[:2]).shape[-1]
    maps = correlated_features(recipe.batch_size, channels, side**2).unflatten(2, (side, side))
    pools = {name: pool_of(model) for name, model in models.items() if pool_of(model) is not None}
    kept = {name: bytes_saved(model, x) / 1e6 for name, model in models.items()}
    return Costs(_milliseconds(models, x, "networks"), _milliseconds(pools, maps, "pools"), kept)


def _milliseconds(modules: Mapping[str, nn.Module], x: Tensor, title: str) -> dict[str, float]:
    """Forward and backward: the mean of the fastest tenth, since what else the machine does makes steps slower only."""
    gradients = {name: seeded_gradient(module(x).shape) for name, module in modules.items()}
    milliseconds = {}
    for name, times in time_interleaved(modules, x, gradients, REPEATS, title).items():
        both = sorted(f + b for f, b in zip(times.forward, times.backward, strict=True))
        milliseconds[name] = 1e3 * statistics.mean(both[: max(len(both) // 10, 1)])
    return milliseconds


def add_comparison_arguments(parser: argparse.ArgumentParser, recipe: ComparisonRecipe) -> None:
    """The options of the comparisons of small networks, with the defaults of ``recipe``."""
    parser.add_argument(
        "--images",
        type=existing_folder,
        metavar="DIR",
        help="one folder of pictures per class, instead of those that ship; every third is for testing",
    )
    add_numbers(parser, "--workers", 2, "trainings at a time, one thread each")
    add_training_arguments(parser, recipe, SETTINGS, seeds=5)


def compare(
    options: argparse.Namespace, recipe: ComparisonRecipe, pictures: Sequence[str], networks: Sequence[SmallNetwork]
) -> tuple[list[ComparisonRun], Costs]:
    """Train every network on all pictures with every seed, measure costs, write the numbers and say on what they are.

    Args:
        options: those of :func:`add_comparison_arguments`.
        recipe: what the options leave as it is.
        pictures: names in ``SOURCES``; ``--images`` takes their place.
        networks: what is compared.

    Raises:
        OptionError: for a folder of images that is no folder of classes.
    """
    torch.set_num_threads(1)  # small networks gain nothing by more
    settings = {name: getattr(options, name) for name in SETTINGS}
    names = [str(options.images)] if options.images else pictures
    recipes = [replace(recipe, pictures=name, **settings) for name in names]
    classes = {name: source(name).classes for name in names}  # a mistake shows before the first training
    facts: dict[str, Any] = {**environment(), "recipes": [asdict(recipe) for recipe in recipes], "classes": classes}
    jobs = [(recipe, network, seed) for seed in range(options.seeds) for recipe in recipes for network in networks]
    runs = train_all(train, jobs, options.json, facts, options.workers)
    # A network that changes its method takes the time of the two that it is made of.
    costs = measure_costs(recipes[0], [network for network in networks if not network.switch])
    write_runs(options.json, facts | asdict(costs), runs)
    for name, labels in classes.items():
        chance = f"{len(labels)} classes, by chance {100 / len(labels):.1f} %"
        print(f"{name}: {chance}; {options.seeds} seeds; {', '.join(labels)}")
    return runs, costs
