"""One line for what is wrong with a config, before a run comes to its data."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from ..errors import OptionError, one_line
from .necks import unwrapped


class SetUpHook(Hook):
    """Records that a run is set up; before that it compares the classes of the data with those of the head.

    Attributes:
        done: whether the next thing is the first batch.

    Raises:
        OptionError: before the first batch, for data with more classes than the head has.
    """

    priority = "LOWEST"  # the last step before the first batch

    def __init__(self) -> None:
        self.done = False

    def before_train(self, runner: Runner) -> None:
        self._check_classes(runner, runner.train_loop, runner.val_loop)

    def before_test(self, runner: Runner) -> None:
        self._check_classes(runner, runner.test_loop)

    def _check_classes(self, runner: Runner, *loops: Any) -> None:
        num_classes = getattr(getattr(unwrapped(runner.model), "head", None), "num_classes", None)
        for loop in loops:
            metainfo = getattr(loop.dataloader.dataset, "metainfo", None) if loop is not None else None
            classes = (metainfo or {}).get("classes") or ()
            if num_classes is not None and len(classes) > num_classes:
                names = textwrap.shorten(", ".join(map(str, classes)), 200, placeholder=" …")
                raise OptionError(
                    f"the data set has {len(classes)} classes ({names}), the model has {num_classes}; "
                    f"set model.head.num_classes={len(classes)}"
                )
        self.done = True


@contextmanager
def one_line_errors(where: str | Path) -> Iterator[SetUpHook]:
    """Make every exception before the first batch one that a tool reports in one line.

    Args:
        where: what the message begins with, the path of the config.

    Yields:
        The hook that the run needs; errors are bugs, and keep their type, once it is done.

    Raises:
        OptionError: instead of any exception but ``ValueError``, ``OSError`` and ``ImportError``.
    """
    set_up = SetUpHook()
    try:
        yield set_up
    except (ValueError, ImportError):
        raise
    except OSError as error:
        if "Original Traceback" not in str(error):
            raise
        # From a worker process of a data loader, with that process's traceback in the message.
        raise OSError(str(error).strip().splitlines()[-1]) from error
    except Exception as error:
        if set_up.done:
            raise
        # The str() of a KeyError is the repr of its message.
        message = one_line(Exception(*error.args) if isinstance(error, KeyError) else error)
        raise OptionError(f"{where}: {textwrap.shorten(message, 500, placeholder=' …')}") from error
