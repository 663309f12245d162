"""What a converted checkpoint is written as: a folder for timm, one for MMPretrain, or the original again; a report."""

from __future__ import annotations

import json
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ..checkpoint_pickle import shown
from ..errors import OptionError, one_line
from ..files import new_folder
from ..tables import Table
from ..timm_plugin.hub import write_hub_folder
from .conversion import Converted
from .fitting import KeyReport
from .folders import LEFT_OUT, MANIFEST, RECORD, REPORT, manifest, replaceable
from .mmpretrain_configs import config_text, mmpretrain_model
from .placement import CHANGES

# What timm's description of a model says of the weights that timm has for it.
ABOUT_TIMMS_WEIGHTS = (
    "tag",
    "license",
    "origin_url",
    "paper_ids",
    "paper_name",
    "notes",
    "test_input_size",
    "test_crop_pct",
)
TARGETS: Table[Callable[[Converted, Path, Path], object]] = Table("target")


def write(converted: Converted, target: str, directory: Path | str, force: bool = False) -> list[Path]:
    """Write a folder, which comes into being at once or not at all.

    Args:
        converted: of :func:`load_original`.
        target: ``timm``, ``mmpretrain`` or ``original``.
        directory: the folder.
        force: replace one that holds nothing but what an earlier call has written, by its ``conversion.json``.

    Returns:
        The files.

    Raises:
        UnknownNameError: for another target.
        OptionError: for a folder that is there and not empty, without ``force``, or that holds anything else; for
            ``original``, if the weights do not come from a conversion.

    Examples:
        >>> torch.save(timm.create_model("resnet18", num_classes=10).state_dict(), "resnet18.pth")
        >>> sorted(path.name for path in write(load_original("resnet18.pth"), "timm", "converted"))
        ['config.json', 'conversion.json', 'conversion.md', 'model.safetensors', 'original.json']
    """
    row = TARGETS[target]
    with new_folder(directory, replaceable(Path(directory)) if force else None) as folder:
        try:
            row(converted, folder, Path(directory))
        except (RuntimeError, safetensors.SafetensorError) as error:  # of a full disk, when it is not an OSError
            raise OSError(f"{directory} cannot be written: {one_line(error)}") from None
        (folder / REPORT).write_text(report_text(converted, sorted(path.name for path in folder.iterdir())))
        (folder / MANIFEST).write_text(json.dumps(manifest(folder), indent=1))
    return sorted(Path(directory).iterdir())


def write_timm(converted: Converted, folder: Path, _: Path) -> None:
    """A folder for ``timm.create_model('local-dir:...')``, with what the original had besides."""
    model: Any = converted.network.build("meta")
    known = {name: value for name, value in model.pretrained_cfg.items() if name not in ABOUT_TIMMS_WEIGHTS}
    model.pretrained_cfg = {**known, **converted.data}
    model.load_state_dict(converted.state_dict, assign=True)
    write_hub_folder(model, folder, converted.model_name, converted.network.model_kwargs)
    if converted.original:
        (folder / RECORD).write_text(json.dumps(converted.original))
    if converted.left_out:
        safetensors.torch.save_file(_contiguous(converted.left_out), folder / LEFT_OUT)


def write_mmpretrain(converted: Converted, folder: Path, directory: Path) -> None:
    """A checkpoint, and a config that loads it from its own folder."""
    place = str(directory.resolve())
    if not place.isprintable() or any(letter in place for letter in "'\"\\{}"):
        # MMEngine puts the folder's name into the text of the config, which is Python.
        raise OptionError(f"the folder {place!r} has a letter in its name that no config can hold; choose another name")
    model: Any = converted.network.build("meta")
    config, keys = mmpretrain_model(converted.network, model)
    name = "_".join(part for part in (converted.network.backbone, converted.network.head) if part)
    state_dict = OrderedDict((keys[key], tensor.contiguous()) for key, tensor in converted.state_dict.items())
    torch.save({"meta": {"source": converted.source}, "state_dict": state_dict}, folder / f"{name}.pth")
    data = {**model.pretrained_cfg, **converted.data}
    text = config_text(config, data, converted.network.num_classes, f"{name}.pth", converted.source)
    (folder / f"{name}.py").write_text(text)


