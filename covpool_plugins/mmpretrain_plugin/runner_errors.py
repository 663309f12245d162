"""What goes wrong in a run because of its config or its data, said in one line."""

from __future__ import annotations

import os
import pickle
import re
import textwrap
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import OPTIMIZERS
from mmengine.runner import Runner
from mmpretrain.registry import OPTIMIZERS as MMPRETRAIN_OPTIMIZERS

from ..errors import OptionError, ShapeError, UnknownNameError
from .config_faults import Fault, find_fault, message_of


class SetUp(Hook):
    """Knows whether a run is still being set up, or has come to its data; compares their classes with the head's."""

    def __init__(self) -> None:
        self.done = False
        self.loaders: list[Any] = []
        self.num_classes: int | None = None

    def before_train(self, runner: Runner) -> None:
        self._begin(runner, runner.train_loop, runner.val_loop)

    def before_test(self, runner: Runner) -> None:
        self._begin(runner, runner.test_loop)

    def _begin(self, runner: Runner, *loops: Any) -> None:
        self.loaders = [loop.dataloader for loop in loops if loop is not None]
        model = getattr(runner.model, "module", runner.model)
        self.num_classes = getattr(getattr(model, "head", None), "num_classes", None)
        for loader in self.loaders:
            classes = (getattr(loader.dataset, "metainfo", None) or {}).get("classes")
            if classes is not None and self.num_classes is not None and len(classes) > self.num_classes:
                listed = textwrap.shorten(", ".join(map(str, classes)), 200, placeholder=" …")
                raise OptionError(
                    f"the data set has {len(classes)} classes ({listed}), the model has {self.num_classes}; "
                    f"set model.head.num_classes={len(classes)}"
                )
        self.done = True

    def stop_workers(self) -> None:
        """End persistent workers now: PyTorch waits five seconds for each that the garbage collector finds."""
        for loader in self.loaders:
            loader._iterator = None

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
        for loader in self.loaders:
            for index in range(len(loader.dataset)):
                path = loader.dataset.get_data_info(index).get("img_path")
                if path is not None and os.path.isfile(path) and os.path.getsize(path) == 0:
                    return path
        return None


@contextmanager
def one_line_errors(where: str | Path, cfg: Config | None = None, *first: str) -> Iterator[SetUp]:
    """What the config, the checkpoint or the data are at fault for, in one line.

    Whatever is raised while a run is set up names ``where`` and, if that can be told, the key of the config; of what
    is raised later, what the package itself refuses and what the data explain.

    Args:
        where: path of the config.
        cfg: the config, once it is read.
        first: which data loaders are used, for example ``'test'``.

    Raises:
        OptionError: instead of the error that was raised within; an ``OSError`` instead of an ``OSError``.
    """
    set_up = SetUp()
    try:
        yield set_up
    except Exception as error:
        if set_up.done and (reason := set_up.explain(error)) is not None:
            traceback.clear_frames(error.__traceback__)  # they hold the workers that are to end
            raise OptionError(reason) from error
        bad_input = isinstance(error, (ValueError, OSError, ImportError, pickle.UnpicklingError))
        ours = isinstance(error, (OptionError, ShapeError, UnknownNameError))
        fault = None
        if cfg is not None and not isinstance(error, pickle.UnpicklingError):
            fault = _optimizer_fault(error, cfg) or find_fault(error, cfg, first)
        if set_up.done and not ours:
            # A bug, unless an option has only now come to the function that does not know it.
            if fault is None or f"unexpected keyword argument '{fault.key}'" not in str(error):
                raise
        elif fault is None and (bad_input or set_up.done):
            raise
        kind = type(error) if isinstance(error, OSError) and type(error).__module__ == "builtins" else OptionError
        raise kind(f"{where}: {fault or message_of(error)}") from error
    finally:
        set_up.stop_workers()


def _optimizer_fault(error: Exception, cfg: Config) -> Fault | None:
    """MMEngine calls an optimizer that it does not find ``None``, and says nothing else of it."""
    if str(error) != "None is not a callable object":
        return None
    name = cfg.optim_wrapper.get("optimizer", {}).get("type")
    known = {*OPTIMIZERS.module_dict, *MMPRETRAIN_OPTIMIZERS.module_dict}
    return Fault("optim_wrapper.optimizer", "type", name, str(UnknownNameError("optimizer", name, known)))
