"""The README's tables name what there is."""

import re
from pathlib import Path

from covpool_plugins import list_heads, whitening
from covpool_plugins.explain import list_methods

README = (Path(__file__).parents[1] / "README.md").read_text()


def _names(section: str) -> list[str]:
    """First column of the first table of a section."""
    text = README.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)


def test_every_head_has_its_row():
    assert sorted(_names("Heads")) == sorted(list_heads())


def test_every_whitening_method_has_its_row():
    assert _names("Whitening") == whitening.list_methods()


def test_every_explanation_has_its_row():
    assert sorted(_names("Explanations")) == sorted(list_methods())
