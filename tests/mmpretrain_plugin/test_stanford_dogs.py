"""StanfordDogs on a small folder of the official layout."""

import sys

import numpy as np
import pytest
from mmpretrain.registry import DATASETS
from PIL import Image

from covpool_plugins.errors import MissingExtraError, OptionError
from covpool_plugins.mmpretrain_plugin.stanford_dogs import StanfordDogs

# Not in the order of the alphabet of the breeds, as in the data set.
FOLDERS = ["n02085620-Chihuahua", "n02097658-silky_terrier", "n02088094-Afghan_hound", "n02105855-Shetland_sheepdog"]
CLASSES = ("Chihuahua", "Afghan_hound", "silky_terrier", "Shetland_sheepdog")
SPLITS = {"train": 3, "test": 2}


def entries(split):
    first = 0 if split == "train" else SPLITS["train"]
    return [f"{folder}/{folder[:9]}_{first + i}.jpg" for folder in FOLDERS for i in range(SPLITS[split])]


def write_mat(path, names, **options):
    """As the official lists: a column of cells with the names, the labels from 1 on."""
    savemat = pytest.importorskip("scipy.io").savemat
    cells = np.empty((len(names), 1), dtype=object)
    cells[:, 0] = names
    labels = np.array([[sorted(FOLDERS).index(name.split("/")[0]) + 1.0] for name in names])
    savemat(path, {"file_list": cells, "annotation_list": cells, "labels": labels}, **options)


@pytest.fixture
def dogs(tmp_path):
    for name in [*entries("train"), *entries("test")]:
        path = tmp_path / "Images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (len(name), 0, 0)).save(path)
    (tmp_path / "Images" / ".cache").mkdir()
    (tmp_path / "Images" / "README").write_text("no folder")
    for split in SPLITS:
        (tmp_path / f"{split}.txt").write_text("\n".join(entries(split)) + "\n\n")
    return tmp_path


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("split", SPLITS)
def test_official_lists(split, compressed, dogs):
    write_mat(dogs / f"{split}_list.mat", entries(split), do_compression=compressed)
    data_set = DATASETS.build(dict(type="StanfordDogs", data_root=str(dogs), split=split, _scope_="mmpretrain"))
    assert len(data_set) == len(FOLDERS) * SPLITS[split]
    assert data_set.CLASSES == data_set.metainfo["classes"] == CLASSES
    assert data_set.get_gt_labels().tolist() == [label for label in (0, 2, 1, 3) for _ in range(SPLITS[split])]
    assert data_set.test_mode == (split == "test")
    paths = [data_set.get_data_info(i)["img_path"] for i in range(len(data_set))]
    assert paths == [str(dogs / "Images" / name) for name in entries(split)]
    of_text = StanfordDogs(str(dogs), split, ann_file=f"{split}.txt")
    assert [of_text.get_data_info(i)["img_path"] for i in range(len(of_text))] == paths
    assert str(dogs) in repr(data_set)


def test_options_of_the_base_class(dogs):
    pipeline = [dict(type="mmpretrain.LoadImageFromFile"), dict(type="mmpretrain.PackInputs")]
    data_set = StanfordDogs(str(dogs), "test", "test.txt", pipeline=pipeline, classes=list("abcd"), lazy_init=True)
    assert data_set.metainfo["classes"] == tuple("abcd") and not data_set._fully_initialized
    data_set.full_init()
    assert data_set[7]["inputs"].shape == (3, 8, 8)
    assert int(data_set[7]["data_samples"].gt_label) == 3
    assert StanfordDogs(str(dogs), ann_file="train.txt", metainfo=dict(source="here")).metainfo == dict(
        classes=CLASSES, source="here"
    )


def test_without_scipy_the_extra_is_named(dogs, monkeypatch):
    (dogs / "train_list.mat").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(MissingExtraError, match=r"covpool_plugins\[mmpretrain\]"):
        StanfordDogs(str(dogs))
    assert len(StanfordDogs(str(dogs), ann_file="train.txt")) == len(entries("train"))


@pytest.mark.parametrize(
    "options, error, message",
    [
        (dict(split="val"), OptionError, "StanfordDogs: split must be one of train, test, got 'val'"),
        (dict(), FileNotFoundError, r"train_list\.mat does not exist"),
        (dict(data_prefix="pictures"), FileNotFoundError, "pictures has no folders of images"),
    ],
)
def test_bad_options(options, error, message, dogs):
    with pytest.raises(error, match=message):
        StanfordDogs(str(dogs), **options)


def text_list(line):
    return lambda path: path.with_name("train.txt").write_text(f"{entries('train')[0]}\n{line}\n")


def mat_list(name):
    return lambda path: pytest.importorskip("scipy.io").savemat(path, {name: np.ones((3, 1))})


NO_LIST = r"train_list\.mat (is not a list of images, or is damaged|has no file_list)"
NO_IMAGE = r"expected <folder>/<image> .* got "


@pytest.mark.parametrize(
    "write, message",
    [
        (lambda path: path.write_bytes(b"no MAT file"), NO_LIST),
        (lambda path: path.write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200)), NO_LIST),
        (mat_list("labels"), r"train_list\.mat has no file_list"),
        (mat_list("file_list"), rf"train_list\.mat: {NO_IMAGE}'1.0'"),
        (text_list("n00000000-cat/1.jpg"), NO_IMAGE),
        (text_list("1.jpg"), NO_IMAGE),
        (text_list(f"{FOLDERS[0]}/"), NO_IMAGE),
        (text_list(f"{FOLDERS[0]}/../{FOLDERS[1]}/1.jpg"), NO_IMAGE),
    ],
)
def test_bad_lists(write, message, dogs):
    path = dogs / "train_list.mat"
    write(path)
    with pytest.raises(OptionError, match=message):
        StanfordDogs(str(dogs), ann_file=path.name if path.exists() else "train.txt")