def write_original(converted: Converted, folder: Path, _: Path) -> None:
    """The checkpoint that a conversion began with, tensor by tensor the same; without the state of its training."""
    original = converted.original
    if not original:
        raise OptionError("--to original: these weights were not converted, so the original's keys are not known")
    kept: dict[str, dict[int | None, Tensor]] = {}
    for key, ours, part, *_ in original["keys"]:
        if ours is not None and key in converted.left_out:
            kept.setdefault(ours, {})[part] = converted.left_out[key]
    pieces: OrderedDict[str, list[Tensor]] = OrderedDict()  # mostly one; the rows of a tensor may go to several places
    # Every tensor went to one place: a record that takes a place again and again makes any number of copies.
    left = sum(tensor.nbytes for tensor in (*converted.state_dict.values(), *converted.left_out.values()))
    for row in original["keys"]:
        with _fitting_record(row[0]):
            piece = _original_tensor(converted, kept, *row)
        pieces.setdefault(row[0], []).append(piece)
        left -= piece.nbytes
        if left < 0:
            raise OptionError("--to original: the record names more tensors than there are weights")
    tensors: OrderedDict[str, Tensor] = OrderedDict()
    for key, rows in pieces.items():
        with _fitting_record(key):
            tensors[key] = rows[0] if len(rows) == 1 else torch.cat(rows)
    container = original["container"]
    said = {**original["plain"], **original.get("settings", {})}
    content = tensors if container is None else {**said, container: tensors}
    torch.save(content, folder / original["file_name"])


@contextmanager
def _fitting_record(key: str) -> Iterator[None]:
    try:
        yield
    except (KeyError, IndexError, TypeError, ArithmeticError, RuntimeError):
        raise OptionError(f"--to original: the record of {shown(key)} does not fit the weights") from None


def _original_tensor(
    converted: Converted,
    kept: dict[str, dict[int | None, Tensor]],
    key: str,
    ours: str | None,
    part: int | None,
    transposed: bool,
    shape: list[int],
    change: str | None = None,
) -> Tensor:
    """A tensor of the original: what was kept of it, or as it is told from the place where it went.

    What was kept counts for a place that nobody has changed since.
    """
    if ours is None:
        return converted.left_out[key].reshape(shape)
    whole, rule = converted.state_dict[ours], CHANGES[change]
    if part in kept.get(ours, {}) and torch.equal(rule.join(kept[ours]), whole):
        tensor = kept[ours][part]
    else:
        tensor = rule.split(whole, part, tuple(shape))
    return (tensor.mT if transposed else tensor).reshape(shape)


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor.contiguous() for key, tensor in tensors.items()}


def summary(converted: Converted) -> list[tuple[str, str]]:
    """Lines of a table: what was found, what becomes of it.

    Examples:
        >>> torch.save(timm.create_model("resnet18", num_classes=10).state_dict(), "resnet18.pth")
        >>> dict(summary(load_original("resnet18.pth")))["weights"]
        '122 tensors, 44.8 MB'
    """
    arguments = ", ".join(f"{name}={value!r}" for name, value in converted.model_kwargs.items())
    counts = Counter(_kind(row) for row in converted.keys)
    size = sum(tensor.nbytes for tensor in converted.state_dict.values()) / 1e6
    rows = [
        ("source", converted.source),
        ("model", converted.model_name),
        ("arguments", arguments),
        ("weights", f"{len(converted.state_dict)} tensors, {size:.1f} MB"),
        ("tensors", ", ".join(f"{count} {kind}" for kind, count in counts.items())),
    ]
    return [(name, _printable(value)) for name, value in (*rows, *(("note", note) for note in converted.notes))]


def report_text(converted: Converted, files: list[str]) -> str:
    """A page in Markdown with the summary, the files and a row for every tensor."""
    lines = ["# Conversion", "", "| | |", "| --- | --- |"]
    lines += [f"| {name} | {value} |" for name, value in summary(converted)]
    lines += ["", "Files:", "", *(f"- `{name}`" for name in files)]
    lines += ["", "| in the file | shape | in the model | remark |", "| --- | --- | --- | --- |"]
    for row in converted.keys:
        original = f"`{_printable(row.original)}`" if row.original else ""
        ours = f"`{row.ours}`" + (f", part {row.part}" if row.part is not None else "") if row.ours else ""
        lines.append(f"| {original} | {list(row.shape)} | {ours} | {row.remark} |")
    return "\n".join(lines) + "\n"


def _printable(text: str) -> str:
    """Without control characters, and without those that end a cell or a piece of code in Markdown."""
    return "".join(letter if letter.isprintable() and letter not in "|`" else "?" for letter in text)


def _kind(row: KeyReport) -> str:
    if row.original is None:
        return "made"
    return "mapped" if row.ours else "dropped"


TARGETS.add("timm", write_timm)
TARGETS.add("mmpretrain", write_mmpretrain)
TARGETS.add("original", write_original)
