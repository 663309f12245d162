"""Convert a checkpoint for timm or MMPretrain; the same as ``python -m covpool_plugins.checkpoints``."""

from covpool_plugins.checkpoints.__main__ import main
from covpool_plugins.command_line import run_tool

if __name__ == "__main__":
    run_tool(main)
