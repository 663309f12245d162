"""Ctrl-C while a command of this package still imports what it needs, which takes seconds: one line and status 130.

The package imports this module before all others. Where the program is none of our commands it does nothing.
"""

from __future__ import annotations

import os
import signal
import sys

# Only what Python has imported by itself when it starts.

INTERRUPTED = 130  # what a shell reports
PACKAGE = os.path.dirname(os.path.abspath(__file__))
NAME = os.path.basename(PACKAGE)
TOOLS = [os.path.realpath(os.path.join(PACKAGE, folder)) for folder in ("../tools", ".mim/tools")]


def program_name() -> str:
    """What messages call the program: its path, or ``python -m MODULE``."""
    folder, name = os.path.split(sys.argv[0])
    if name == "__main__.py" and folder.startswith(PACKAGE):
        return f"python -m {NAME}" + folder.removeprefix(PACKAGE).replace(os.sep, ".")
    return NAME if sys.argv[0] == "-m" else sys.argv[0]


def is_our_command() -> bool:
    """Whether Python runs a file of ``tools``, or looks in this package for what ``python -m`` is to run."""
    if sys.argv[:1] == ["-m"]:  # which it is until the module is found
        return sys.orig_argv[-len(sys.argv)].removeprefix("-m").startswith(f"{NAME}.")
    program = getattr(sys.modules["__main__"], "__file__", None)
    return program is not None and os.path.dirname(os.path.realpath(program)) in TOOLS


def end_at_once(*_: object) -> None:
    """Say so and end; an exception would come out of the middle of an import, if it came out at all."""
    os.write(2, f"{program_name()}: interrupted\n".encode())
    os._exit(INTERRUPTED)


def interrupt_by_exception() -> None:
    """From here on Ctrl-C is a ``KeyboardInterrupt`` again, so that a command can keep what is done."""
    if signal.getsignal(signal.SIGINT) is end_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)


# A shell starts what runs in the background with Ctrl-C ignored, which stays.
if is_our_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, end_at_once)
