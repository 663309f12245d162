"""The table of heads in the documents is made from the table of pools; ``COVPOOL_WRITE_DOCS=1`` writes it anew."""

import os
from pathlib import Path

from covpool_plugins.command_line import markdown_table
from covpool_plugins.pooling import POOLS, create_pool, list_pools

PAGE = Path(__file__).parents[1] / "docs" / "heads.md"
BEGIN, END = "<!-- heads -->\n", "\n<!-- end of heads -->"
HEADER = ("name", "forward", "gradient", "source", "numbers", "ONNX")
TEXT_COLUMNS = 4
CHANNELS = 2048  # of ResNet-50's last map


def head_table() -> str:
    rows = []
    for name in sorted(list_pools(), key=_group):
        pool, about = create_pool(name, CHANNELS, device="meta"), POOLS.about[name]
        numbers = f"{int(pool.out_features):,}".replace(",", " ")
        exports = "yes" if pool.is_exportable else "-"
        rows.append((f"`{name}`", about.forward, about.gradient, about.source, numbers, exports))
    return markdown_table(HEADER, rows, TEXT_COLUMNS)


def _group(name: str) -> tuple[bool, bool]:
    """What is shown first: the roots by eigen-decomposition, then the iterations; average pooling last."""
    about = POOLS.about[name]
    return name == "gap", "eigen-decomposition" not in about.forward


def test_every_pool_says_what_it_is():
    assert POOLS.about.keys() == set(list_pools())
    assert all(text and "|" not in text and "\n" not in text for about in POOLS.about.values() for text in about)


def test_the_table_of_the_page_is_that_of_the_registry():
    before, rest = PAGE.read_text().split(BEGIN)
    written, after = rest.split(END)
    if os.environ.get("COVPOOL_WRITE_DOCS"):
        PAGE.write_text(f"{before}{BEGIN}{head_table()}{END}{after}")
        return
    assert written == head_table(), "stale: COVPOOL_WRITE_DOCS=1 python -m pytest tests/test_head_table.py writes it"
