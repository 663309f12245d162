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


def write_mask(path: Path, values: np.ndarray, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(values.astype(np.uint8))
    if palette:
        picture = picture.convert("P")
        picture.putdata(values.flatten().tolist())
    picture.save(path)


def the_only(pictures: list[AnnotatedPicture], name: str) -> dict[int, np.ndarray]:
    assert [annotated.path.name for annotated in pictures] == [name]
    picture, regions = pictures[0].read()
    assert picture.size == (WIDTH, HEIGHT) and picture.mode == "RGB"
    assert all(region.dtype == bool and region.shape == (HEIGHT, WIDTH) for region in regions.values())
    return regions


@pytest.mark.parametrize(("classes", "dog", "zebra"), [(None, 1, 0), (CLASSES, 1, 2)])
def test_coco(classes: list[str] | None, dog: int, zebra: int, folder: Path) -> None:
    """Two boxes of one class are one region; a pixel that a box touches is inside."""
    (folder / "annotations.json").write_text(json.dumps(coco()))
    regions = the_only(read_annotations(folder, classes), "b.png")
    assert set(regions) == {dog, zebra}
    assert np.array_equal(regions[dog], box_region(1, 2, 4, 6) | box_region(20, 10, 30, 20))
    assert np.array_equal(regions[zebra], box_region(10, 0, 13, 4))


@pytest.mark.parametrize(("classes", "dog", "zebra"), [(None, 0, 1), (CLASSES, 1, 2)])
def test_voc(classes: list[str] | None, dog: int, zebra: int, folder: Path) -> None:
    (folder / "Annotations").mkdir()
    objects = [("zebra", 0, (1, 1, 2, 3)), ("zebra", 1, (30, 20, 30, 20)), ("dog", 0, (5, 6, 7, 8))]
    (folder / "Annotations" / "a.xml").write_text(voc(*objects))
    regions = the_only(read_annotations(folder, classes), "a.png")
    assert set(regions) == {dog, zebra}
    assert np.array_equal(regions[zebra], box_region(0, 0, 2, 3) | box_region(29, 19, 30, 20))
    assert np.array_equal(regions[dog], box_region(4, 5, 7, 8))


def test_a_class_of_difficult_objects_alone_is_left_out(folder: Path) -> None:
    (folder / "Annotations").mkdir()
    (folder / "pictures").rename(folder / "JPEGImages")
    (folder / "Annotations" / "a.xml").write_text(voc(("dog", 1, (1, 1, 2, 2))))
    (folder / "Annotations" / "b.xml").write_text(
        voc(("dog", 1, (1, 1, 2, 2)), ("zebra", 0, (1, 1, 2, 2)), filename="b.png")
    )
    assert set(the_only(read_annotations(folder), "b.png")) == {1}


@pytest.mark.parametrize("palette", [False, True])
def test_masks_of_numbers(palette: bool, folder: Path) -> None:
    values = np.zeros((HEIGHT, WIDTH), int)
    values[:3, :3], values[5:, 5:], values[4] = 1, 3, 255
    write_mask(folder / "masks" / "b.png", values, palette)
    regions = the_only(read_annotations(folder), "b.png")
    assert set(regions) == {0, 2}
    assert np.array_equal(regions[0], box_region(0, 0, 3, 3)) and np.array_equal(regions[2], box_region(5, 5, 30, 20))


def test_masks_by_class(folder: Path) -> None:
    for name, value, region in [("dog", 255, box_region(1, 1, 9, 9)), ("2", 1, box_region(3, 3, 4, 4))]:
        write_mask(folder / "masks" / name / "a.png", value * region)
    regions = the_only(read_annotations(folder, CLASSES), "a.png")
    assert set(regions) == {1, 2}
    assert np.array_equal(regions[1], box_region(1, 1, 9, 9)) and np.array_equal(regions[2], box_region(3, 3, 4, 4))


def test_an_empty_mask_shows_no_class(folder: Path) -> None:
    write_mask(folder / "masks" / "a.png", np.zeros((HEIGHT, WIDTH)))
    assert the_only(read_annotations(folder), "a.png") == {}


def of_one(**changes: object) -> str:
    return json.dumps(coco(annotations=[{"image_id": 7, "category_id": 5, "bbox": [1, 2, 3, 4], **changes}]))


BAD_COCO = [
    ("{", "not in COCO's form"),
    ("[]", "not in COCO's form"),
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
BAD = [("annotations.json", *case) for case in BAD_COCO] + [("Annotations/a.xml", *case) for case in BAD_VOC]


@pytest.mark.parametrize(("file", "content", "message"), BAD, ids=[message for _, _, message in BAD])
def test_bad_files(file: str, content: str, message: str, folder: Path) -> None:
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_text(content)
    raises_one_line(folder / file, message, lambda: read_annotations(folder, CLASSES))


@pytest.mark.parametrize("box", [[30, 0, 5, 5], [3, 3, 0, 5], [-9, 2, 5, 5], [3, 3, -2, 5]])
def test_boxes_outside_the_picture(box: list[float], folder: Path) -> None:
    (folder / "annotations.json").write_text(of_one(bbox=box))
    (annotated,) = read_annotations(folder)
    raises_one_line(folder / "annotations.json", "holds nothing of 30x20 pixels", annotated.read)


def test_boxes_across_the_edge_are_cut(folder: Path) -> None:
    (folder / "annotations.json").write_text(of_one(bbox=[-5, 15, 10, 99]))
    assert np.array_equal(the_only(read_annotations(folder), "a.png")[1], box_region(0, 15, 5, 20))


BAD_MASKS = {
    "another size": (lambda path: Image.new("L", (5, 4)).save(path), "the mask has 5x4 pixels, its picture 30x20"),
    "in colour": (lambda path: Image.new("RGB", (WIDTH, HEIGHT)).save(path), "must be grey or have a palette"),
    "no picture file": (lambda path: path.write_text("mask"), "not a picture that can be read"),
}


@pytest.mark.parametrize("case", BAD_MASKS)
def test_bad_masks(case: str, folder: Path) -> None:
    write, message = BAD_MASKS[case]
    (folder / "masks").mkdir()
    write(folder / "masks" / "a.png")
    (annotated,) = read_annotations(folder)
    raises_one_line(folder / "masks" / "a.png", message, annotated.read)


@pytest.mark.parametrize(
    ("name", "message"),
    [("c.png", "has no picture of the name 'c'"), ("lion/a.png", "lion: not a class; a folder of masks is named by")],
)
def test_masks_of_nothing(name: str, message: str, folder: Path) -> None:
    write_mask(folder / "masks" / name, np.ones((HEIGHT, WIDTH)))
    raises_one_line(folder / "masks", message, lambda: read_annotations(folder, CLASSES))


def test_a_folder_without_annotations(folder: Path) -> None:
    raises_one_line(
        folder, "no annotations; looked for annotations.json, Annotations, masks", lambda: read_annotations(folder)
    )


def raises_one_line(path: Path, message: str, call) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        call()
    assert "\n" not in str(raised.value) and str(raised.value).startswith(str(path))
