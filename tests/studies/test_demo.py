"""The demo's pictures, its network and its page."""

import json
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser

import numpy as np
import pytest
import timm
import torch
from studies import demo, finetune_training
from studies.demo import EXPLAINED, HEADS, SHOWN, run_demo
from studies.front import FRONT
from studies.labelled import folds, labelled_files
from studies.photographs import photograph
from studies.regions import BLOCKS, PATTERN, REGIONS, SIDE, blocks_of, write_regions

from covpool_plugins import create_model


@cache
def untrained(backbone, packages):
    """What takes the place of the packaged weights."""
    state = timm.create_model("tf_efficientnet_lite0").state_dict()
    return {"state_dict": state, "mean": (0.5,) * 3, "std": (0.5,) * 3}


def test_crops_of_a_block_are_never_in_training_and_test_together(tmp_path):
    files = labelled_files(write_regions(tmp_path, 2), PATTERN)
    blocks = BLOCKS[0] * BLOCKS[1]
    assert files.classes == tuple(sorted(REGIONS)) and len(files.paths) == 2 * blocks * len(REGIONS)
    assert set(SHOWN) <= set(files.classes)
    for training, testing in folds(files, blocks):
        assert not set(files.groups[training]) & set(files.groups[testing])
        assert (np.bincount(files.labels[testing]) == 2).all()  # one block of each class


def test_crops_are_the_same_for_the_same_seed(tmp_path):
    first, again, other = (
        sorted(write_regions(tmp_path / str(place), 1, seed).glob("*/*")) for place, seed in enumerate((0, 0, 1))
    )
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    assert all(path.read_bytes() != changed.read_bytes() for path, changed in zip(first, other, strict=True))


@pytest.mark.parametrize("name", REGIONS)
def test_a_region_lies_in_its_photograph_and_overlaps_no_other(name):
    source, (left, top, right, bottom) = REGIONS[name]
    width, height = photograph(source).size
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    blocks = blocks_of(name)
    assert sum(block[..., 0].size for block in blocks) == (right - left) * (bottom - top)
    assert all(min(block.shape[:2]) >= SIDE[1] for block in blocks)
    for other, (where, box) in REGIONS.items():
        apart = box[0] >= right or box[2] <= left or box[1] >= bottom or box[3] <= top
        assert other == name or where != source or apart, other


def test_the_front_is_the_whole_network_up_to_a_stage():
    weights = untrained(FRONT, None)
    model = create_model(FRONT, "svdpade", num_classes=3, pretrained=True, pretrained_cfg_overlay=weights).eval()
    whole = timm.create_model("tf_efficientnet_lite0").eval()
    whole.load_state_dict(weights["state_dict"])
    x = torch.randn(2, 3, 64, 64)
    expected = whole.forward_intermediates(x, indices=[2], intermediates_only=True)[0]
    torch.testing.assert_close(model.forward_features(x), expected)
    assert expected.shape == (2, 40, 8, 8) and model(x).shape == (2, 3)
    assert model.pretrained_cfg["mean"] == (0.5,) * 3


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.targets = []

    def handle_starttag(self, tag, attrs):
        self.targets += [value for name, value in attrs if name in ("src", "href")]


@pytest.mark.slow
def test_demo(tmp_path, capsys, monkeypatch):
    for module in (finetune_training, demo):
        monkeypatch.setattr(module, "weights_of", untrained)
    monkeypatch.setattr(demo.os, "cpu_count", lambda: 1)  # no other processes, which would not see the changed weights
    recipe_of = demo.recipe_of
    monkeypatch.setattr(demo, "recipe_of", lambda *arguments: replace(recipe_of(*arguments), size=32))
    monkeypatch.setattr(demo, "SCALE", 0.4)
    run_demo(tmp_path, epochs=1, crops=1, textures=8, mmpretrain_epochs=1)
    assert capsys.readouterr().out.startswith(f"Fine-tunes {FRONT} with 3 heads on {len(REGIONS)} kinds")
    page = (tmp_path / "index.html").read_text()
    links = Links()
    links.feed(page)
    assert links.targets and all((tmp_path / target).is_file() for target in links.targets)
    assert all(page.count(f"<td>{head}</td>") == 1 for head in EXPLAINED)
    runs = json.loads((tmp_path / "numbers.json").read_text())["runs"]
    assert [(run["row"], run["fold"]) for run in runs] == [(head, fold) for fold in range(1, 6) for head in HEADS]
    assert all(0 <= run["frozen"] <= 100 and 0 <= run["pictures"] <= 100 for run in runs)
