"""Train every head on the same pictures, several seeds each: accuracy, time, memory, condition numbers, failures."""

from covpool_plugins.command_line import run_tool

if __name__ == "__main__":
    from covpool_plugins.experiments.heads import main

    run_tool(main)
