"""Does an explanation depend on what the network has learned? Weights are made random, from the classifier down."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..checks import check_integer
from ..errors import NotApplicableError, ShapeError
from .explanation import Explanation
from .images import ImageLike, as_input
from .methods import explain_over_picture, explanation_options, with_options
from .model_view import ModelView, disposable

THRESHOLD = 0.5
VERDICTS = {None: "n/a", True: "depends on the weights", False: "hardly depends on the weights"}
STEPS = 6


@dataclass(frozen=True)
class Randomization:
    """How alike a map is to the original one once some layers are random.

    Args:
        method: name of the explanation method.
        layers: the random layers, in the order in which they became random.
        similarity: Spearman's rank correlation of the two maps, or ``None`` where there is none.
        note: why there is none.
    """

    method: str
    layers: tuple[str, ...]
    similarity: float | None
    note: str = ""


def cascading_randomization(
    model: nn.Module | ModelView,
    image: ImageLike,
    methods: Sequence[str] | Mapping[str, Mapping[str, Any]],
    target: int | None = None,
    *,
    seed: int = 0,
    steps: int = STEPS,
) -> list[Randomization]:
    """The sanity check of explanations: weights are made random from the classifier down, and maps are compared.

    The layers are the classifier, the pool's reduction, then the stages of the backbone from the last to the first.
    New weights are normal, of the size of the old ones, so that activations neither vanish nor explode; running
    statistics of batch norm stay. Signed methods are compared by the signed map, others by its magnitude. A method
    that chose its own layer in the original network keeps it. One that draws random numbers draws new ones.

    Args:
        model: the classifier, which is left as it is, or a view of it.
        image: what :func:`covpool_plugins.explain.explain` takes.
        methods: names of explanation methods, or a mapping from names to options.
        target: the class; the default is the one with the highest score.
        seed: of the random weights; no other random numbers are drawn or changed.
        steps: of the cascade, at most: the classifier, then the other layers in equal parts.

    Returns:
        For each method a row per step. A method without a map that can be compared has one row without random layers,
        whose note tells why.

    Raises:
        UnknownNameError: for a method that does not exist.
        OptionError: for an option out of range.

    Source: Adebayo, Gilmer, Muelly, Goodfellow, Hardt & Kim, "Sanity Checks for Saliency Maps", NeurIPS 2018.

    Examples:
        >>> model = covpool_plugins.create_model("test_resnet", num_classes=3, reduce_channels=8)
        >>> rows = cascading_randomization(model, torch.randn(1, 3, 64, 64), ["contribution"], steps=2)
        >>> [row.layers[:1] for row in rows]
        [('head.fc',), ('head.fc',)]
    """
    check_integer("seed", seed, 0)
    check_integer("steps", steps)
    options = with_options(methods)
    view = ModelView.of(model)
    x = as_input(image, view.preprocessing)
    passed = view.forward_pass(x)
    originals: dict[str, np.ndarray] = {}
    rows: dict[str, list[Randomization]] = {method: [] for method in options}
    for method, own in options.items():
        try:
            original = explain_over_picture(view, passed, method, target, **own)
            originals[method] = _compared(original)
        except NotApplicableError as error:
            rows[method].append(Randomization(method, (), None, str(error)))
            continue
        target = original.target
        if "layer" in explanation_options(method):
            own["layer"] = original.layer
    total = len(originals) * steps
    with tqdm(total=total, desc="randomize", unit="map", disable=None, leave=False) as bar:
        for step, (layers, random) in enumerate(randomized_views(view, x, seed, steps), start=1):
            random_passed = random.forward_pass(x)
            for method, map in originals.items():
                own = dict(options[method])
                if "seed" in explanation_options(method):  # the same random numbers alone make maps alike
                    own["seed"] = own.get("seed", 0) + step
                try:
                    other = _compared(explain_over_picture(random, random_passed, method, target, **own))
                    row = Randomization(method, layers, rank_correlation(map, other))
                except NotApplicableError as error:
                    row = Randomization(method, layers, None, str(error))
                rows[method].append(row)
                bar.update()
    return [row for method in options for row in rows[method]]


def _compared(explanation: Explanation) -> np.ndarray:
    """The map, by its magnitude where it has no sign.

    Raises:
        NotApplicableError: for one that has no ranks.
    """
    map = explanation.map if explanation.signed else np.abs(explanation.map)
    if np.ptp(map) == 0:
        raise NotApplicableError("the map is the same everywhere")
    return map


def depends_on_weights(rows: Sequence[Randomization]) -> dict[str, bool | None]:
    """Whether each method passes: with all layers random, its map's similarity is below 0.5 in magnitude.

    ``None`` where there is no similarity with all layers random. A map of which less than a quarter of the variance of
    ranks is shared with the original one (0.5²) shows mostly what was learned; one far above it shows the picture.

    Examples:
        >>> rows = [Randomization("gradient", ("fc",), 0.9), Randomization("gradient", ("fc", "conv1"), 0.1)]
        >>> depends_on_weights(rows)
        {'gradient': True}
    """
    last = {row.method: row.similarity for row in rows}
    return {method: None if value is None else abs(value) < THRESHOLD for method, value in last.items()}


def rank_correlation(first: Tensor | np.ndarray, second: Tensor | np.ndarray) -> float | None:
    """Spearman's rank correlation of the entries of two arrays; equal entries have the mean of their ranks.

    ``None`` where all entries of an array are equal.

    Raises:
        ShapeError: for arrays of two sizes.
    """
    a, b = (torch.as_tensor(values, dtype=torch.float64) for values in (first, second))
    if a.shape != b.shape:
        raise ShapeError(f"maps must have the same size, got {tuple(a.shape)} and {tuple(b.shape)}")
    correlation = torch.stack([_ranks(a.flatten()), _ranks(b.flatten())]).corrcoef()[0, 1].item()
    return None if math.isnan(correlation) else correlation


def _ranks(values: Tensor) -> Tensor:
    _, place, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts - 1) / 2)[place]


def randomized_views(
    view: ModelView, x: Tensor, seed: int = 0, steps: int = STEPS
) -> Iterator[tuple[tuple[str, ...], ModelView]]:
    """Views of the model with more and more layers random, and the names of those layers; the view itself stays.

    Args:
        view: the model.
        x: an input, which tells the order of the layers.
        seed: of the random weights.
        steps: how many views, at most.
    """
    layers = _layers_from_the_classifier_down(view, x)
    generator = torch.Generator("cpu").manual_seed(seed)
    parts = min(steps - 1, len(layers) - 1)
    bounds = np.linspace(1, len(layers), parts + 1).round().astype(int) if parts else [len(layers)]
    done = 0
    for bound in bounds:
        view = replace(copy.deepcopy(view, {id(view.preprocessing): view.preprocessing}))  # without what is cached
        modules = dict(view.model.named_modules())
        own = [modules[name] for layer in list(layers)[done:bound] for name in layers[layer]]
        for parameter in dict.fromkeys(p for module in own for p in module.parameters(recurse=False)):
            parameter.data = _draw(parameter, generator)
        done = int(bound)
        yield tuple(list(layers)[:done]), view


def _layers_from_the_classifier_down(view: ModelView, x: Tensor) -> dict[str, list[str]]:
    """Names of modules with parameters of their own, by layer: stages, the pool, and modules outside them."""
    owners = [n for n, m in view.model.named_modules() if next(m.parameters(recurse=False), None) is not None]
    names = {module: name for name, module in view.model.named_modules()}
    layers: dict[str, list[str]] = {}
    for name in reversed(_in_order_of_use(view, x, owners)):
        layers.setdefault(_layer_of(name, [*view.shallow_stages, names.get(view.pool)]), []).append(name)
    classifier = next(iter(layers)) if view.classifier is None else names[view.classifier]
    return {classifier: layers.pop(classifier), **layers}


def _layer_of(name: str, layers: Sequence[str | None]) -> str:
    """The smallest of the layers that holds a module, or the module itself."""
    holding = [layer for layer in layers if layer and (name == layer or name.startswith(f"{layer}."))]
    return max(holding, key=len, default=name) or "the model"


def _in_order_of_use(view: ModelView, x: Tensor, names: Sequence[str]) -> list[str]:
    """The modules in the order in which they begin for the last time; those that are not called come first."""
    own, order = disposable(view), dict.fromkeys(names)
    modules = dict(own.model.named_modules())
    for name in names:
        modules[name].register_forward_pre_hook(lambda *_, name=name: order.update({name: order.pop(name)}))
    own.logits(x)
    return list(order)


def _draw(parameter: nn.Parameter, generator: torch.Generator) -> Tensor:
    """Normal numbers: weights about zero and of the old root mean square, gains and biases of the old mean and spread.

    Source of the distribution: this package; the paper draws from each layer's initialisation, which in networks
    with trained running statistics would not keep the size of the activations.
    """
    old = parameter.detach().double().cpu()
    mean, size = (0.0, old.square().mean().sqrt()) if old.ndim > 1 else (old.mean(), old.std(correction=0))
    return (mean + size * torch.randn(old.shape, generator=generator, dtype=torch.float64)).to(parameter)


def sanity_table(
    models: Mapping[str, ModelView],
    methods: Mapping[str, Mapping[str, Any]],
    pictures: Mapping[str, Path],
    target: int | None = None,
    seed: int = 0,
) -> list[dict[str, str]]:
    """Every method of every model on every picture, each by its name, as rows of text."""
    rows = []
    for (picture, path), (model, view) in product(pictures.items(), models.items()):
        steps = cascading_randomization(view, path, methods, target, seed=seed)
        verdicts = depends_on_weights(steps)
        for method in methods:
            own = [step for step in steps if step.method == method]
            correlations = " ".join("n/a" if step.similarity is None else f"{step.similarity:+.2f}" for step in own)
            verdict = next((step.note for step in reversed(own) if step.note), VERDICTS[verdicts[method]])
            rows.append(dict(image=picture, model=model, method=method, correlations=correlations, verdict=verdict))
    return rows
