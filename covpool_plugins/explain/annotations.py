"""Where the objects are: folders of a user's own pictures with masks, or boxes in the forms of COCO and VOC.

A folder holds ``pictures/`` (or ``JPEGImages/``, or the pictures themselves) and one of

* ``annotations.json``, as in COCO: ``images`` with ``id`` and ``file_name``, ``categories`` with ``id`` and ``name``,
  ``annotations`` with ``image_id``, ``category_id`` and ``bbox`` [x, y, width, height] in pixels from 0;
* ``Annotations/NAME.xml``, as in PASCAL VOC: ``object`` with ``name`` and ``bndbox`` (xmin, ymin, xmax, ymax: the first
  and last pixel, from 1). A class of which every object in a picture is ``difficult`` is left out there;
* ``masks/NAME.png`` for ``pictures/NAME.*``: 0 where nothing is, otherwise class + 1, as numbers of grey or of a
  palette; 255 of 8 bits is no class, as in VOC's segmentations;
* ``masks/CLASS/NAME.png``: everything but 0 is the class, which is a number or one of the names.

The class is the position of its name in ``classes``, the model's names in their order. Without them it is the position
in the sorted list: of COCO's categories by ``id``, of all names in VOC's files alphabetically.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from ..errors import UnknownNameError
from ..pictures import Picture, opened_picture, read_picture

PICTURE_FOLDERS = ("pictures", "JPEGImages")
PICTURE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
VOID = 255

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class AnnotatedPicture:
    """A picture and where its classes are; files are read when they are needed.

    Args:
        path: of the picture.
        boxes: by class: left, top, right and bottom in pixels from 0; right and bottom are not inside any more.
        masks: a mask of one class by class, or by ``None`` a mask of numbers.
        source: the file of the boxes, for messages.

    Examples:
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> Image.new("RGB", (8, 4)).save("cat.png")
        >>> picture, masks = AnnotatedPicture(Path("cat.png"), boxes={2: [(0, 0, 4, 2)]}).read()
        >>> masks[2].shape, int(masks[2].sum())
        ((4, 8), 8)
    """

    path: Path
    boxes: Mapping[int, Sequence[Box]] = field(default_factory=dict)
    masks: Mapping[int | None, Path] = field(default_factory=dict)
    source: Path | None = None

    def read(self) -> tuple[Picture, dict[int, np.ndarray]]:
        """The picture and by class a mask of its size (H, W), bool.

        Raises:
            ValueError: for a file that cannot be read, a mask of another size, or a box outside the picture.
        """
        picture = read_picture(self.path, upright=False)
        regions: dict[int, np.ndarray] = {}
        for label, boxes in self.boxes.items():
            regions[label] = np.zeros((picture.height, picture.width), bool)
            for box in boxes:
                _fill(regions[label], box, self.source or self.path)
        for label_of_file, path in self.masks.items():
            values = _read_mask(path, picture.size)
            if label_of_file is not None:
                regions[label_of_file] = values > 0
                continue
            void = VOID if values.dtype == np.uint8 else 0
            regions |= {int(value) - 1: values == value for value in np.unique(values) if value not in (0, void)}
        return picture, {label: region for label, region in regions.items() if region.any()}


def read_annotations(folder: Path | str, classes: Sequence[str] | None = None) -> list[AnnotatedPicture]:
    """The annotated pictures of a folder, see the module.

    Args:
        folder: with pictures and annotations.
        classes: names of the model's classes in their order.

    Raises:
        ValueError: for a folder without annotations or pictures, or a file that does not have the form.

    Examples:
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> for name in ("pictures/cat.png", "masks/2/cat.png"):
        ...     Path(name).parent.mkdir(parents=True)
        ...     Image.new("L", (8, 4), 255).save(name)
        ...
        >>> [(picture.path.name, list(picture.masks)) for picture in read_annotations(".")]
        [('cat.png', [2])]
    """
    folder = Path(folder)
    pictures = next((folder / name for name in PICTURE_FOLDERS if (folder / name).is_dir()), folder)
    readers: dict[str, Callable[..., list[AnnotatedPicture]]] = {
        "annotations.json": _coco,
        "Annotations": _voc,
        "masks": _masks,
    }
    for name, reader in readers.items():
        if (folder / name).exists():
            annotated = reader(folder / name, pictures, classes)
            if not annotated:
                raise ValueError(f"{folder / name}: annotates no picture")
            return annotated
    raise ValueError(f"{folder}: no annotations; looked for {', '.join(readers)}")


def _coco(path: Path, pictures: Path, classes: Sequence[str] | None) -> list[AnnotatedPicture]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        names = {entry["id"]: str(entry["name"]) for entry in sorted(content["categories"], key=lambda e: e["id"])}
        files = {entry["id"]: str(entry["file_name"]) for entry in content["images"]}
        objects = [(entry["image_id"], entry["category_id"], entry["bbox"]) for entry in content["annotations"]]
    except KeyError as error:
        raise ValueError(f"{path}: not in COCO's form, an entry has no {error}") from None
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: not in COCO's form ({error})") from None
    labels = _labels(path, list(names.values()), classes)
    boxes: dict[Any, dict[int, list[Box]]] = {}
    for image, category, bbox in objects:
        if image not in files or category not in names:
            kind, value = ("image_id", image) if image not in files else ("category_id", category)
            raise ValueError(f"{path}: an annotation has the {kind} {value!r}, which is not listed")
        left, top, width, height = _four_numbers(path, bbox)
        box = (left, top, left + width, top + height)
        boxes.setdefault(image, {}).setdefault(labels[names[category]], []).append(box)
    return [AnnotatedPicture(_existing(path, pictures / files[image]), boxes[image], source=path) for image in boxes]


def _voc(folder: Path, pictures: Path, classes: Sequence[str] | None) -> list[AnnotatedPicture]:
    files = [(path, *_voc_file(path)) for path in sorted(folder.glob("*.xml"))]
    labels = _labels(folder, sorted({name for _, _, objects in files for name, _, _ in objects}), classes)
    annotated = []
    for path, file_name, objects in files:
        easy = {name for name, difficult, _ in objects if not difficult}
        boxes: dict[int, list[Box]] = {}
        for name, _, box in objects:
            if name in easy:
                boxes.setdefault(labels[name], []).append(box)
        if boxes:
            annotated.append(AnnotatedPicture(_existing(path, pictures / file_name), boxes, source=path))
    return annotated


def _voc_file(path: Path) -> tuple[str, list[tuple[str, bool, Box]]]:
    """The picture's file name; of each object the name, whether it is difficult, and the box."""
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise ValueError(f"{path}: not an XML file ({error})") from None
    objects = []
    for entry in root.iter("object"):
        name, bndbox = entry.findtext("name", "").strip(), entry.find("bndbox")
        corners = [] if bndbox is None else [bndbox.findtext(key) for key in ("xmin", "ymin", "xmax", "ymax")]
        if not name or bndbox is None:
            raise ValueError(f"{path}: not in VOC's form, an object has no {'bndbox' if name else 'name'}")
        left, top, right, bottom = _four_numbers(path, corners)
        difficult = entry.findtext("difficult", "0").strip() == "1"
        objects.append((name, difficult, (left - 1, top - 1, right, bottom)))
    file_name = root.findtext("filename", "").strip()
    if not file_name:
        raise ValueError(f"{path}: not in VOC's form, it has no filename")
    return file_name, objects


