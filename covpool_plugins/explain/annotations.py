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
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from ..errors import UnknownNameError
from ..pictures import Picture, opened_picture, read_picture

PICTURE_FOLDERS = ("pictures", "JPEGImages")
# What Pillow's readers of the formats in ``pictures.FORMATS`` are called.
PICTURE_NAME = re.compile(r".+\.(a?png|bmp|gif|jfif|jpe|jpe?g|p[bgnp]m|tiff?|webp)", re.IGNORECASE)
VOID = 255

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class AnnotatedPicture:
    """A picture and where its classes are; files are read when they are needed.

    Args:
        path: of the picture.
        objects: pairs of a class and a box (left, top, right and bottom in pixels from 0; right and bottom are not
            inside any more), of a class and the file of its mask, or of ``None`` and the file of a mask of numbers.
        source: the file of the boxes, for messages.

    Examples:
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> Image.new("RGB", (8, 4)).save("cat.png")
        >>> picture, masks = AnnotatedPicture(Path("cat.png"), [(2, (0, 0, 4, 2))]).read()
        >>> masks[2].shape, int(masks[2].sum())
        ((4, 8), 8)
    """

    path: Path
    objects: list[tuple[int | None, Box | Path]]
    source: Path | None = None

    def read(self) -> tuple[Picture, dict[int, np.ndarray]]:
        """The picture and by class a mask of its size (H, W), bool.

        Raises:
            ValueError: for a file that cannot be read, a mask of another size, or a box outside the picture.
        """
        picture = read_picture(self.path, upright=False)
        regions: dict[Any, np.ndarray] = {}
        for label, where in self.objects:
            if isinstance(where, Path):
                found: dict[Any, np.ndarray] = _read_mask(where, picture.size, label)
            else:
                found = {label: _box_region(where, picture.size, self.source or self.path)}
            for number, region in found.items():
                regions[number] = regions.get(number, False) | region
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
        >>> [(picture.path.name, [label for label, _ in picture.objects]) for picture in read_annotations(".")]
        [('cat.png', [2])]
    """
    folder = Path(folder)
    pictures = next((folder / name for name in PICTURE_FOLDERS if (folder / name).is_dir()), folder)
    readers = {"annotations.json": _coco, "Annotations": _voc, "masks": _masks}
    place = next((folder / name for name in readers if (folder / name).exists()), None)
    if place is None:
        raise ValueError(f"{folder}: no annotations; looked for {', '.join(readers)}")
    annotated: dict[Path, AnnotatedPicture] = {}
    for source, picture, label, where in readers[place.name](place, pictures, classes):
        if not picture.is_file():
            raise ValueError(f"{source}: there is no picture {picture}")
        annotated.setdefault(picture, AnnotatedPicture(picture, [], source)).objects.append((label, where))
    if not annotated:
        raise ValueError(f"{place}: annotates no picture")
    return list(annotated.values())


# Of each object the file that tells of it, the picture, the class, and where it is.
Found = Iterable[tuple[Path, Path, int | None, Box | Path]]


def _coco(path: Path, pictures: Path, classes: Sequence[str] | None) -> Found:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        names = {entry["id"]: str(entry["name"]) for entry in sorted(content["categories"], key=lambda e: e["id"])}
        files = {entry["id"]: str(entry["file_name"]) for entry in content["images"]}
        objects = [(entry["image_id"], entry["category_id"], entry["bbox"]) for entry in content["annotations"]]
        unlisted = [f"image_id {image!r}" for image, _, _ in objects if image not in files]
        unlisted += [f"category_id {category!r}" for _, category, _ in objects if category not in names]
    except KeyError as error:
        raise ValueError(f"{path}: not in COCO's form, an entry has no {error}") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: not in COCO's form ({error})") from None
    if unlisted:
        raise ValueError(f"{path}: an annotation has the {unlisted[0]}, which is not listed")
    labels = _labels(path, list(names.values()), classes)
    for image, category, bbox in objects:
        left, top, width, height = _four_numbers(path, bbox)
        yield path, pictures / files[image], labels[names[category]], (left, top, left + width, top + height)


def _voc(folder: Path, pictures: Path, classes: Sequence[str] | None) -> Found:
    files = {path: _voc_file(path) for path in sorted(folder.glob("*.xml"))}
    labels = _labels(folder, sorted({name for _, objects in files.values() for name, _, _ in objects}), classes)
    for path, (file, objects) in files.items():
        easy = {name for name, difficult, _ in objects if not difficult}
        yield from ((path, pictures / file, labels[name], box) for name, _, box in objects if name in easy)


def _voc_file(path: Path) -> tuple[str, list[tuple[str, bool, Box]]]:
    """The picture's file name; of each object the name, whether it is difficult, and the box."""
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise ValueError(f"{path}: not an XML file ({error})") from None
    objects = []
    for entry in root.iter("object"):
        name, bndbox = entry.findtext("name", "").strip(), entry.find("bndbox")
        if not name or bndbox is None:
            raise ValueError(f"{path}: not in VOC's form, an object has no {'bndbox' if name else 'name'}")
        corners = [bndbox.findtext(key) for key in ("xmin", "ymin", "xmax", "ymax")]
        left, top, right, bottom = _four_numbers(path, corners)
        difficult = entry.findtext("difficult", "0").strip() == "1"
        objects.append((name, difficult, (left - 1, top - 1, right, bottom)))
    file = root.findtext("filename", "").strip()
    if not file:
        raise ValueError(f"{path}: not in VOC's form, it has no filename")
    return file, objects


