"""Folders of classes: pictures, labels, groups and folds, for the studies of pretrained networks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from covpool_plugins.errors import OptionError, require_extra
from covpool_plugins.pictures import read_picture


@dataclass(frozen=True)
class LabelledFiles:
    """Pictures in folders, one folder for each class.

    Args:
        paths: of the pictures, class by class.
        labels: numbers in ``classes``, (N,).
        groups: numbers of what must not be separated, (N,).
        classes: names of the folders.
    """

    paths: tuple[Path, ...]
    labels: np.ndarray
    groups: np.ndarray
    classes: tuple[str, ...]


def labelled_files(folder: Path, groups: str = "") -> LabelledFiles:
    """The pictures in the folders of a folder.

    Args:
        folder: with one folder for each class.
        groups: a regular expression with one group; files of one folder or several whose names match it with the same
            text belong together. By default each picture stands for itself.

    Raises:
        OptionError: for fewer than two classes, a class without pictures, a pattern that is none or does not match.
        OSError: for a folder that cannot be read.
    """
    folders = sorted(path for path in folder.iterdir() if path.is_dir())
    if len(folders) < 2:
        raise OptionError(f"{str(folder)!r} must hold two folders or more, one for each class, found {len(folders)}")
    paths = [pictures_in(inner) for inner in folders]
    for inner, files in zip(folders, paths, strict=True):
        if not files:
            raise OptionError(f"{str(inner)!r} holds no pictures")
    flat = tuple(path for files in paths for path in files)
    labels = np.repeat(np.arange(len(folders)), [len(files) for files in paths])
    names = _group_names(flat, groups)
    return LabelledFiles(flat, labels, np.unique(names, return_inverse=True)[1], tuple(path.name for path in folders))


def pictures_in(folder: Path) -> list[Path]:
    """The files in a folder that end as a picture, by name."""
    suffixes = Image.registered_extensions()
    return [path for path in sorted(folder.iterdir()) if path.suffix.lower() in suffixes]


def _group_names(paths: Sequence[Path], groups: str) -> list[str]:
    if not groups:
        return [str(path) for path in paths]
    try:
        pattern = re.compile(groups)
    except re.error as error:
        raise OptionError(f"--groups {groups!r} is no regular expression: {error}") from None
    if pattern.groups != 1:
        raise OptionError(f"--groups {groups!r} must have one group in brackets, has {pattern.groups}")
    names = []
    for path in paths:
        match = pattern.search(path.name)
        if match is None or match[1] is None:
            raise OptionError(f"--groups {groups!r} does not match {path.name!r}")
        names.append(match[1])
    return names


def folds(files: LabelledFiles, count: int, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Indices for training and for testing, ``count`` times; classes are spread evenly, groups stay together.

    Raises:
        OptionError: for a class with fewer groups than folds.
        MissingExtraError: without scikit-learn.
    """
    selection = require_extra("sklearn.model_selection", "probe")
    for label, name in enumerate(files.classes):
        found = len(np.unique(files.groups[files.labels == label]))
        if found < count:
            raise OptionError(f"class {name!r} has {found} groups of pictures, fewer than {count} folds")
    splitter = selection.StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    return list(splitter.split(files.labels, files.labels, files.groups))


def read_squares(paths: Sequence[Path], size: int) -> Tensor:
    """Pictures (N, 3, size, size) in uint8: the largest square in the middle, resized.

    Raises:
        ValueError: for a picture that cannot be read.
    """
    squares = []
    for path in paths:
        picture = read_picture(path)
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        square = picture.crop((left, top, left + side, top + side))
        squares.append(np.asarray(square.resize((size, size), Image.Resampling.BICUBIC)))
    return torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).contiguous()
