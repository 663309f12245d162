"""Checkpoints that a run can be resumed from, whenever it was killed.

MMEngine removes the checkpoint that is replaced, then writes the new one under its final name: a run that is killed
meanwhile leaves half a file and, with ``max_keep_ckpts=1``, nothing else. Here a file is moved into place when it is
complete, and the older one is removed after that.
"""

from __future__ import annotations

from pathlib import Path

from mmengine.config import Config
from mmengine.fileio import LocalBackend, get_file_backend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner, find_latest_checkpoint

from ..files import write_atomically
from .safe_checkpoints import check_checkpoint

NAME = "covpool_plugins.whole_files"


class WholeFiles(LocalBackend):
    """Local files that are written atomically; a removed file stays until the next one has been written."""

    def __init__(self, outdated: list[str]) -> None:
        self.outdated = outdated  # shared by the two objects that MMEngine makes, one to write and one to remove

    def put(self, obj: bytes, filepath: str | Path) -> None:
        write_atomically(filepath, lambda file: file.write(obj))
        while self.outdated:
            path = Path(self.outdated.pop())
            if path != Path(filepath):
                path.unlink(missing_ok=True)

    def remove(self, filepath: str | Path) -> None:
        self.outdated.append(str(filepath))


register_backend(NAME, WholeFiles)


def write_whole_checkpoints(runner: Runner) -> None:
    """Let the checkpoint hooks of a runner write to local folders by :class:`WholeFiles`."""
    for hook in runner.hooks:
        if not isinstance(hook, CheckpointHook) or hook.backend_args or hook.file_client_args:
            continue
        if type(get_file_backend(hook.out_dir or runner.work_dir)) is LocalBackend:
            hook.backend_args = dict(backend=NAME, outdated=[])


def latest_checkpoint(work_dir: str) -> str | None:
    """The checkpoint that a run in this folder wrote last; ``None`` if there is none.

    The file ``last_checkpoint`` names it, but a run may be killed after it has removed that checkpoint and before it
    has written the name of the next: then it is the newest one.
    """
    named = find_latest_checkpoint(work_dir)
    if named and ("://" in named or Path(named).exists()):
        return named
    checkpoints = [path for pattern in ("epoch_*.pth", "iter_*.pth") for path in Path(work_dir).glob(pattern)]
    return str(max(checkpoints, key=lambda path: path.stat().st_mtime_ns)) if checkpoints else named or None


def load_or_resume(cfg: Config, resume: str | None) -> None:
    """Write into a config the checkpoint that a run begins with, and the seed of the run that it continues.

    That is the one to ``resume``, or the latest in the ``work_dir`` for ``auto``, if there is one.
    """
    if resume is not None:
        cfg.load_from, cfg.resume = None if resume == "auto" else resume, True
    if cfg.get("resume") and cfg.get("load_from") is None:
        cfg.load_from = latest_checkpoint(cfg.work_dir)
        cfg.resume = cfg.load_from is not None
    if cfg.get("load_from") is None:
        return
    meta = check_checkpoint(cfg.load_from, resume=cfg.get("resume", False))
    randomness = cfg.get("randomness") or {}
    if cfg.get("resume") and randomness.get("seed") is None:
        # MMEngine takes it from the checkpoint after it has built the samplers and the workers with another one.
        cfg.randomness = dict(randomness, seed=meta.get("seed"))
