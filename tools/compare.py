"""Train every head on the same pictures, several seeds each: accuracy, time, memory, condition numbers, failures."""

from covpool_plugins.command_line import run_tool
from covpool_plugins.experiments.heads import main

if __name__ == "__main__":
    run_tool(main)