def _masks(folder: Path, pictures: Path, classes: Sequence[str] | None) -> list[AnnotatedPicture]:
    files = sorted(path for path in pictures.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES)
    by_name = {path.stem: path for path in files}
    masks: dict[Path, dict[int | None, Path]] = {}
    for path, label in _mask_files(folder, classes):
        if path.stem not in by_name:
            raise ValueError(f"{path}: {pictures} has no picture of the name {path.stem!r}")
        masks.setdefault(by_name[path.stem], {})[label] = path
    return [AnnotatedPicture(picture, masks=masks[picture]) for picture in masks]


def _mask_files(folder: Path, classes: Sequence[str] | None) -> Iterator[tuple[Path, int | None]]:
    for path in sorted(folder.glob("*.png")):
        yield path, None
    for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
        known = classes is not None and inner.name in classes
        if not known and not inner.name.isdecimal():
            raise ValueError(f"{inner}: not a class; a folder of masks is named by a number or one of the class names")
        label = list(classes).index(inner.name) if classes is not None and known else int(inner.name)
        yield from ((path, label) for path in sorted(inner.glob("*.png")))


def _labels(path: Path, names: Sequence[str], classes: Sequence[str] | None) -> dict[str, int]:
    """The class of each name."""
    known = {name: position for position, name in enumerate(names if classes is None else classes)}
    for name in names:
        if name not in known:
            raise ValueError(f"{path}: {UnknownNameError('class', name, known)}")
    return known


def _four_numbers(path: Path, values: Any) -> list[float]:
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != 4 or not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"{path}: a box must be four numbers, got {values!r}")
    return numbers


def _fill(region: np.ndarray, box: Box, source: Path) -> None:
    """Every pixel that the box touches becomes true."""
    left, top = (max(0, math.floor(value)) for value in box[:2])
    right, bottom = (max(0, math.ceil(value)) for value in box[2:])
    inside = region[top:bottom, left:right]
    if inside.size == 0:
        height, width = region.shape
        listed = ", ".join(f"{value:g}" for value in box)
        raise ValueError(
            f"{source}: the box from left, top to right, bottom ({listed}) holds nothing of {width}x{height} pixels"
        )
    inside[...] = True


def _read_mask(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Numbers (H, W)."""
    with opened_picture(path) as opened:
        values = np.asarray(opened)
    if values.ndim != 2 or values.dtype.kind == "f":
        raise ValueError(f"{path}: a mask must be grey or have a palette, this picture is in colour")
    height, width = values.shape
    if (width, height) != size:
        raise ValueError(f"{path}: the mask has {width}x{height} pixels, its picture {size[0]}x{size[1]}")
    return values


def _existing(source: Path, path: Path) -> Path:
    if not path.is_file():
        raise ValueError(f"{source}: there is no picture {path}")
    return path
