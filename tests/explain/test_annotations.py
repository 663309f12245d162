"""Folders of pictures with masks and boxes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from covpool_plugins.explain.annotations import AnnotatedPicture, read_annotations

WIDTH, HEIGHT = 30, 20
CLASSES = ["cat", "dog", "zebra"]
OBJECT = "<object><name>{}</name><difficult>{}</difficult><bndbox>{}</bndbox></object>"


def box_region(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    region = np.zeros((HEIGHT, WIDTH), bool)
    region[top:bottom, left:right] = True
    return region


def corners(*values: object) -> str:
    names = ("xmin", "ymin", "xmax", "ymax")
    return "".join(f"<{name}>{value}</{name}>" for name, value in zip(names, values, strict=True))


def voc(*objects: tuple, filename: str = "a.png") -> str:
    listed = "".join(OBJECT.format(name, difficult, corners(*box)) for name, difficult, box in objects)
    return f"<annotation><filename>{filename}</filename>{listed}</annotation>"


def coco(**changes: object) -> dict:
    return {
        "images": [{"id": 7, "file_name": "a.png"}, {"id": 9, "file_name": "b.png"}],
        "categories": [{"id": 5, "name": "dog"}, {"id": 2, "name": "zebra"}],
        "annotations": [
            {"image_id": 9, "category_id": 5, "bbox": [1, 2, 3, 4]},
            {"image_id": 9, "category_id": 2, "bbox": [10.5, 0, 2, 3.2]},
            {"image_id": 9, "category_id": 5, "bbox": [20, 10, 10, 10]},
        ],
        **changes,
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (WIDTH, HEIGHT), "green").save(tmp_path / "pictures" / f"{name}.png")
    return tmp_path


def the_only(pictures: list[AnnotatedPicture], name: str) -> dict[int, np.ndarray]:
    assert [annotated.path.name for annotated in pictures] == [name]
    picture, regions = pictures[0].read()
    assert picture.size == (WIDTH, HEIGHT) and picture.mode == "RGB"
    assert all(region.dtype == bool and region.shape == (HEIGHT, WIDTH) for region in regions.values())
    return regions


def write(path: Path, content: str | np.ndarray | Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        path.write_text(content)
    else:
        (content if isinstance(content, Image.Image) else Image.fromarray(content.astype(np.uint8))).save(path)


DOG, ZEBRA = box_region(1, 2, 4, 6) | box_region(20, 10, 30, 20), box_region(10, 0, 13, 4)
VOC = voc(("zebra", 0, (1, 1, 2, 3)), ("zebra", 1, (30, 20, 30, 20)), ("dog", 0, (5, 6, 7, 8)), filename="b.png")


@pytest.mark.parametrize("classes", [None, CLASSES], ids=["numbered by themselves", "classes"])
@pytest.mark.parametrize(
    ("file", "content", "names", "dog", "zebra"),
    [
        ("annotations.json", json.dumps(coco()), ["zebra", "dog"], DOG, ZEBRA),
        (
            "Annotations/b.xml",
            VOC,
            ["dog", "zebra"],
            box_region(4, 5, 7, 8),
            box_region(0, 0, 2, 3) | box_region(29, 19, 30, 20),
        ),
    ],
    ids=["coco", "voc"],
)
def test_boxes(
    file: str, content: str, names: list[str], dog: np.ndarray, zebra: np.ndarray, classes: list[str] | None, folder
) -> None:
    """Two boxes of one class are one region; a pixel that a box touches is inside."""
    write(folder / file, content)
    regions = the_only(read_annotations(folder, classes), "b.png")
    assert set(regions) == {(classes or names).index(name) for name in ("dog", "zebra")}
    assert np.array_equal(regions[(classes or names).index("dog")], dog)
    assert np.array_equal(regions[(classes or names).index("zebra")], zebra)


def test_a_class_of_difficult_objects_alone_is_left_out(folder: Path) -> None:
    (folder / "pictures").rename(folder / "JPEGImages")
    box = (1, 1, 2, 2)
    write(folder / "Annotations" / "a.xml", voc(("dog", 1, box)))
    write(folder / "Annotations" / "b.xml", voc(("dog", 1, box), ("zebra", 0, box), filename="b.png"))
    assert set(the_only(read_annotations(folder), "b.png")) == {1}


@pytest.mark.parametrize("palette", [False, True])
def test_masks_of_numbers(palette: bool, folder: Path) -> None:
    values = np.zeros((HEIGHT, WIDTH), np.uint8)
    values[:3, :3], values[5:, 5:], values[4] = 1, 3, 255
    mask = Image.fromarray(values)
    if palette:
        mask = mask.convert("P")
        mask.putdata(values.flatten().tolist())
    write(folder / "masks" / "b.png", mask)
    regions = the_only(read_annotations(folder), "b.png")
    assert set(regions) == {0, 2}
    assert np.array_equal(regions[0], box_region(0, 0, 3, 3)) and np.array_equal(regions[2], box_region(5, 5, 30, 20))
    write(folder / "masks" / "b.png", np.zeros((HEIGHT, WIDTH)))
    assert the_only(read_annotations(folder), "b.png") == {}


def test_masks_by_class(folder: Path) -> None:
    dog, zebra = box_region(1, 1, 9, 9), box_region(3, 3, 4, 4)
    write(folder / "masks" / "dog" / "a.png", 255 * dog)
    write(folder / "masks" / "2" / "a.png", zebra)
    regions = the_only(read_annotations(folder, CLASSES), "a.png")
    assert set(regions) == {1, 2} and np.array_equal(regions[1], dog) and np.array_equal(regions[2], zebra)


def of_one(**changes: object) -> str:
    return json.dumps(coco(annotations=[{"image_id": 7, "category_id": 5, "bbox": [1, 2, 3, 4], **changes}]))


BAD_COCO = [
    ("{", "not in COCO's form"),
    ("[]", "not in COCO's form"),
    ("[" * 100_000, "not in COCO's form"),
    (of_one(image_id=[7]), "not in COCO's form"),
    (of_one(category_id={}), "not in COCO's form"),
    (json.dumps({"categories": [], "annotations": []}), "not in COCO's form, an entry has no 'images'"),
    (json.dumps(coco(images=[{"id": 9, "file_name": "c.png"}])), "there is no picture .*c.png"),
    (of_one(image_id=3), "has the image_id 3, which is not listed"),
    (of_one(category_id=3), "has the category_id 3, which is not listed"),
    (of_one(bbox=[1, 2, 3]), r"a box must be four numbers, got \[1, 2, 3\]"),
    (
        json.dumps(coco(categories=[{"id": 5, "name": "doge"}, {"id": 2, "name": "cat"}])),
        "unknown class 'doge'; available: dog, cat, zebra",
    ),
    (json.dumps(coco(annotations=[])), "annotates no picture"),
]
ENTRY = "<annotation><object>{}</object></annotation>"
BAD_VOC = [
    ("<annotation>", "not an XML file"),
    ("<annotation></annotation>", "it has no filename"),
    (ENTRY.format("<bndbox/>"), "an object has no name"),
    (ENTRY.format("<name>dog</name>"), "an object has no bndbox"),
    (ENTRY.format("<name>dog</name><bndbox/>"), r"a box must be four numbers, got \[None, None, None, None\]"),
    (voc(("dog", 0, (1, 1, 2, 2)), filename="c.png"), "there is no picture .*c.png"),
]
BAD_MASKS = [
    ("a.png", Image.new("L", (5, 4)), "the mask has 5x4 pixels, its picture 30x20"),
    ("a.png", Image.new("RGB", (WIDTH, HEIGHT)), "must be grey or have a palette"),
    ("a.png", "mask", "not a picture that can be read"),
    ("c.png", np.ones((HEIGHT, WIDTH)), "has no picture of the name 'c'"),
    ("lion", np.ones((HEIGHT, WIDTH)), "not a class; a folder of masks is named by"),
]
BAD_BOXES = [[30, 0, 5, 5], [3, 3, 0, 5], [-9, 2, 5, 5], [3, 3, -2, 5]]
BAD = [
    *(("annotations.json", *case) for case in BAD_COCO),
    *(("annotations.json", of_one(bbox=box), "holds nothing of 30x20 pixels") for box in BAD_BOXES),
    *(("Annotations/a.xml", *case) for case in BAD_VOC),
    *((f"masks/{name}", *case) for name, *case in BAD_MASKS),
    ("", None, "no annotations; looked for annotations.json, Annotations, masks"),
]


@pytest.mark.parametrize(("file", "content", "message"), BAD)
def test_bad_files(file: str, content: str | np.ndarray | Image.Image | None, message: str, folder: Path) -> None:
    if content is not None:
        write(folder / file if "." in file else folder / file / "a.png", content)
    with pytest.raises(ValueError, match=message) as raised:
        for annotated in read_annotations(folder, CLASSES):
            annotated.read()
    assert "\n" not in str(raised.value) and str(raised.value).startswith(str(folder / file))


def test_boxes_across_the_edge_are_cut(folder: Path) -> None:
    (folder / "annotations.json").write_text(of_one(bbox=[-5, 15, 10, 99]))
    assert np.array_equal(the_only(read_annotations(folder), "a.png")[1], box_region(0, 15, 5, 20))


def test_a_mask_in_a_format_that_starts_programs_is_refused(tmp_path: Path) -> None:
    """Pillow gives EPS to Ghostscript, whatever the file is called."""
    for folder in ("pictures", "masks"):
        (tmp_path / folder).mkdir()
    Image.new("L", (8, 4)).save(tmp_path / "pictures" / "a.png")
    Image.new("L", (8, 4)).save(tmp_path / "masks" / "a.png", format="EPS")
    (annotated,) = read_annotations(tmp_path)
    with pytest.raises(ValueError, match="not a picture that can be read"):
        annotated.read()
