"""Checkpoints are moved into place, what they replace goes afterwards, and the latest is found without its name."""

import os

import pytest
from mmengine.fileio import LocalBackend, get_file_backend
from mmengine.hooks import CheckpointHook
from support.small_runs import a_runner

from covpool_plugins.mmpretrain_plugin.safe_checkpoints import (
    WHOLE_FILES,
    WholeFiles,
    latest_checkpoint,
    write_whole_checkpoints,
)


def test_a_file_is_removed_when_the_next_one_is_there(tmp_path):
    first, second = tmp_path / "epoch_1.pth", tmp_path / "new" / "epoch_2.pth"
    outdated = []
    removing, writing = (get_file_backend(backend_args=dict(backend=WHOLE_FILES, outdated=outdated)) for _ in range(2))
    writing.put(b"one", first)
    removing.remove(str(first))
    assert first.read_bytes() == b"one"
    writing.put(b"two", str(second))
    assert not first.exists() and second.read_bytes() == b"two" and not outdated
    assert [path.name for path in second.parent.iterdir()] == ["epoch_2.pth"]


def test_a_file_that_is_written_again_stays(tmp_path):
    path = tmp_path / "best.pth"
    backend = WholeFiles([])
    backend.put(b"one", path)
    backend.remove(path)
    with pytest.raises(TypeError):
        backend.put("no bytes", path)
    assert [left.read_bytes() for left in tmp_path.iterdir()] == [b"one"]
    backend.put(b"two", path)
    assert path.read_bytes() == b"two"


def test_hooks_keep_as_many_as_they_are_told(tmp_path):
    own = CheckpointHook(interval=1, max_keep_ckpts=1, filename_tmpl="own_{}.pth")
    other = CheckpointHook(interval=-1, backend_args=dict(backend="local"))
    runner = a_runner(tmp_path / "work", own, other)
    write_whole_checkpoints(runner)
    assert other.backend_args == dict(backend="local")
    assert type(get_file_backend(backend_args=other.backend_args)) is LocalBackend
    runner.train()
    names = sorted(path.name for path in (tmp_path / "work").glob("*.pth"))
    assert names == ["epoch_1.pth", "epoch_2.pth", "epoch_3.pth", "own_3.pth"]
    hooks = [hook for hook in runner.hooks if isinstance(hook, CheckpointHook) and hook is not other]
    assert len(hooks) == 2 and all(isinstance(hook.file_backend, WholeFiles) for hook in hooks)
    assert not list((tmp_path / "work").glob(".*"))


@pytest.mark.parametrize(
    "named, files, expected",
    [
        (None, [], None),
        (None, ["epoch_1.pth"], "epoch_1.pth"),
        ("epoch_1.pth", ["epoch_1.pth", "epoch_2.pth"], "epoch_1.pth"),
        ("epoch_1.pth", ["epoch_9.pth", "epoch_10.pth", "best_epoch_11.pth"], "epoch_10.pth"),
        ("", ["iter_100.pth"], "iter_100.pth"),
        ("", [], None),
        ("epoch_1.pth", [], "epoch_1.pth"),  # says that it is not there
    ],
)
def test_the_latest_checkpoint(named, files, expected, tmp_path):
    for age, name in enumerate(files):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, ns=(age, age))
    if named is not None:
        (tmp_path / "last_checkpoint").write_text(str(tmp_path / named) if named else "")
    assert latest_checkpoint(str(tmp_path)) == (expected and str(tmp_path / expected))


def test_an_address_is_left_to_mmengine(tmp_path):
    (tmp_path / "last_checkpoint").write_text("s3://bucket/epoch_1.pth")
    assert latest_checkpoint(str(tmp_path)) == "s3://bucket/epoch_1.pth"
