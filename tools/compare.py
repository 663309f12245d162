"""Train every head on the same pictures, several seeds each: accuracy, time, memory, condition numbers, failures."""

from studies.heads import main

from covpool_plugins.command_line import run_tool

if __name__ == "__main__":
    run_tool(main)
