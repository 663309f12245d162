"""tools/train.py and tools/test.py in two processes, and the group that they form."""

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from mmengine.config import Config
from support.small_configs import seen, small_config
from support.small_runs import load, run_main, test, train

from covpool_plugins.errors import OptionError
from covpool_plugins.mmpretrain_plugin import runs

ROOT = Path(__file__).parents[2]
BATCH = 6


# One after the other in the same two processes and their group: most of the time of a run goes into its imports.
SEVERAL_TOOLS = """
import json, runpy, sys
import torch.distributed as dist
dist.init_process_group("gloo")
for tool, arguments in json.loads(sys.argv[1]):
    sys.argv = [tool, *arguments, "--launcher", "pytorch"]
    try:
        runpy.run_path(tool, run_name="__main__")
    except SystemExit as done:
        if done.code != 0:
            raise
dist.destroy_process_group()
"""


def two_processes(script, *arguments):
    """Run a script by torchrun on a CPU; the exit status and stderr."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    paths = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "-1"}
    command = [str(part) for part in (*launch, script, *arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    return result.returncode, result.stderr


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_batch(tmp_path):
    config = small_config(tmp_path / "config.py", batch_size=BATCH)
    checkpoint = tmp_path / "one" / "epoch_3.pth"
    train(config, tmp_path / "one")
    one = test(config, checkpoint, tmp_path / "one")

    half = ["--cfg-options", f"train_dataloader.batch_size={BATCH // 2}"]
    odd = ["--cfg-options", "train_dataloader.dataset.size=11", "train_dataloader.num_workers=1"]
    tools = [
        ("train", [config, "--work-dir", tmp_path / "two", *half]),
        ("test", [config, checkpoint, "--work-dir", tmp_path / "two", "--out", tmp_path / "two.json"]),
        ("train", [config, "--work-dir", tmp_path / "odd", *odd]),
    ]
    calls = [(str(ROOT / "tools" / f"{tool}.py"), list(map(str, arguments))) for tool, arguments in tools]
    (tmp_path / "tools.py").write_text(SEVERAL_TOOLS)
    status, stderr = two_processes(tmp_path / "tools.py", json.dumps(calls))
    assert status == 0, stderr

    alone, *ranks = seen(tmp_path / "one"), seen(tmp_path / "two", 0), seen(tmp_path / "two", 1)
    assert len(alone) == len(ranks[0]) == len(ranks[1]) == 6
    assert any(first["loss"] != second["loss"] for first, second in zip(*ranks, strict=True))
    mean = [(first["loss"] + second["loss"]) / 2 for first, second in zip(*ranks, strict=True)]
    assert mean == pytest.approx([step["loss"] for step in alone], rel=1e-6)
    first, last = (load(tmp_path / "one" / f"epoch_{n}.pth")["state_dict"] for n in (1, 3))
    together = load(tmp_path / "two" / "epoch_3.pth")["state_dict"]
    for name, weight in last.items():
        torch.testing.assert_close(together[name], weight, rtol=1e-6, atol=1e-7)
        assert not torch.equal(first[name], weight)
    # A batch of other images is rounded otherwise, with one process too.
    assert json.loads((tmp_path / "two.json").read_text()) == pytest.approx(one, rel=1e-7)
    assert 0 < one["accuracy/top1"] < 100  # of 9 images, which is no even number
    # Every process gets 6 of 11 images, one of them twice.
    assert [len(seen(tmp_path / "odd", rank)) for rank in (0, 1)] == [3, 3]
    assert load(tmp_path / "odd" / "epoch_3.pth")["meta"]["iter"] == 3


@pytest.mark.slow
def test_an_error_of_several_processes_is_a_line_of_each(tmp_path):
    """torchrun adds a report of its own."""
    arguments = [small_config(tmp_path / "config.py"), "--launcher", "pytorch", "--work-dir", tmp_path / "run"]
    tool = ROOT / "tools" / "train.py"
    status, stderr = two_processes(tool, *arguments, "--cfg-options", "model.neck.pool=svdpad")
    assert status == 1
    assert 1 <= stderr.count("unknown pool 'svdpad'") <= 2  # torchrun may end the second before it comes to it
    assert "covpool_plugins/" not in stderr  # no traceback of ours


@pytest.mark.parametrize("gpu", [False, True])
def test_how_a_model_is_wrapped(gpu, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    without_device = dict(type="MMDistributedDataParallel", find_unused_parameters=True, broadcast_buffers=False)
    own = dict(type="MMDistributedDataParallel", broadcast_buffers=True)
    # With a GPU MMEngine wraps the model for the device of each process.
    for given, expected in (
        ({}, None if gpu else dict(without_device, device_ids=None)),
        (
            dict(model_wrapper_cfg=own),
            own if gpu else dict(own, device_ids=None),
        ),
    ):
        Config(dict(given, find_unused_parameters=True)).dump(tmp_path / "config.py")
        cfg = runs.configure(
            Namespace(config=tmp_path / "config.py", cfg_options=[], launcher="pytorch", work_dir=None)
        )
        assert cfg.get("model_wrapper_cfg") == expected


@pytest.mark.parametrize("gpu", [False, True])
def test_which_group_the_processes_form(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    for name, value in dict(RANK=0, WORLD_SIZE=1, MASTER_ADDR="localhost", MASTER_PORT=0).items():
        monkeypatch.setenv(name, str(value))
    for _ in range(2):
        with runs.process_group("pytorch"):
            assert dist.is_initialized() == (not gpu)  # with a GPU MMEngine is to find none, and takes nccl
            assert gpu or dist.get_backend() == "gloo"
        assert not dist.is_initialized()
    with runs.process_group("none"):
        assert not dist.is_initialized()


def test_a_launcher_that_did_not_start_the_process(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(OptionError, match=r"needs processes that torchrun starts, for example: python -m torch\."):
        run_main("train", "config.py", "--launcher", "pytorch")
