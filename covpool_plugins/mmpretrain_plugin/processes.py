"""Several processes that train one model: their group, their model wrapper, and one report of what went wrong."""

from __future__ import annotations

import inspect
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from mmengine.config import Config
from torch.nn.parallel import DistributedDataParallel

from ..checks import check_choice
from ..errors import OptionError

LAUNCHERS = ("none", "pytorch")
# Whether buffers are sent around in every forward pass; PyTorch warns of the older name.
SYNC_BUFFERS = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
    else "broadcast_buffers"
)

_group_numbers = itertools.count(1)


@contextmanager
def process_group(launcher: str) -> Iterator[None]:
    """Within it, the processes of a launcher can talk to each other: by nccl, or by gloo without a GPU.

    Raises:
        OptionError: for an unknown launcher, or one that did not start this process.
        SystemExit: in place of an exception, if another process has raised one before.
    """
    check_choice("launcher", launcher, LAUNCHERS)
    if launcher == "pytorch" and "RANK" not in os.environ:
        raise OptionError(
            "launcher 'pytorch' needs processes that torchrun starts, for example: "
            "python -m torch.distributed.run --nproc-per-node 2 tools/train.py CONFIG --launcher pytorch"
        )
    if launcher == "pytorch":
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ.setdefault(name, "1")  # as MMEngine does, with a warning
    try:
        if launcher == "pytorch" and not torch.cuda.is_available():
            _form_group()  # with a GPU MMEngine sets up nccl by itself
        yield
        if dist.is_initialized():
            dist.barrier()  # or the first to end would close connections that others still read from
    except Exception:
        if launcher == "pytorch" and not _first_to_fail():
            raise SystemExit(2) from None
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _form_group() -> None:
    """A gloo group as torchrun describes it; a process that trains and then tests forms two."""
    store, rank, size = next(dist.rendezvous("env://"))
    # Else a process could find the addresses of the group before, and wait for it for ever.
    store = dist.PrefixStore(f"covpool_plugins/{next(_group_numbers)}", store)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)


def wrap_model(cfg: Config) -> None:
    """Write into a config how its model is wrapped for several processes, on GPUs or without."""
    if cfg.get("model_wrapper_cfg") is None:  # as MMEngine wraps it
        unused = cfg.get("find_unused_parameters", False)
        cfg.model_wrapper_cfg = dict(
            type="MMDistributedDataParallel", broadcast_buffers=False, find_unused_parameters=unused
        )
    wrapper = cfg.model_wrapper_cfg
    if "broadcast_buffers" in wrapper:
        wrapper[SYNC_BUFFERS] = wrapper.pop("broadcast_buffers")
    if not torch.cuda.is_available():
        wrapper.device_ids = None


def _first_to_fail() -> bool:
    """Whether no process of this job has asked before.

    What one process raises, the others raise too, or lose their connection to it.
    """
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        store = dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=10))
        return store.add("covpool_plugins/failed", 1) == 1
    except (dist.DistError, RuntimeError):
        return True  # rather said twice than not at all
