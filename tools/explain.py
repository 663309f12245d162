"""Explain class scores of classifiers; the same as ``python -m covpool_plugins.explain``."""

from covpool_plugins.command_line import run_tool
from covpool_plugins.explain.__main__ import main

if __name__ == "__main__":
    run_tool(main)
