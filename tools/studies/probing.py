"""What ``tools/probe.py`` does: features once, then every pool on every layer, fold by fold."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import nn
from tqdm import tqdm

from covpool_plugins.command_line import available_device, markdown_table
from covpool_plugins.errors import OptionError, one_line, require_extra
from covpool_plugins.files import check_folder, write_atomically, write_json
from covpool_plugins.probe import Features, cached_features, list_probe_pools, model_with_probe, packaged_weights
from covpool_plugins.probe.estimator import CLASSIFIERS, SecondOrderProbe, logistic
from covpool_plugins.probe.packaged_weights import PACKAGES
from covpool_plugins.timm_plugin import save_for_hub

from .figures import mean_and_interval, mean_and_spread, new_figure, save_figure, shown_interval
from .labelled import LabelledFiles, folds, labelled_files
from .modes import add_numbers, environment, existing_folder
from .probing_page import write_mistakes
from .regions import write_regions
from .rows import head_and_options

TOKEN = "token"  # the class token, for models that have one
POOLS = ("gap", "svdpade", "isqrt", "gaussian", "ibcnn", "moment")
LAST = "last"
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # C of the logistic classifier, whose penalty is 1 / C


@dataclass(frozen=True)
class ProbeRow:
    """One pool on one layer.

    Args:
        layer: name of a module, or ``last``: what the model's pooling sees.
        pool: with its options.
        strength: C of the logistic classifier.
        accuracies: on each fold, in percent.
        seconds: to fit and predict, of each fold; without the features.
        width: of the vectors.
        predicted: the class of each picture, by the probe that was not fitted on it; -1 on a fold for choosing.
        failed: why there are no numbers.
    """

    layer: str
    pool: str
    strength: float | None
    accuracies: list[float]
    seconds: list[float]
    width: int
    predicted: list[int]
    failed: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="tf_efficientnet_lite0", metavar="NAME", help="(tf_efficientnet_lite0)")
    parser.add_argument("--packages", type=existing_folder, metavar="DIR", help="packages of weights, if not installed")
    parser.add_argument("--untrained", action="store_true", help="random weights")
    parser.add_argument("--images", type=existing_folder, metavar="DIR", help="a folder for each class (photographs)")
    parser.add_argument(
        "--groups", default="", metavar="PATTERN", help="what in a file's name tells what stays together"
    )
    parser.add_argument("--pools", nargs="+", default=POOLS, metavar="POOL", help=f"with options ({' '.join(POOLS)})")
    parser.add_argument("--layers", nargs="+", default=[LAST], metavar="NAME", help="modules of the model (last)")
    parser.add_argument("--classifier", choices=CLASSIFIERS, default="logistic", help="(logistic)")
    parser.add_argument(
        "--choose", action="store_true", help="choose the strength of the logistic one on the first fold"
    )
    parser.add_argument("--size", type=int, metavar="N", help="pixels a side (the model's own)")
    add_numbers(parser, "--channels", 64, "after the reduction")
    add_numbers(parser, "--folds", 5)
    parser.add_argument("--device", type=available_device, default=torch.device("cpu"), help="for the features (cpu)")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="folder for the features (OUT/features)")
    parser.add_argument("--out", type=Path, default=Path("out/probe"), metavar="DIR", help="(out/probe)")
    parser.add_argument("--save", metavar="POOL", help="fit this pool on all pictures and save it as OUT/head")


def run(options: argparse.Namespace) -> None:
    """Compare, print the table, write numbers, plot and mistakes."""
    torch.set_num_threads(max(torch.get_num_threads(), 1))
    for row in [*options.pools, *([options.save] if options.save else [])]:
        head_and_options(row, [*list_probe_pools(), TOKEN])
    if options.choose and options.classifier != "logistic":
        raise OptionError("--choose is for --classifier logistic: ridge chooses its strength by itself")
    check_folder(options.out)
    model, model_kwargs = build(options)
    images = options.images or write_regions(options.out / "photographs", 1)
    files = labelled_files(images, options.groups)
    parts = folds(files, options.folds)
    compute = partial(
        cached_features, model, files.paths, cache=options.cache or options.out / "features", size=options.size
    )
    facts = {
        **environment(options.device),
        "model": options.model,
        "pictures": len(files.paths),
        "groups": len(np.unique(files.groups)),
        "classes": files.classes,
        "channels": options.channels,
        "classifier": options.classifier,
        "folds": options.folds,
        "chosen": options.choose,
    }
    rows: list[ProbeRow] = []
    for layer in options.layers:
        features = compute(layer=None if layer == LAST else layer, device=options.device)
        for pool in tqdm(options.pools, desc=layer, unit="pool", disable=None, leave=False):
            rows.append(evaluate(features, files, parts, layer, pool, options))
            write_json(options.out / "numbers.json", {**facts, "rows": [asdict(row) for row in rows]})
    by_chance = 100 * np.bincount(files.labels).max() / len(files.labels)
    print(
        f"{len(files.paths)} pictures of {len(files.classes)} classes, {facts['groups']} groups; the largest class is"
    )
    print(f"{by_chance:.1f} % of them. {options.folds} folds, {options.classifier}, {options.channels} channels.")
    print("The first fold chose the strengths and is not counted.\n" if options.choose else "")
    header, cells = table(rows)
    print(markdown_table(header, cells, text_columns=2))
    draw(rows, options.out / "accuracy.png")
    write_mistakes(options.out / "index.html", files, rows, (header, cells))
    if options.save:
        folder = save(compute(layer=None, device=options.device), files, options, model_kwargs)
        print(f"\nhead: timm.create_model('local-dir:{folder}', pretrained=True), after import covpool_plugins")
    print(f"\nlook at {options.out / 'index.html'}")


def build(options: argparse.Namespace) -> tuple[nn.Module, dict[str, Any]]:
    """The model, and what ``create_model`` needs besides its name to give its weights.

    Raises:
        OptionError: for weights that cannot be had.
    """
    if options.untrained:
        torch.manual_seed(0)
        return timm.create_model(options.model), {}
    kwargs: dict[str, Any] = {"pretrained": True}
    if options.model.split(".")[0] in PACKAGES:
        kwargs["pretrained_cfg_overlay"] = packaged_weights(options.model, options.packages)
    try:
        return timm.create_model(options.model, **kwargs), kwargs
    except RuntimeError as error:
        raise OptionError(f"--model {options.model}: {one_line(error)}") from None
    except Exception as error:  # what a hub that cannot be reached raises depends on how it is missing
        if kwargs.keys() == {"pretrained"}:
            raise OptionError(f"the weights of {options.model} cannot be had: {one_line(error)[:120]}") from None
        raise


def make_probe(row: str, options: argparse.Namespace) -> SecondOrderProbe:
    """The probe of a row; ``reduce`` and ``channels`` may be among its options."""
    pool, pool_options = head_and_options(row, [*list_probe_pools(), TOKEN])
    settings = {"channels": options.channels, "classifier": options.classifier}
    settings |= {name: pool_options.pop(name) for name in ("reduce", "channels", "epochs") if name in pool_options}
    return SecondOrderProbe("gap" if pool == TOKEN else pool, pool_options=pool_options or None, **settings)


def evaluate(
    features: Features,
    files: LabelledFiles,
    parts: Sequence[tuple[np.ndarray, np.ndarray]],
    layer: str,
    row: str,
    options: argparse.Namespace,
) -> ProbeRow:
    """Fit and test one pool on every fold, or on all but the one that the strength was chosen on."""
    pool = head_and_options(row, [*list_probe_pools(), TOKEN])[0]
    if pool == TOKEN and features.prefix is None:
        return ProbeRow(layer, row, None, [], [], 0, [], f"{options.model} has no class token in {layer}")
    X, mask = (features.prefix[:, 0], None) if pool == TOKEN else (features.values, features.mask)  # type: ignore
    probe = make_probe(row, options)
    strength = best_strength(probe, X, mask, files.labels, *parts[0]) if options.choose else None
    if strength is not None:
        probe.set_params(classifier=logistic(strength))
    predicted, accuracies, seconds, width = np.full(len(files.labels), -1), [], [], 0
    for training, testing in parts[1:] if options.choose else parts:
        start = time.perf_counter()
        probe.fit(X[training], files.labels[training], _part(mask, training))
        predicted[testing] = probe.predict(X[testing], _part(mask, testing))
        seconds.append(time.perf_counter() - start)
        accuracies.append(100 * float((predicted[testing] == files.labels[testing]).mean()))
        width = probe.network_.pool.out_features
    return ProbeRow(layer, row, strength, accuracies, seconds, width, predicted.tolist())


def best_strength(
    probe: SecondOrderProbe, X: np.ndarray, mask: np.ndarray | None, labels: np.ndarray, *part: np.ndarray
) -> float:
    """The C of the logistic classifier with the least log loss on the test pictures of a fold.

    Accuracy on some dozens of pictures is the same for many strengths; log loss is not.
    """
    log_loss = require_extra("sklearn.metrics", "probe").log_loss
    training, testing = part
    probe.set_params(classifier=logistic(STRENGTHS[0])).fit(X[training], labels[training], _part(mask, training))
    vectors, held_out = (probe.vectors(X[rows], _part(mask, rows)) for rows in part)
    losses = {}
    for C in STRENGTHS:
        classifier = logistic(C).fit(vectors, labels[training])
        losses[C] = log_loss(labels[testing], classifier.predict_proba(held_out), labels=classifier.classes_)
    return min(STRENGTHS, key=lambda C: losses[C])


def _part(mask: np.ndarray | None, rows: np.ndarray) -> np.ndarray | None:
    return None if mask is None else mask[rows]


def table(rows: Sequence[ProbeRow]) -> tuple[list[str], list[list[str]]]:
    """Means over the folds ± deviation; the difference to average pooling of the same layer with its 95 % interval."""
    base = {row.layer: row.accuracies for row in rows if row.pool == "gap"}
    body = []
    for row in rows:
        differences = [own - other for own, other in zip(row.accuracies, base.get(row.layer, []), strict=False)]
        shown = "" if row.pool == "gap" else shown_interval(mean_and_interval(differences))
        strength = "" if row.strength is None else f"{row.strength:g}"
        seconds = f"{statistics.median(row.seconds):.2f}" if row.seconds else "-"
        accuracy = mean_and_spread(row.accuracies) if not row.failed else row.failed
        body.append([row.layer, f"`{row.pool}`", accuracy, shown, strength, str(row.width), seconds])
    return ["layer", "pool", "accuracy, %", "to gap", "C", "width", "s per fold"], body


def draw(rows: Sequence[ProbeRow], path: Path) -> None:
    """Accuracy, mean and deviation over the folds: a panel for each layer, in which a dashed line is ``gap``'s."""
    layers = list(dict.fromkeys(row.layer for row in rows))
    pools = list(dict.fromkeys(row.pool for row in rows))[::-1]
    figure = new_figure(1.8 + 2.4 * len(layers), 1.2 + 0.3 * len(pools))
    axes = figure.subplots(1, len(layers), sharex=True, sharey=True, squeeze=False)[0]
    for axis, layer in zip(axes, layers, strict=True):
        for row in rows:
            if row.layer == layer and row.accuracies:
                spread = statistics.stdev(row.accuracies) if len(row.accuracies) > 1 else 0.0
                mean, place = statistics.mean(row.accuracies), pools.index(row.pool)
                axis.errorbar(mean, place, xerr=spread, fmt="o", markersize=4, capsize=2, color="tab:blue")
                if row.pool == "gap":
                    axis.axvline(mean, color="0.6", linestyle="--", linewidth=1)
        axis.set(title=layer, xlabel="accuracy, %")
        axis.set_yticks(range(len(pools)), pools, fontsize=8)
        axis.grid(alpha=0.3)
    save_figure(figure, path)


def save(features: Features, files: LabelledFiles, options: argparse.Namespace, model_kwargs: dict[str, Any]) -> Path:
    """The probe of ``--save``, fitted on all pictures, as a folder for timm."""
    probe = make_probe(options.save, options).fit(features.values, files.labels, features.mask)
    model = model_with_probe(probe, options.model.split(".")[0], **model_kwargs)
    folder = save_for_hub(model, options.out / "head")
    text = json.dumps(files.classes, indent=1) + "\n"
    write_atomically(folder / "classes.json", lambda file: file.write(text.encode()))
    return folder
