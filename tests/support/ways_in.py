"""Sends files through ways into the package, under limits of memory and time; run as a script.

    python tests/support/ways_in.py FOLDER OUT WAY...

Writes one line of JSON for each call: way, file, what came of it, the seconds it took, the megabytes it added.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import covpool_plugins
from covpool_plugins.checkpoint_file import find_weights, read_checkpoint
from support.hostile_files import write_all

MODEL = "test_resnet"
CONFIG = "_base_ = 'mmpretrain::resnet/resnet18_8xb16_cifar10.py'\n"
LIMIT, SECONDS = 4 << 30, 60


class HangError(BaseException):
    """A call that takes too long."""


def read(path: Path) -> Any:
    return find_weights(read_checkpoint(path), path)


def convert(path: Path) -> Any:
    from covpool_plugins.checkpoints import load_original

    return load_original(path)


def explain_timm(path: Path) -> Any:
    from covpool_plugins.explain import load_timm_model

    return load_timm_model(MODEL, path, num_classes=2)


def explain_config(path: Path) -> Any:
    from covpool_plugins.explain import load_mmpretrain_model

    config = path.parent / "config.py"
    config.write_text(CONFIG)
    return load_mmpretrain_model(config, path)


def create_model(path: Path) -> Any:
    overlay = dict(file=str(path), num_classes=2)
    return covpool_plugins.create_model(MODEL, "gap", pretrained=True, pretrained_cfg_overlay=overlay)


def checked(resume: bool) -> Callable[[Path], Any]:
    def check(path: Path) -> Any:
        from covpool_plugins.mmpretrain_plugin.safe_checkpoints import check_checkpoint

        return check_checkpoint(path, resume=resume)

    return check


def loaded(path: Path) -> Any:
    from mmengine.runner.checkpoint import load_checkpoint
    from torch import nn

    from covpool_plugins.mmpretrain_plugin.safe_checkpoints import weights_only_checkpoints

    with weights_only_checkpoints():
        return load_checkpoint(nn.Linear(2, 2), str(path), strict=True)


WAYS: dict[str, Callable[[Path], Any]] = {
    "read": read,
    "convert": convert,
    "explain with timm": explain_timm,
    "explain with a config": explain_config,
    "weights of create_model": create_model,
    "test": checked(False),
    "resume": checked(True),
    "load_from and init_cfg": loaded,
}


def outcome(way: str, path: Path) -> str:
    signal.alarm(SECONDS)
    try:
        WAYS[way](path)
    except (ValueError, OSError) as error:  # what run_tool says in one line
        return f"refused: {error}"
    except HangError:
        return "hangs"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
    return "accepted"


def _hang(*_: object) -> None:
    raise HangError


def main(folder: Path, out: Path, ways: list[str]) -> None:
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    os.chdir(folder)
    signal.signal(signal.SIGALRM, _hang)
    for way in ways:
        outcome(way, folder / "nothing.pth")  # imports
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + LIMIT,) * 2)
    for name, path in write_all(folder).items():
        for way in ways:
            before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
            came = outcome(way, path)
            seconds = time.process_time() - start
            added = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
            row = dict(way=way, file=name, outcome=came, seconds=round(seconds, 2), megabytes=round(added, 1))
            with open(out, "a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:] or list(WAYS))
