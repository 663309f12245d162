"""The command line of the planted comparison; ``tests/explain/test_evidence.py`` tests what it stands on."""

import json

import compare
import pytest
from studies import planted


def test_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(planted, "train_network", lambda seed: planted.TextureNet(reduce_channels=4).eval())
    monkeypatch.setattr(planted, "EXPLAINED_BY", {"contribution": {}})
    compare.main(["planted", "--seeds", "2", "--pictures", "1", "--json", str(tmp_path / "n.json")])
    printed = capsys.readouterr().out
    assert "| method | pointing | energy | deletion | random deletion | preference |" in printed
    assert "\n| contribution |" in printed and "1 test pictures of each kind for each of 2 networks" in printed
    runs = json.loads((tmp_path / "n.json").read_text())["runs"]
    assert [run["seed"] for run in runs] == [0, 1] and runs[0]["evidence"][0]["method"] == "contribution"


@pytest.mark.slow
def test_every_method(capsys):
    compare.main(["planted", "--seeds", "1", "--pictures", "3"])
    printed = capsys.readouterr().out
    assert all(f"| {method} |" in printed for method in planted.EXPLAINED_BY)
