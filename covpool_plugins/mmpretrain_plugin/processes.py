"""Several processes that train one model: their group, their model wrapper, and one report of what went wrong."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from mmengine.config import Config

from ..checks import check_choice
from ..errors import OptionError

LAUNCHERS = ("none", "pytorch")


@contextmanager
def process_group(launcher: str) -> Iterator[None]:
    """Let the processes of a launcher talk to each other: by nccl, or by gloo without a GPU.

    Raises:
        OptionError: for an unknown launcher, or one that did not start this process.
        SystemExit: instead of an exception, if another process has raised one before.
    """
    check_choice("launcher", launcher, LAUNCHERS)
    if launcher == "pytorch" and "RANK" not in os.environ:
        raise OptionError(
            "launcher 'pytorch' needs processes that torchrun starts, for example: "
            "python -m torch.distributed.run --nproc-per-node 2 tools/train.py CONFIG --launcher pytorch"
        )
    begins_here = not dist.is_initialized()
    try:
        if launcher == "pytorch" and begins_here and not torch.cuda.is_available():
            dist.init_process_group("gloo")  # with a GPU MMEngine sets up nccl
        yield
        if dist.is_initialized():
            dist.barrier()  # otherwise the first process to end closes connections that others still read from
    except Exception:
        if launcher == "pytorch" and not _first_to_fail():
            raise SystemExit(2) from None
        raise
    finally:
        if begins_here and dist.is_initialized():
            dist.destroy_process_group()


def wrap_model(cfg: Config) -> None:
    """Without a GPU, write into a config that its model is wrapped for no device; MMEngine's default needs one."""
    if torch.cuda.is_available():
        return
    default = dict(
        type="MMDistributedDataParallel",
        broadcast_buffers=False,
        find_unused_parameters=cfg.get("find_unused_parameters", False),
    )
    cfg.model_wrapper_cfg = dict(cfg.get("model_wrapper_cfg") or default, device_ids=None)


def _first_to_fail() -> bool:
    """Whether no process of this job has asked before: the others fail for the same reason, or lose their peer."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        store = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=10))
        return store.add("covpool_plugins/failed", 1) == 1
    except (dist.DistError, RuntimeError):
        return True  # the store is gone: report twice rather than not at all
