"""Checkpoints that a run can be resumed from, whenever it was killed.

MMEngine removes the checkpoint that is replaced, then writes the new one under its final name: a run that is killed
meanwhile leaves half a file and, with ``max_keep_ckpts=1``, nothing else. Here a file is moved into place when it is
complete, and the older one is removed after that.
"""

from __future__ import annotations

from pathlib import Path

from mmengine.fileio import LocalBackend, get_file_backend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner, find_latest_checkpoint

from ..files import write_atomically

NAME = "covpool_plugins.whole_files"


class WholeFiles(LocalBackend):
    """Local files that are written atomically; a removed file stays until the next one has been written.

    Args:
        outdated: paths of the files to be removed, shared by the two objects that MMEngine makes, one to write and
            one to remove.
    """

    def __init__(self, outdated: list[str]) -> None:
        self.outdated = outdated

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
