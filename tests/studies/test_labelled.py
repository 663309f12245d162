"""Folders of classes, groups and folds."""

import numpy as np
import pytest
from PIL import Image
from studies.labelled import folds, labelled_files, read_squares

from covpool_plugins.errors import OptionError


def write_classes(root, families, size=(12, 8)):
    """A folder for each class with two pictures of each family."""
    for label, name in enumerate(("a", "b")):
        (root / name).mkdir(parents=True)
        for family in range(families):
            for number in range(2):
                Image.new("RGB", size, (20 * label, 3 * family, number)).save(root / name / f"{family}--{number}.png")
    return root


def test_groups_stay_together_and_classes_are_spread(tmp_path):
    files = labelled_files(write_classes(tmp_path, 6), "(.+)--")
    assert files.classes == ("a", "b")
    tested = []
    for training, testing in folds(files, 3):
        assert not set(files.groups[training]) & set(files.groups[testing])
        assert set(files.labels[testing]) == {0, 1}
        tested += testing.tolist()
    assert sorted(tested) == list(range(24))


def test_without_a_pattern_each_picture_stands_for_itself(tmp_path):
    files = labelled_files(write_classes(tmp_path, 2))
    assert len(set(files.groups)) == len(files.paths) == 8


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("(", "no regular expression"), ("x", "one group in brackets, has 0"), ("(x)", "does not match '0--0.png'")],
)
def test_bad_patterns_are_refused(tmp_path, pattern, message):
    with pytest.raises(OptionError, match=message):
        labelled_files(write_classes(tmp_path, 1), pattern)


def test_bad_folders_are_refused(tmp_path):
    with pytest.raises(OptionError, match="two folders or more"):
        labelled_files(tmp_path)
    write_classes(tmp_path, 2)
    with pytest.raises(OptionError, match="class 'a' has 2 groups of pictures, fewer than 3 folds"):
        folds(labelled_files(tmp_path, "(.+)--"), 3)
    (tmp_path / "empty").mkdir()
    with pytest.raises(OptionError, match="holds no pictures"):
        labelled_files(tmp_path)


def test_squares_are_cut_from_the_middle(tmp_path):
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, 4:12] = 200
    Image.fromarray(pixels).save(tmp_path / "x.png")
    squares = read_squares([tmp_path / "x.png"], 4)
    assert squares.shape == (1, 3, 4, 4)
    assert (squares == 200).all()
