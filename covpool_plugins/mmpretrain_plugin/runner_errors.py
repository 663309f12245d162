"""What goes wrong in a run because of its config or its data, said in one line."""

from __future__ import annotations

import difflib
import os
import pickle
import re
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import OPTIMIZERS
from mmengine.runner import Runner
from mmpretrain.registry import OPTIMIZERS as MMPRETRAIN_OPTIMIZERS

from ..command_line import one_line
from ..errors import OptionError, UnknownNameError


class SetUp(Hook):
    """Knows whether a run is still being set up, or has come to its data; compares their classes with the head's."""

    def __init__(self) -> None:
        self.done = False
        self.data_sets: list[Any] = []
        self.num_classes: int | None = None

    def before_train(self, runner: Runner) -> None:
        self._begin(runner, runner.train_loop, runner.val_loop)

    def before_test(self, runner: Runner) -> None:
        self._begin(runner, runner.test_loop)

    def _begin(self, runner: Runner, *loops: Any) -> None:
        self.data_sets = [loop.dataloader.dataset for loop in loops if loop is not None]
        model = getattr(runner.model, "module", runner.model)
        self.num_classes = getattr(getattr(model, "head", None), "num_classes", None)
        for data_set in self.data_sets:
            classes = (getattr(data_set, "metainfo", None) or {}).get("classes")
            if classes is not None and self.num_classes is not None and len(classes) > self.num_classes:
                listed = textwrap.shorten(", ".join(map(str, classes)), 200, placeholder=" …")
                raise OptionError(
                    f"the data set has {len(classes)} classes ({listed}), the model has {self.num_classes}; "
                    f"set model.head.num_classes={len(classes)}"
                )
        self.done = True

    def explain(self, error: Exception) -> str | None:
        """What is wrong with the data, if that is where an error comes from."""
        text = str(error)
        if loaded := re.findall(r"failed to load image: (.+)", text):  # of a worker's traceback, the last line is right
            return f"{loaded[-1].strip()}: not a picture that can be read"
        if "imdecode" in text and (path := self._empty_file()) is not None:
            return f"{path}: not a picture that can be read (the file is empty)"
        if found := re.search(r"Target (-?\d+) is out of bounds", text):
            return f"the data has the label {found[1]}, model.head.num_classes is {self.num_classes}"
        if isinstance(error, OSError) and "Original Traceback" in text:  # from a worker process of the data loader
            return text.strip().splitlines()[-1]
        return None

    def _empty_file(self) -> str | None:
        """OpenCV does not say which file it was."""
        for data_set in self.data_sets:
            for index in range(len(data_set)):
                path = data_set.get_data_info(index).get("img_path")
                if path is not None and os.path.isfile(path) and os.path.getsize(path) == 0:
                    return path
        return None


@contextmanager
def one_line_errors(where: str | Path, cfg: Config | None = None) -> Iterator[SetUp]:
    """What the config, the checkpoint or the data are at fault for, in one line.

    Whatever is raised while a run is set up names ``where``; of what is raised later, only what the data explain.

    Raises:
        OptionError: instead of the error that was raised within.
    """
    set_up = SetUp()
    try:
        yield set_up
    except Exception as error:
        if set_up.done and (reason := set_up.explain(error)) is not None:
            raise OptionError(reason) from error
        if set_up.done or isinstance(error, (ValueError, OSError, ImportError, pickle.UnpicklingError)):
            raise
        if str(error) == "None is not a callable object" and cfg is not None:
            _check_optimizer(cfg)
        # str() of a KeyError is the repr of its message; the list of all keys that do not fit can be endless.
        message = str(error.args[0]) if isinstance(error, KeyError) and error.args else one_line(error)
        message = textwrap.shorten(message, 500, placeholder=" …")
        raise OptionError(f"{where}: {message}{_suggestion(message, cfg)}") from error


def _check_optimizer(cfg: Config) -> None:
    """MMEngine calls an optimizer that it does not find ``None``."""
    name = cfg.optim_wrapper.get("optimizer", {}).get("type")
    known = {*OPTIMIZERS.module_dict, *MMPRETRAIN_OPTIMIZERS.module_dict}
    if isinstance(name, str) and "." not in name and name not in known:
        raise UnknownNameError("optimizer", name, known)


def _suggestion(message: str, cfg: Config | None) -> str:
    """For a misspelt class of ours or a misspelt key, the closest that exists."""
    from .. import MMPRETRAIN_CLASSES

    if found := re.search(r"covpool_plugins\.(\w+) is not in", message):
        return _closest(found[1], MMPRETRAIN_CLASSES)
    if found := re.search(r"unexpected keyword argument '(\w+)'", message):
        return _closest(
            found[1], {sibling for node in _holders(cfg, found[1]) for sibling in node if sibling != found[1]}
        )
    return ""


def _closest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _holders(node: Any, key: str) -> Iterator[dict[str, Any]]:
    """The parts of a config that have a key."""
    if isinstance(node, (dict, Config)):
        if key in node:
            yield dict(node.items())
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for child in node:
            yield from _holders(child, key)
