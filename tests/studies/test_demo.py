"""The demo's trainings and its page."""

import json
from html.parser import HTMLParser

import pytest
import torch
from studies.demo import EXPLAINED_BY, HEADS, run_demo
from studies.demo_training import DemoRecipe, build, train
from studies.photographs import write_crops

TINY = {"channels": (8, 8, 8, 16), "last_stride": 1}


def test_training_learns(tmp_path):
    data = write_crops(tmp_path / "data", {"train": 12, "val": 4}, size=32)
    recipe = DemoRecipe(data, backbone_kwargs=TINY, size=32, batch_size=12, epochs=8, learning_rate=0.05)
    run = train(recipe, "svdpade", {"reduce_channels": 8}, tmp_path / "model.pth")
    assert len(run.accuracies) == len(run.losses) == 8
    assert run.losses[-1] < 0.95 * run.losses[0] and run.step_ms > 0
    assert set(torch.load(run.checkpoint, weights_only=True)) == set(
        build(recipe, "svdpade", {"reduce_channels": 8}).state_dict()
    )


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.targets = []

    def handle_starttag(self, tag, attrs):
        self.targets += [value for name, value in attrs if name in ("src", "href")]


@pytest.mark.slow
def test_demo(tmp_path, capsys):
    run_demo(tmp_path, epochs=1, per_class=8, mosaics=1, mmpretrain_epochs=1)
    assert capsys.readouterr().out.startswith("Trains 3 heads on 3 x 8 crops of photographs")
    page = (tmp_path / "index.html").read_text()
    links = Links()
    links.feed(page)
    assert links.targets and all((tmp_path / target).is_file() for target in links.targets)
    assert all(page.count(f"<td>{head}</td>") == 2 for head in HEADS)
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert [run["head"] for run in numbers["runs"]] == list(HEADS)
    assert len(numbers["localisation"]) == len(HEADS) * len(EXPLAINED_BY)
    assert all(0 <= share <= 1 for entry in numbers["localisation"] for share in entry["shares"])