def _masks(folder: Path, pictures: Path, classes: Sequence[str] | None) -> Found:
    by_name = {path.stem: path for path in sorted(pictures.iterdir()) if PICTURE_NAME.fullmatch(path.name)}
    numbers = {name: number for number, name in enumerate(classes or ())}
    for inner in [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]:
        label = numbers.get(inner.name, int(inner.name) if inner.name.isdecimal() else None)
        if label is None and inner != folder:
            named = "a folder of masks is named by a number or one of the class names"
            raise ValueError(f"{inner}: not a class; {named}")
        for path in sorted(inner.glob("*.png")):
            if path.stem not in by_name:
                raise ValueError(f"{path}: {pictures} has no picture of the name {path.stem!r}")
            yield path, by_name[path.stem], None if inner == folder else label, path


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


def _box_region(box: Box, size: tuple[int, int], source: Path) -> np.ndarray:
    """True in every pixel that the box touches."""
    region = np.zeros(size[::-1], bool)
    left, top = (max(0, math.floor(value)) for value in box[:2])
    right, bottom = (max(0, math.ceil(value)) for value in box[2:])
    region[top:bottom, left:right] = True
    if not region.any():
        listed = ", ".join(f"{value:g}" for value in box)
        holds = f"holds nothing of {size[0]}x{size[1]} pixels"
        raise ValueError(f"{source}: the box from left, top to right, bottom ({listed}) {holds}")
    return region


def _read_mask(path: Path, size: tuple[int, int], label: int | None) -> dict[int, np.ndarray]:
    """Where the class is, or every class of a mask of numbers."""
    with opened_picture(path) as opened:
        values = np.asarray(opened)
    if values.ndim != 2 or values.dtype.kind == "f":
        raise ValueError(f"{path}: a mask must be grey or have a palette, this picture is in colour")
    height, width = values.shape
    if (width, height) != size:
        raise ValueError(f"{path}: the mask has {width}x{height} pixels, its picture {size[0]}x{size[1]}")
    if label is not None:
        return {label: values > 0}
    void = VOID if values.dtype == np.uint8 else 0
    return {int(value) - 1: values == value for value in np.unique(values) if value not in (0, void)}
