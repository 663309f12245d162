"""The table of materials, and the unpacking of an archive."""

import io
import zipfile
from collections import Counter

import pytest
from PIL import Image
from studies.labelled import labelled_files
from studies.materials import FOLDER, GROUPS, textures, unpack

from covpool_plugins.errors import OptionError


def test_the_table_has_enough_families_of_every_material():
    rows = textures()
    assert len(rows) == len({row.file for row in rows}) == 421
    families = Counter(material for material, _ in {(row.material, row.family) for row in rows})
    assert len(families) == 11
    assert min(families.values()) >= 6  # folds


def write_archive(path, left_out=None):
    """An archive with a picture of one colour for each row of the table."""
    with zipfile.ZipFile(path, "w") as archive:
        for number, row in enumerate(textures()):
            if row.file != left_out:
                content = io.BytesIO()
                Image.new("RGBA", (4, 4), (number % 256, 80, 160, 255)).save(content, "DDS")
                archive.writestr(FOLDER + row.file, content.getvalue())
    return path


def test_an_archive_becomes_a_folder_of_classes_with_families(tmp_path):
    rows = textures()
    unpack(write_archive(tmp_path / "public.zip"), tmp_path / "out", 8)
    files = labelled_files(tmp_path / "out", GROUPS)
    assert len(files.paths) == len(rows)
    assert len(set(files.groups)) == len({row.family for row in rows})
    assert set(files.classes) == {row.material for row in rows}
    with Image.open(files.paths[0]) as picture:
        assert picture.size == (8, 8)


def test_other_archives_are_refused_in_one_line(tmp_path):
    with pytest.raises(OptionError, match=f"{FOLDER}.*it is not that of 0ad-data"):
        unpack(write_archive(tmp_path / "old.zip", textures()[3].file), tmp_path / "out", 8)
    (tmp_path / "text.zip").write_text("no archive")
    with pytest.raises(OptionError, match="is no zip archive"):
        unpack(tmp_path / "text.zip", tmp_path / "out", 8)
