"""The README's table of heads is made from the table of pools; ``COVPOOL_WRITE_README=1`` writes it anew."""

import os
from pathlib import Path

from covpool_plugins.command_line import markdown_table
from covpool_plugins.pooling import POOLS, create_pool, list_pools

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- heads -->\n", "\n<!-- end of heads -->"
HEADER = ("name", "forward", "gradient", "numbers", "ONNX", "source")
CHANNELS = 2048  # of ResNet-50's last map


def head_table() -> str:
    rows = []
    for name in sorted(list_pools(), key=_group):
        pool, about = create_pool(name, CHANNELS, device="meta"), POOLS.about[name]
        numbers = f"{int(pool.out_features):,}".replace(",", " ")
        exports = "yes" if pool.is_exportable else "-"
        rows.append((f"`{name}`", about.forward, about.gradient, numbers, exports, about.source))
    return markdown_table(HEADER, rows)


def _group(name: str) -> tuple[bool, bool]:
    """What is shown first: the roots by eigen-decomposition, then the iterations; average pooling last."""
    about = POOLS.about[name]
    return name == "gap", "eigen-decomposition" not in about.forward


def test_every_pool_says_what_it_is():
    assert POOLS.about.keys() == set(list_pools())
    assert all(text and "|" not in text and "\n" not in text for about in POOLS.about.values() for text in about)


def test_the_table_of_the_readme_is_that_of_the_registry():
    text = README.read_text()
    before, rest = text.split(BEGIN)
    found, after = rest.split(END)
    if os.environ.get("COVPOOL_WRITE_README"):
        README.write_text(f"{before}{BEGIN}{head_table()}{END}{after}")
        return
    assert found == head_table(), "stale: COVPOOL_WRITE_README=1 python -m pytest tests/test_head_table.py writes it"
