"""What a conversion did: a summary, and every tensor."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .conversion import Converted
    from .fitting import KeyReport


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
